"""What FLoRA and FedEx-LoRA merge into the base model: exported, saved, loaded, and off with the adapter."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM

from pl_fed.clients import ClientsConfig
from pl_fed.loaders import ClientLoader, RoundLoader
from pl_fed.modules import LoraCausalLM, LoraSettings, export_adapter
from pl_fed.rounds import CohortConfig
from pl_fed.rules import FedExLoRA, FLoRA
from pl_fed.strategy import FederatedStrategy
from tests.modules.tiny_models import collate_language, language_rows

Make = Callable[..., pl.Trainer]
TARGETS = {"gpt2": ["c_attn", "c_proj"], "llama": ["q_proj", "down_proj"]}  # Conv1D and Linear, some not square
ROWS = [{**row, "client_id": i % 3} for i, row in enumerate(language_rows(12))]
SHARDS = [list(range(start, 12, 3)) for start in range(3)]
pytestmark = [
    # `load_from_checkpoint` calls what jsonargparse 4.49 renamed
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint"),
]


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    batch = collate_language(language_rows(5))
    return model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=5e-2)


def loader() -> ClientLoader:
    return ClientLoader(ROWS, SHARDS, 4, collate_fn=collate_language)


def trained(kind: str, rule: Any, folder: str, trainer: Make) -> tuple[LoraCausalLM, pl.Trainer]:
    module = LoraCausalLM(folder, LoraSettings(r=3, target_modules=TARGETS[kind]), adamw)
    clients = ClientsConfig(ranks=[1, 3, 2])
    run = trainer(strategy=FederatedStrategy(rule(), cohort=CohortConfig(clients=2), clients=clients), max_epochs=3)
    run.fit(module, RoundLoader(ROWS, SHARDS, batch_size=2, collate_fn=collate_language))
    return module, run


@pytest.mark.parametrize("rule", [FLoRA, FedExLoRA])
@pytest.mark.parametrize("kind", list(TARGETS))
def test_a_merged_base_survives(
    kind: str, rule: Any, request: pytest.FixtureRequest, trainer: Make, tmp_path: Path
) -> None:
    """Export, merged export, a checkpoint in a new module and with a new Trainer; logits to float32's precision."""
    folder = request.getfixturevalue(kind)
    module, run = trained(kind, rule, folder, trainer)
    base = AutoModelForCausalLM.from_pretrained(folder)
    expected, untouched = logits(module.model), logits(base)
    assert (expected - untouched).abs().max() > 1e-2, "nothing was trained"
    merged = {name: value for name, value in module.named_buffers() if name.endswith("lora_merged")}
    assert len(merged) == (6 if kind == "gpt2" else 4) and all(value.any() for value in merged.values())

    with module.model.disable_adapter():
        assert torch.equal(logits(module.model), untouched)
    assert torch.equal(logits(module.model), expected)

    exported = export_adapter(module, tmp_path / "adapter", merge=True)
    assert torch.equal(logits(module.model), expected), "the export changed the live model"
    config = PeftConfig.from_pretrained(str(exported))
    assert f"| rank, alpha | {config.r}, {config.lora_alpha} |" in (exported / "README.md").read_text()
    again = PeftModel.from_pretrained(base, str(exported))
    torch.testing.assert_close(logits(again), expected, rtol=1e-4, atol=2e-6)
    with again.disable_adapter():
        assert torch.equal(logits(again), untouched)
    whole = AutoModelForCausalLM.from_pretrained(exported / "merged")
    torch.testing.assert_close(logits(whole), expected, rtol=1e-4, atol=2e-6)

    run.save_checkpoint(tmp_path / "a.ckpt")
    figures = run.test(module, loader(), verbose=False)[0]
    loaded = LoraCausalLM.load_from_checkpoint(tmp_path / "a.ckpt", map_location="cpu", weights_only=True)
    plain = trainer()
    assert plain.test(loaded, loader(), verbose=False)[0] == figures
    assert torch.equal(logits(loaded.model), expected)
    fresh = LoraCausalLM(folder, LoraSettings(r=3, target_modules=TARGETS[kind]), adamw)
    assert trainer().test(fresh, loader(), ckpt_path=tmp_path / "a.ckpt", verbose=False)[0] == figures


def test_a_loaded_module_exports_the_same_files(gpt2: str, trainer: Make, tmp_path: Path) -> None:
    module, run = trained("gpt2", FLoRA, gpt2, trainer)
    run.save_checkpoint(tmp_path / "a.ckpt")
    loaded = LoraCausalLM.load_from_checkpoint(tmp_path / "a.ckpt", map_location="cpu", weights_only=True)
    folders = [export_adapter(m, tmp_path / name) for m, name in ((module, "one"), (loaded, "two"))]
    first, second = ((folder / "adapter_model.safetensors").read_bytes() for folder in folders)
    assert first == second
