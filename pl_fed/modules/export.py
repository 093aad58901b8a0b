"""A trained adapter as files that every PEFT user can load, and optionally the merged model."""

import copy
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from pl_fed.adapters import ADAPTER_NAME, MERGED, Adapter
from pl_fed.errors import FederatedConfigError, shortened
from pl_fed.modules.base import LoraModule
from pl_fed.modules.checkpoint import fold_diagonals
from pl_fed.modules.loading import quiet

MERGED_FOLDER = "merged"

_CARD = """---
{link}library_name: peft
tags: [lora, federated-learning]
---

# LoRA adapter for {base}

| | |
|---|---|
| base model | {base} ({architecture}) |
| rank, alpha | {rank}, {alpha} |
| adapted layers | {targets} |
| parameters in this folder | {num_parameters:,} |
| written with | {versions} |

```python
from peft import PeftModel
from {auto_module} import {auto_class}

base = {auto_class}.from_pretrained("{base}"{options})
model = PeftModel.from_pretrained(base, "path/to/this/folder")
```
"""


def export_adapter(module: LoraModule, folder: str | Path, merge: bool = False, overwrite: bool = False) -> Path:
    """Write the adapter as a PEFT folder; ``PeftModel.from_pretrained(base_model, folder)`` gives the same logits.

    A learned diagonal is folded into B. The folder appears at once and complete: it is written beside and renamed.

    Args:
        module: A module whose model is loaded.
        folder: Where to; the configuration, weights, tokenizer and model card go there.
        merge: Also write the base model with the adapter merged into its weights, to the folder ``merged`` inside.
        overwrite: Replace the folder if there is something in it.

    Returns:
        The folder.

    Raises:
        FederatedConfigError: If there is something in the folder, no model or no adapter is loaded, or a quantised
            model is to be merged.
    """
    target = Path(folder)
    if not hasattr(module, "model"):
        raise FederatedConfigError("Expected a module with a loaded model: call `configure_model()` or fit it first.")
    if module.lora is None:
        raise FederatedConfigError(
            "Expected a module with an adapter to export but `lora` is null: use `module.model.save_pretrained`."
        )
    if merge and module.loading.quantization is not None:
        raise FederatedConfigError(
            "Expected an unquantised base model to merge into but `loading.quantization` is set: load the adapter on "
            "the full model, or export without `merge`."
        )
    if target.is_file() or (target.is_dir() and any(target.iterdir()) and not overwrite):
        raise FederatedConfigError(
            f"Expected `folder` to be new or empty but '{target}' is not: choose another or set `overwrite`."
        )
    if module.global_rank == 0:
        with _appearing(target) as work:
            _write_adapter(module, work)
            if merge:
                _write_merged(module, work / MERGED_FOLDER)
    return target


