"""From a network's outputs to scores in [0, 1] and losses: as numbers, or as levels with a probability each.

Derived. Level l of L stands for the score l / (L - 1); the score of a distribution over levels is its mean, and its
uncertainty the standard deviation. A rating that is not there is nan and has no part in any loss.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from pl_fed.isa.ratings_layouts import SCORES
from pl_fed.modules.settings import ScoreSettings
from pl_fed.packing.rows import at_least_float32


@dataclass(frozen=True)
class PredictedScores:
    """What a network says of some images.

    Args:
        scores: In [0, 1], in the order of the settings' names.
        probabilities: Of each level; None if scores are learned as numbers.
        uncertainty: Standard deviation of the scores over the levels; None alike.
    """

    scores: Float[Tensor, "batch scores"]
    probabilities: Float[Tensor, "batch scores levels"] | None = None
    uncertainty: Float[Tensor, "batch scores"] | None = None


def chosen_targets(targets: Float[Tensor, "batch 2"], settings: ScoreSettings) -> Float[Tensor, "batch scores"]:
    """Return the ratings of the scores that are learned."""
    return targets[:, [SCORES.index(name) for name in settings.names]]


def nearest_level(scores: Float[Tensor, "*n"], levels: int) -> Int[Tensor, "*n"]:
    """Return the index of the level that is nearest to each score; halves go up.

    Args:
        scores: In [0, 1].
        levels: Number of levels.

    Example:
        >>> nearest_level(torch.tensor([0.0, 0.3, 0.375, 1.0]), 5).tolist()
        [0, 1, 2, 4]
    """
    # ratings are in [0, 1]; the noise that stands for them in an audit is not
    return (scores * (levels - 1) + 0.5).floor().long().clamp(0, levels - 1)


def level_shares(scores: Float[Tensor, "*n"], levels: int) -> Float[Tensor, "*n levels"]:
    """Share each score between the two levels around it, so that the mean level is the score.

    Args:
        scores: In [0, 1].
        levels: Number of levels.

    Example:
        >>> level_shares(torch.tensor([0.3125]), 5).tolist()  # 1.25 of 4
        [[0.0, 0.75, 0.25, 0.0, 0.0]]
    """
    place = (scores.clamp(0, 1) * (levels - 1)).unsqueeze(-1)
    return (1 - (place - torch.arange(levels, device=scores.device)).abs()).clamp(min=0)


def score_losses(
    outputs: Float[Tensor, "batch outputs"], targets: Float[Tensor, "batch scores"], settings: ScoreSettings
) -> tuple[Float[Tensor, "batch scores"], Bool[Tensor, "batch scores"]]:
    """Return the loss of every rating, 0 where there is none, and where there is one.

    Args:
        outputs: Of the network.
        targets: Ratings of the scores that are learned; nan where there is none.
        settings: Which scores, and how.
    """
    known = ~targets.isnan()
    outputs = at_least_float32(outputs)
    wanted = targets.nan_to_num(0.0).to(outputs.dtype)
    if settings.levels is None:
        losses = (outputs - wanted).square()
    else:
        by_level = outputs.unflatten(1, (len(settings.names), settings.levels)).movedim(2, 1)  # (batch, levels, scores)
        if settings.soft_labels:
            labels = level_shares(wanted, settings.levels).movedim(2, 1)
        else:
            labels = nearest_level(wanted, settings.levels)
        losses = F.cross_entropy(by_level, labels, reduction="none")
    return torch.where(known, losses, 0.0), known


def predicted_scores(outputs: Float[Tensor, "batch outputs"], settings: ScoreSettings) -> PredictedScores:
    """Return scores in [0, 1] from a network's outputs.

    Args:
        outputs: Of the network.
        settings: Which scores, and how.

    Example:
        >>> settings = ScoreSettings(("semantic",), levels=3)
        >>> found = predicted_scores(torch.tensor([[0.0, 0.0, 0.0]]), settings)
        >>> found.scores.item(), round(found.uncertainty.item(), 4)  # root of (0.25 + 0 + 0.25) / 3
        (0.5, 0.4082)
    """
    if settings.levels is None:
        return PredictedScores(outputs.float().clamp(0, 1))
    probabilities = outputs.float().unflatten(1, (len(settings.names), settings.levels)).softmax(-1)
    values = torch.linspace(0, 1, settings.levels, device=outputs.device)
    scores = (probabilities @ values).clamp(0, 1)  # rounding may leave a sum of probabilities above 1
    spread = (probabilities * (values - scores.unsqueeze(-1)).square()).sum(-1).sqrt()
    return PredictedScores(scores, probabilities, spread)
