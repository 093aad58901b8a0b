"""Lightning modules: transformers models with a LoRA adapter, whole networks for images, scorers of either."""

from pl_fed.modules.base import LoraModule
from pl_fed.modules.causal_lm import LoraCausalLM
from pl_fed.modules.export import export_adapter
from pl_fed.modules.image_classifier import ImageClassifier
from pl_fed.modules.image_scorer import ImageScorer
from pl_fed.modules.semantic_scorer import SemanticScorer
from pl_fed.modules.sequence_classifier import LoraSequenceClassifier
from pl_fed.modules.settings import (
    GenerationSettings,
    LoraSettings,
    ModelLoading,
    NetworkSettings,
    ScoreSettings,
)
from pl_fed.modules.vilt_scorer import ViltScorer
from pl_fed.modules.vit_scorer import ViTScorer

__all__ = [
    "GenerationSettings",
    "ImageClassifier",
    "ImageScorer",
    "LoraCausalLM",
    "LoraModule",
    "LoraSequenceClassifier",
    "LoraSettings",
    "ModelLoading",
    "NetworkSettings",
    "ScoreSettings",
    "SemanticScorer",
    "ViTScorer",
    "ViltScorer",
    "export_adapter",
]