def _write_adapter(module: LoraModule, folder: Path) -> None:
    state, rank = _with_merged(module.model, fold_diagonals(module.model.state_dict()))
    # without "auto" peft would ask the hub for the base model's configuration; embeddings are never resized here
    tensors = get_peft_model_state_dict(module.model, state, ADAPTER_NAME, save_embedding_layers=False)
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    save_file(plain, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = cast(LoraConfig, copy.deepcopy(module.model.peft_config[ADAPTER_NAME]))
    config.inference_mode = True
    if rank != config.r:  # what was merged into the base model becomes further slots, of the same scale
        scale = next(iter(Adapter(module.model).layers.values())).scale
        config.r, config.use_rslora = rank, False
        config.lora_alpha = scale * rank  # type: ignore[assignment]  # peft only divides it by the rank
    if not isinstance(config.target_modules, str):  # a set, whose order changes from run to run
        config.target_modules = sorted(config.target_modules or ())
    config.save_pretrained(str(folder))
    if module.reads_text:
        module.tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(_model_card(module, config, sum(x.numel() for x in plain.values())))


@torch.no_grad()
def _with_merged(model: nn.Module, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """Return the tensors with what a rule merged into the base model as further slots, and their rank.

    The change is decomposed exactly; every layer is padded with zeros to the largest rank.
    """
    layers = Adapter(model).layers
    extra = {name: _factors(layer.merged) for name, layer in layers.items() if layer.merged is not None}
    state = {name: value for name, value in state.items() if not name.endswith(f".{MERGED}")}
    rank = max((layer.a.shape[0] for layer in layers.values()), default=0)
    rank += max((a.shape[0] for a, _ in extra.values()), default=0)
    for name, (a, b) in extra.items():
        key_a, key_b = (f"{name}.lora_{side}.{ADAPTER_NAME}.weight" for side in "AB")
        a, b = torch.cat([state[key_a], a]), torch.cat([state[key_b], b], dim=1)
        state[key_a] = nn.functional.pad(a, (0, 0, 0, rank - a.shape[0]))
        state[key_b] = nn.functional.pad(b, (0, rank - b.shape[1]))
    return state, rank


def _factors(change: Tensor) -> tuple[Tensor, Tensor]:
    """Return factors (rank, d_in), (d_out, rank) of a dense change, without its zero singular values."""
    u, s, vh = torch.linalg.svd(change.double(), full_matrices=False)
    keep = s > torch.finfo(torch.float32).eps * max(change.shape) * s[:1].sum()
    root = s[keep].sqrt()
    return (root[:, None] * vh[keep]).to(change), (u[:, keep] * root).to(change)


@torch.no_grad()
def _write_merged(module: LoraModule, folder: Path) -> None:
    model = copy.deepcopy(module.model)
    _untie(model)
    folded = fold_diagonals(model.state_dict())
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.copy_(folded[name])
    for layer in Adapter(model).layers.values():
        if layer.merged is not None:
            base = cast(nn.Parameter, layer.module.get_base_layer().weight)
            change = layer.scale * layer.merged
            transposed = vars(layer.module)["fan_in_fan_out"]  # Conv1D of transformers
            base.add_((change.T if transposed else change).to(base))
    try:
        merged = model.merge_and_unload()
    except (RuntimeError, ValueError) as error:  # `lora_bias` on layers without a bias, for example
        raise FederatedConfigError(
            f"Expected an adapter that can be merged but it cannot: {shortened(error)}: export without `merge`."
        ) from error
    with quiet():
        merged.save_pretrained(folder)
    if module.reads_text:
        module.tokenizer.save_pretrained(folder)


def _untie(model: PeftModel) -> None:
    """Give an adapted head that shares its weight with the embedding, which has no adapter, a weight of its own."""
    base = cast(PreTrainedModel, model.get_base_model())
    shared = getattr(base.get_input_embeddings(), "weight", None)
    for layer in Adapter(model).layers.values():
        adapted = cast(nn.Linear, layer.module.get_base_layer())
        if adapted.weight is shared:
            adapted.weight = nn.Parameter(adapted.weight.detach().clone(), requires_grad=False)
            base.config.tie_word_embeddings = False


def _model_card(module: LoraModule, config: LoraConfig, num_parameters: int) -> str:
    base = module.model_name
    targets = config.target_modules or ()
    return _CARD.format(
        base=base,
        # a folder is no address on the hub, which checks this line
        link="" if Path(base).is_dir() else f"base_model: {base}\n",
        architecture=type(module.model.get_base_model()).__name__,
        auto_module=module.auto_class.__module__.removesuffix(".models.auto.modeling_auto"),
        auto_class=module.auto_class.__name__,
        options="".join(f", {name}={value!r}" for name, value in module.model_options().items()),
        rank=config.r,
        alpha=config.lora_alpha,
        targets=targets if isinstance(targets, str) else ", ".join(sorted(targets)),
        num_parameters=num_parameters,
        versions=f"peft {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}",
    )


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """Yield a folder beside `target` that takes its place if all goes well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    work, old = (target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.{kind}" for kind in ("new", "old"))
    work.mkdir()
    try:
        yield work
        if target.is_dir():
            os.replace(target, old)
        os.replace(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
