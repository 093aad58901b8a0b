"""From texts and images to scores: by counting, by a language model that reads the rubric, or by a trained module."""

from pl_fed.isa.scorers.base import Score, Scorer
from pl_fed.isa.scorers.checkpoint import CheckpointScorer
from pl_fed.isa.scorers.heuristic import HeuristicScorer
from pl_fed.isa.scorers.zero_shot import ZeroShotScorer

__all__ = ["CheckpointScorer", "HeuristicScorer", "Score", "Scorer", "ZeroShotScorer"]
