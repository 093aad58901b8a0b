"""The exported folder gives peft's users the same logits, bit by bit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaForCausalLM,
)

from pl_fed.adapters import Adapter
from pl_fed.errors import FederatedConfigError
from pl_fed.modules import LoraCausalLM, LoraModule, LoraSequenceClassifier, LoraSettings, ModelLoading, export_adapter
from tests.modules.tiny_models import collate_language, language_rows, llama_config, save

SETTINGS = {
    "llama": {"target_modules": "all-linear"},
    "gpt2": {"target_modules": ["c_attn", "c_proj"]},  # Conv1D, not square
    "bert": {},
}


@pytest.fixture
def make(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Return a maker of loaded modules whose adapter does something, on two active slots of three."""

    def make(kind: str, diagonal: torch.Tensor | None = None, **settings: Any) -> Any:
        folder, lora = request.getfixturevalue(kind), LoraSettings(r=3, **{**SETTINGS[kind], **settings})
        module: LoraModule = (
            LoraSequenceClassifier(folder, lora, num_labels=3) if kind == "bert" else LoraCausalLM(folder, lora)
        )
        module.configure_model()
        adapter = Adapter(module)
        with torch.no_grad():
            for layer in adapter.layers.values():
                layer.b.normal_()
                layer.a[1] = layer.b[:, 1] = 0.0
            for value in adapter.dense.values():
                value.normal_()
            if diagonal is not None:
                adapter.add_diagonals()
                for live in adapter.diagonals().values():
                    live.copy_(diagonal)
        return module.eval()

    return make


def inputs() -> dict[str, torch.Tensor]:
    batch = collate_language(language_rows(5))
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(**inputs()).logits


