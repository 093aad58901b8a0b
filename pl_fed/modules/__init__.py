"""Lightning modules: transformers models with a LoRA adapter, the adapter's export, and whole networks for images."""

from pl_fed.modules.base import LoraModule
from pl_fed.modules.causal_lm import LoraCausalLM
from pl_fed.modules.export import export_adapter
from pl_fed.modules.image_classifier import ImageClassifier
from pl_fed.modules.sequence_classifier import LoraSequenceClassifier
from pl_fed.modules.settings import GenerationSettings, LoraSettings, ModelLoading, NetworkSettings

__all__ = [
    "GenerationSettings",
    "ImageClassifier",
    "LoraCausalLM",
    "LoraModule",
    "LoraSequenceClassifier",
    "LoraSettings",
    "ModelLoading",
    "NetworkSettings",
    "export_adapter",
]
