"""Runs of tiny modules of `pl_fed.modules` under each engine, in float64, for comparison."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, ViTConfig, ViTModel

from pl_fed.clients import ClientsConfig
from pl_fed.loaders import RoundLoader
from pl_fed.modules import (
    LoraCausalLM,
    LoraModule,
    LoraSequenceClassifier,
    LoraSettings,
    ScoreSettings,
    SemanticScorer,
    ViTScorer,
)
from pl_fed.rounds import CohortConfig, LocalTraining
from pl_fed.strategy import FederatedStrategy
from tests.modules.rated_rows import collate_rated, rated_rows, without_semantic
from tests.modules.tiny_models import VOCAB, class_rows, collate_classes, collate_language, language_rows, llama_config
from tests.modules.tiny_models import save as save_model

SHARDS = [[0, 1, 2, 3, 4], [5, 6], [7, 8, 9, 10, 11, 12, 13], [14, 15, 16]]  # 3, 1, 4 and 2 batches of two
KINDS = ("llama", "gpt2", "bert", "vit", "semantic")
LEARNING_RATE = 5e-2


def save(kind: str, folder: Path, dropout: float = 0.0) -> str:
    """Write a tiny random model."""
    torch.manual_seed(1)
    if kind == "llama":
        return save_model(LlamaForCausalLM(llama_config(num_key_value_heads=1, attention_dropout=dropout)), folder)
    if kind == "gpt2":
        drops = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
        sizes = {"n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": VOCAB, "n_positions": 32}
        config = GPT2Config(**sizes, bos_token_id=1, eos_token_id=1, **drops)
        return save_model(GPT2LMHeadModel(config), folder, eos_token="<eos>")
    drops = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), dropout)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    if kind == "vit":
        model = ViTModel(ViTConfig(**sizes, image_size=16, patch_size=8, **drops), add_pooling_layer=False)
        model.save_pretrained(folder)
        return str(folder)
    return save_model(BertModel(BertConfig(**sizes, vocab_size=VOCAB, pad_token_id=0, **drops)), folder)


class Float64Norm(nn.Module):
    """Llama's norm without its detour over float32, in which rounding would hide what is compared."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.eps = norm.weight, norm.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


def in_float64(module: LoraModule) -> LoraModule:
    """Return a module that is float64 all through; its adapter is the same every time."""
    torch.manual_seed(2)
    module.configure_model()
    model: PeftModel = module.model
    for name, child in list(model.named_modules()):
        if type(child).__name__ == "LlamaRMSNorm":
            model.set_submodule(name, Float64Norm(child))
    return module.double()  # type: ignore[return-value]


def module_of(kind: str, folder: str, optimizer: Any = None, **changes: Any) -> LoraModule:
    """Return a module with LoRA of rank 3; the head of a classifier or scorer is trained in full."""
    optimizer = optimizer or (lambda parameters: torch.optim.AdamW(parameters, lr=LEARNING_RATE))
    lora = changes.pop("lora", LoraSettings(r=3, lora_dropout=changes.pop("dropout", 0.0)))
    if kind == "vit":
        return ViTScorer(folder, lora, optimizer, scores=ScoreSettings(("entity",), levels=5), **changes)
    if kind == "semantic":
        return SemanticScorer(folder, lora, optimizer, **changes)
    if kind == "bert":
        return LoraSequenceClassifier(folder, lora, optimizer, num_labels=3, **changes)
    return LoraCausalLM(folder, lora, optimizer, **changes)


def loader(kind: str, shards: Sequence[Sequence[int]] = SHARDS, batch_size: int = 2, **kwargs: Any) -> RoundLoader:
    """Return a loader of ragged texts, of images, or of texts of which every third has but one of its two ratings."""
    rows: Any
    collate: Any
    if kind == "bert":
        rows, collate = class_rows(17), collate_classes
    elif kind in ("vit", "semantic"):
        rows, collate = without_semantic(rated_rows(17), every=3), collate_rated
    else:
        rows, collate = language_rows(17), collate_language
    return RoundLoader(rows, shards, batch_size=batch_size, collate_fn=collate, **kwargs)


def federation(rule: Any, engine: Any, **changes: Any) -> FederatedStrategy:
    """Return a federation of four clients of unequal ranks."""
    changes.setdefault("cohort", CohortConfig())
    changes.setdefault("local", LocalTraining())
    changes.setdefault("clients", ClientsConfig(ranks=[3, 1, 2, 3]))
    return FederatedStrategy(rule, engine=engine, seed=4, **changes)


def run(
    module: LoraModule,
    strategy: FederatedStrategy,
    data: RoundLoader,
    start: Callable[[LoraModule], None] | None = None,
    **changes: Any,
) -> dict[str, Tensor]:
    """Fit two rounds; return what is trained, and what clients keep."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    plain = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "max_epochs": 2}
    if start is not None:
        start(module)
    trainer = pl.Trainer(**{**quiet, **plain, "strategy": strategy, **changes})
    trainer.fit(module, data)
    assert strategy.loop.federation is not None
    found = {name: p.detach().clone() for name, p in module.named_parameters() if name in module._trained}
    for client_id, state in strategy.loop.federation.states.items():
        found |= {
            f"client {client_id} {name}": value
            for name, value in {**state.kept, **state.control, **state.adapter}.items()
        }
    return found


def randomise(module: LoraModule) -> None:
    """Give every B a value: at zero, half of the gradients are."""
    generator = torch.Generator().manual_seed(7)
    for name, parameter in module.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * 0.3


def largest_difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """Return the largest absolute difference of two runs."""
    assert first.keys() == second.keys()
    return max(float((value - second[name]).abs().max()) for name, value in first.items() if value.numel())