def base_model(module: Any) -> Any:
    if isinstance(module, LoraSequenceClassifier):
        return AutoModelForSequenceClassification.from_pretrained(module.model_name, num_labels=3)
    return AutoModelForCausalLM.from_pretrained(module.model_name)


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize("diagonal", [None, (0.5, 0.0, -4.0)], ids=["plain", "diagonal"])
def test_peft_gives_the_same_logits(make: Any, tmp_path: Path, kind: str, diagonal: tuple[float, ...] | None) -> None:
    """With powers of two as the diagonal, folding rounds nothing."""
    module = make(kind, None if diagonal is None else torch.tensor(diagonal))
    folder = export_adapter(module, tmp_path / "adapter")
    expected = logits(module.model)
    assert torch.equal(logits(PeftModel.from_pretrained(base_model(module), folder)), expected)
    assert not torch.equal(logits(base_model(module)), expected)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_any_diagonal_is_folded_closely(make: Any, tmp_path: Path, kind: str) -> None:
    module = make(kind, torch.tensor([0.3, 0.0, -1.7]))
    found = logits(PeftModel.from_pretrained(base_model(module), export_adapter(module, tmp_path / "adapter")))
    torch.testing.assert_close(found, logits(module.model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", SETTINGS)
def test_merged_weights_are_close(make: Any, tmp_path: Path, kind: str) -> None:
    """The live model stays as it was; the merged one needs no peft."""
    module = make(kind, torch.tensor([0.3, 0.0, -1.7]))
    before = logits(module.model)
    folder = export_adapter(module, tmp_path / "adapter", merge=True)
    assert torch.equal(logits(module.model), before) and len(Adapter(module).diagonals()) > 0
    auto_class = type(module).auto_class
    merged = auto_class.from_pretrained(folder / "merged")
    assert (folder / "merged" / "model.safetensors").is_file()
    torch.testing.assert_close(logits(merged), before, rtol=1e-4, atol=1e-5)
    assert len(AutoTokenizer.from_pretrained(folder / "merged")) == 32


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True` and a tied layer is part of the adapter")
def test_merged_weights_of_a_tied_head(tmp_path: Path) -> None:
    """The head shares its weight with the embedding, which the adapter does not change."""
    folder = save(LlamaForCausalLM(llama_config(tie_word_embeddings=True)), tmp_path / "base")
    module = LoraCausalLM(folder, LoraSettings(r=3, target_modules=["q_proj", "lm_head"]))
    module.configure_model()
    for layer in Adapter(module).layers.values():
        nn.init.normal_(layer.b)
    before = logits(module.model)
    merged = AutoModelForCausalLM.from_pretrained(export_adapter(module, tmp_path / "adapter", merge=True) / "merged")
    torch.testing.assert_close(logits(merged), before, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits(module.model), before, rtol=0, atol=0)
    assert not merged.config.tie_word_embeddings


def test_a_narrow_base_model(make: Any, llama: str, tmp_path: Path) -> None:
    module = LoraCausalLM(llama, LoraSettings(r=2), loading=ModelLoading(dtype="bfloat16"))
    module.configure_model()
    folder = export_adapter(module, tmp_path / "adapter")
    assert {value.dtype for value in load_file(folder / "adapter_model.safetensors").values()} == {torch.float32}
    base = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.bfloat16)
    assert torch.equal(logits(PeftModel.from_pretrained(base, folder)), logits(module.model))


def test_what_is_in_the_folder(make: Any, tmp_path: Path) -> None:
    module = make("llama", torch.ones(3), target_modules=["v_proj", "q_proj"])
    module.model_name = "org/name"  # as in the YAML, although this machine resolved it to a folder
    module.model.peft_config["default"].base_model_name_or_path = "org/name"
    folder = export_adapter(module, str(tmp_path / "new" / "adapter"))
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/name" and config["inference_mode"] is True
    assert config["target_modules"] == ["q_proj", "v_proj"] and (config["r"], config["lora_alpha"]) == (3, 6)
    tensors = load_file(folder / "adapter_model.safetensors")
    assert len(tensors) == 8 and not any("diagonal" in name or "default" in name for name in tensors)
    for name, value in tensors.items():  # inactive slots stay zero
        assert not (value[1] if "lora_A" in name else value[:, 1]).any()
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nbase_model: org/name\nlibrary_name: peft\n") and "| rank, alpha | 3, 6 |" in card
    assert 'AutoModelForCausalLM.from_pretrained("org/name")' in card
    assert AutoTokenizer.from_pretrained(folder).decode([7]) == "w7"
    assert sorted(path.name for path in folder.parent.iterdir()) == ["adapter"]
    assert module.model.peft_config["default"].inference_mode is False  # training may go on


def test_the_card_of_a_classifier(make: Any, tmp_path: Path) -> None:
    card = (export_adapter(make("bert"), tmp_path / "adapter") / "README.md").read_text()
    assert ", num_labels=3)" in card and "\nbase_model:" not in card  # a folder is no address


def test_a_folder_in_use(make: Any, tmp_path: Path) -> None:
    module, folder = make("gpt2"), tmp_path / "adapter"
    folder.mkdir()
    export_adapter(module, folder)  # empty is fine
    (folder / "notes.txt").write_text("")
    with pytest.raises(
        FederatedConfigError, match="`folder` to be new or empty but '.*adapter' is not: choose another"
    ):
        export_adapter(module, folder)
    export_adapter(module, folder, overwrite=True)
    assert not (folder / "notes.txt").exists() and (folder / "adapter_config.json").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(FederatedConfigError, match="`folder` to be new or empty"):
        export_adapter(module, tmp_path / "file", overwrite=True)


def test_a_failed_export_leaves_the_old_one(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, folder = make("gpt2"), tmp_path / "adapter"
    export_adapter(module, folder)

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("pl_fed.modules.export._write_merged", fail)
    with pytest.raises(OSError, match="disk full"):
        export_adapter(module, folder, merge=True, overwrite=True)
    assert (folder / "adapter_config.json").exists() and not (folder / "merged").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.filterwarnings("ignore:.*lora_bias=True:UserWarning")
def test_what_peft_cannot_merge(llama: str, tmp_path: Path) -> None:
    """Llama's layers have no bias, which a bias of LoRA could be added to."""
    module = LoraCausalLM(llama, lora=LoraSettings(r=2, extra={"lora_bias": True}))
    module.configure_model()
    with pytest.raises(FederatedConfigError, match="can be merged but it cannot: .*bias.*: export without `merge`"):
        export_adapter(module, tmp_path / "adapter", merge=True)
    assert not (tmp_path / "adapter").exists()
    export_adapter(module, tmp_path / "adapter")


def test_nothing_to_export(llama: str, make: Any, tmp_path: Path) -> None:
    with pytest.raises(FederatedConfigError, match="a module with a loaded model: call `configure_model"):
        export_adapter(LoraCausalLM(llama), tmp_path / "adapter")
    module = make("llama")
    module.loading = ModelLoading(quantization={"load_in_4bit": True})
    with pytest.raises(
        FederatedConfigError, match="an unquantised base model to merge into but `loading.quantization`"
    ):
        export_adapter(module, tmp_path / "adapter", merge=True)
