"""Lightning modules: transformers models with a LoRA adapter, and the adapter's export."""

from pl_fed.modules.base import LoraModule
from pl_fed.modules.causal_lm import LoraCausalLM
from pl_fed.modules.export import export_adapter
from pl_fed.modules.sequence_classifier import LoraSequenceClassifier
from pl_fed.modules.settings import GenerationSettings, LoraSettings, ModelLoading

__all__ = [
    "GenerationSettings",
    "LoraCausalLM",
    "LoraModule",
    "LoraSequenceClassifier",
    "LoraSettings",
    "ModelLoading",
    "export_adapter",
]
