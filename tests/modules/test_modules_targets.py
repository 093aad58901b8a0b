"""`all-linear`, where PEFT knows no default for a family, leaves out what is trained in full."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    MPNetConfig,
    MPNetForSequenceClassification,
    PreTrainedModel,
)

from pl_fed.modules import LoraCausalLM, LoraSequenceClassifier, LoraSettings, export_adapter
from tests.modules.tiny_models import VOCAB, save

IDS = {"input_ids": torch.tensor([[3, 4, 5]]), "attention_mask": torch.ones(1, 3).long()}


def distilbert() -> PreTrainedModel:
    config = DistilBertConfig(vocab_size=VOCAB, dim=8, n_layers=1, n_heads=2, hidden_dim=12, num_labels=3)
    return DistilBertForSequenceClassification(config)


def mpnet() -> PreTrainedModel:
    sizes: Any = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    return MPNetForSequenceClassification(MPNetConfig(vocab_size=VOCAB, num_labels=3, pad_token_id=0, **sizes))


@pytest.mark.parametrize(
    ("make", "head"),
    [(distilbert, {"pre_classifier", "classifier"}), (mpnet, {"classifier"})],
    ids=["distilbert", "mpnet"],
)
def test_the_head_of_a_trained_classifier(make: Any, head: set[str], tmp_path: Path) -> None:
    """A block has four linear layers of attention and two more; all get an adapter, and the head none."""
    torch.manual_seed(0)
    folder = save(make(), tmp_path / "model")
    module = LoraSequenceClassifier(folder, LoraSettings(r=2), num_labels=3)
    module.configure_model()
    trained = {name.removeprefix("model.base_model.model.") for name, p in module.named_parameters() if p.requires_grad}
    adapted = {name for name in trained if ".lora_" in name}
    assert len(adapted) == 2 * (4 + 2) and {name.split(".")[0] for name in trained - adapted} == head
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                parameter.normal_() if ".lora_" in name else parameter.add_(1.0)
        expected = module.eval()(IDS).logits
        base = AutoModelForSequenceClassification.from_pretrained(folder)
        exported = PeftModel.from_pretrained(base, export_adapter(module, tmp_path / "adapter")).eval()
        torch.testing.assert_close(exported(**IDS).logits, expected)


def test_modules_to_save(llama: str) -> None:
    module = LoraCausalLM(llama, LoraSettings(r=2, target_modules="all-linear", modules_to_save=["mlp"]))
    module.configure_model()
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    adapted = {name for name in trained if ".lora_" in name}
    assert len(adapted) == 2 * 4 * 2 and all(".self_attn." in name for name in adapted)  # two blocks, A and B
    assert len(trained - adapted) == 2 * 3 and all(".mlp.modules_to_save." in name for name in trained - adapted)
