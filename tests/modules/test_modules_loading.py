"""Loading: what the network looks like afterwards, and every way in which a model can be wrong."""

import logging
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch.optim import AdamW
from torch.optim.lr_scheduler import CyclicLR
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BitsAndBytesConfig,
    DistilBertConfig,
    DistilBertModel,
    LlamaForCausalLM,
)

from pl_fed.errors import FederatedConfigError
from pl_fed.modules import LoraCausalLM, LoraModule, LoraSequenceClassifier, LoraSettings, ModelLoading, loading
from tests.modules.tiny_models import WORDS, llama_config, save, tokenizer


def loaded(module: LoraModule) -> Any:
    module.configure_model()
    return module


def trainable(module: LoraModule) -> set[str]:
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def test_only_the_adapter_is_trained(llama: str) -> None:
    module = loaded(LoraCausalLM(llama, LoraSettings(r=2)))
    assert isinstance(module.model, PeftModel)
    assert len(trainable(module)) == 8  # A and B of q_proj and v_proj in two blocks
    assert all(".lora_" in name for name in trainable(module))
    assert all(m.training for m in module.modules())


def test_loading_twice_is_once(llama: str) -> None:
    module = loaded(LoraCausalLM(llama))
    network = module.model
    module.configure_model()
    assert module.model is network


def test_tokenizer_comes_before_the_model(gpt2: str) -> None:
    module = LoraCausalLM(gpt2)
    assert module.tokenizer.pad_token == "<eos>"  # the folder's has none
    assert module.tokenizer is module.tokenizer and not hasattr(module, "model")
    module.configure_model()
    assert module.model.config.pad_token_id == module.tokenizer.eos_token_id == 1


def test_conv1d_is_known(gpt2: str) -> None:
    """GPT-2 stores weights as (in, out); peft warns unless it is told, and warnings are errors here."""
    module = loaded(LoraCausalLM(gpt2, LoraSettings(r=2)))
    shapes = {tuple(p.shape) for name, p in module.named_parameters() if ".lora_" in name}
    assert shapes == {(2, 8), (24, 2)}


def test_all_linear_where_peft_has_no_default(llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(loading.KNOWN_TARGETS, "llama")
    module = loaded(LoraCausalLM(llama, LoraSettings(r=2)))
    assert len(trainable(module)) == 2 * 7 * 2  # seven linear layers a block


def test_a_regular_expression_selects_layers(llama: str) -> None:
    module = loaded(LoraCausalLM(llama, LoraSettings(r=2, target_modules=r".*\.1\.self_attn\.q_proj")))
    assert len(trainable(module)) == 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_adapter_and_head_stay_float32(bert: str, dtype: str) -> None:
    module = loaded(LoraSequenceClassifier(bert, loading=ModelLoading(dtype=dtype), num_labels=3))
    kinds = {name: p.dtype for name, p in module.named_parameters()}
    assert {kinds[name] for name in trainable(module)} == {torch.float32}
    assert kinds["model.base_model.model.bert.pooler.dense.weight"] == getattr(torch, dtype)
    logits = module({"input_ids": torch.tensor([[3, 4]]), "attention_mask": torch.ones(1, 2).long()}).logits
    assert logits.dtype == torch.float32


def test_narrow_precision_keeps_the_adapter(bert: str) -> None:
    """Lightning's `bf16-true` casts the whole module; every bit of the adapter must survive."""
    module = loaded(LoraSequenceClassifier(bert, num_labels=3))
    before = {name: p.detach().clone() for name, p in module.named_parameters() if name in trainable(module)}
    module.to(dtype=torch.bfloat16)
    after = dict(module.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert after["model.base_model.model.bert.pooler.dense.weight"].dtype == torch.bfloat16
    module({"input_ids": torch.tensor([[3, 4]])}).logits.sum().backward()
    assert {p.dtype for p in module.to(torch.float64).parameters()} == {torch.float64}


def test_gradient_checkpointing_gives_the_same_gradients(llama: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        module = loaded(LoraCausalLM(llama, loading=ModelLoading(gradient_checkpointing=checkpointing)))
        assert module.model.get_base_model().model.gradient_checkpointing is checkpointing
        ids = torch.tensor([[3, 4, 5, 6]])
        module.model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        gradients.append([p.grad for p in module.parameters() if p.requires_grad])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


@pytest.mark.parametrize("quantization", [{"load_in_4bit": True}, {"quant_method": "hqq", "bits": 4}])
def test_quantisation_is_passed_through(
    llama: str, quantization: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No quantiser runs here, so the call is caught at transformers' door."""
    seen: dict[str, Any] = {}

    class Stop(Exception):
        pass

    def from_pretrained(folder: str, **options: Any) -> None:
        seen.update(options)
        raise Stop

    monkeypatch.setattr(LoraCausalLM.auto_class, "from_pretrained", from_pretrained)
    options = ModelLoading("bfloat16", quantization, "eager", True, revision="v1")
    with pytest.raises(Stop):
        LoraCausalLM(llama, loading=options).configure_model()
    expected = quantization if "quant_method" in quantization else BitsAndBytesConfig(**quantization).to_dict()
    found = seen["quantization_config"]
    assert (found if isinstance(found, dict) else found.to_dict()) == expected
    assert seen["device_map"] == {"": torch.device("cpu")}
    assert seen["dtype"] is torch.bfloat16 and seen["attn_implementation"] == "eager"
    assert seen["trust_remote_code"] is True and seen["revision"] == "v1"


def test_head_is_new_and_trained(
    bert: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    module = loaded(LoraSequenceClassifier(bert, num_labels=3))
    heads = {name for name in trainable(module) if ".lora_" not in name}
    assert heads == {f"model.base_model.model.classifier.modules_to_save.default.{kind}" for kind in ("weight", "bias")}
    captured = capfd.readouterr()
    assert "classifier" not in caplog.text + captured.err + captured.out  # transformers would report it as missing
    assert logging.getLogger("transformers.modeling_utils").level == logging.NOTSET


def test_whatever_is_new_is_trained(tmp_path: Path) -> None:
    """DistilBERT's classifier has a second layer, which peft alone would leave random and frozen."""
    config = DistilBertConfig(vocab_size=32, dim=8, n_layers=1, n_heads=2, hidden_dim=8)
    folder = save(DistilBertModel(config), tmp_path)
    module = loaded(LoraSequenceClassifier(folder, LoraSettings(r=1, target_modules=["q_lin"]), num_labels=3))
    assert {name.split(".")[3] for name in trainable(module)} == {"distilbert", "pre_classifier", "classifier"}


def test_a_head_of_another_size_is_replaced(bert: str, tmp_path: Path) -> None:
    config = BertConfig.from_pretrained(bert, num_labels=7)
    module = loaded(LoraSequenceClassifier(save(BertForSequenceClassification(config), tmp_path), num_labels=3))
    assert module({"input_ids": torch.tensor([[3, 4]])}).logits.shape == (1, 3)


# What can be wrong.


def test_unknown_model() -> None:
    """One sentence, which says once what was expected and what came."""
    for load in (lambda: LoraCausalLM("no/such-model").tokenizer, LoraCausalLM("no/such-model").configure_model):
        with pytest.raises(FederatedConfigError, match="^Expected `model` to be a local folder") as caught:
            load()
        message = str(caught.value)
        assert message.lower().count("expected") == message.count("no/such-model") == 1, message


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    expected = f"^Expected `model` to be the folder or hub id of a tokenizer but got '{tmp_path}' [(].*[)]: choose"
    with pytest.raises(FederatedConfigError, match=expected) as caught:
        _ = LoraCausalLM(str(tmp_path)).tokenizer
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(FederatedConfigError, match="Expected `model` to be the folder or hub id of a model for"):
        LoraCausalLM(str(tmp_path)).configure_model()


def test_a_model_of_another_kind(bert: str) -> None:
    with pytest.raises(FederatedConfigError, match=r"weights of BertLMHeadModel but .* lacks \d+ of them.*cls"):
        LoraCausalLM(bert).configure_model()


def test_a_classifier_that_lacks_blocks(bert: str, tmp_path: Path) -> None:
    shutil.copytree(bert, tmp_path, dirs_exist_ok=True)
    BertConfig.from_pretrained(bert, num_hidden_layers=3).save_pretrained(tmp_path)
    with pytest.raises(FederatedConfigError, match=r"lacks 16 of them .*layer\.2"):
        LoraSequenceClassifier(str(tmp_path), num_labels=3).configure_model()


def test_an_adapter_folder(llama: str, tmp_path: Path) -> None:
    tokenizer().save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(FederatedConfigError, match="it is an adapter; give its base model"):
        LoraCausalLM(str(tmp_path)).configure_model()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"target_modules": ["q_proj", "c_attn"]},
            r"`lora.target_modules` to match .* \['c_attn'\] match nothing: .*k_proj",
        ),
        (
            {"target_modules": "q_proj"},
            r"`lora.target_modules` to match .* \['q_proj'\]",
        ),  # an expression matches in full
        ({"modules_to_save": ["head"]}, r"`lora.modules_to_save` to match .* \['head'\]"),
        ({"target_modules": "(q_proj"}, r"but '\(q_proj' is none \(missing \), .*\): correct it"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "it matches the embedding 'model.embed_tokens': take it out"),
        ({"target_modules": ["input_layernorm"]}, "PEFT accepts but it says: Target module .*RMSNorm.* not supported"),
        ({"init_lora_weights": "magic"}, "PEFT accepts but it says: .*magic"),
        ({"extra": {"layers_to_transform": [0], "target_parameters": 3}}, "PEFT accepts but it says"),
    ],
)
def test_targets_that_do_not_fit(llama: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(FederatedConfigError, match=message):
        LoraCausalLM(llama, LoraSettings(**settings)).configure_model()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"optimizer": partial(AdamW, lr=-1.0)},
            "of `optimizer` .* but it says: Invalid learning rate: -1",
        ),
        ({"lr_scheduler": partial(CyclicLR, base_lr=0.1, max_lr=1.0, mode="up")}, "`lr_scheduler` .* mode is invalid"),
    ],
)
def test_settings_that_torch_refuses(llama: str, settings: dict[str, Any], message: str) -> None:
    module = loaded(LoraCausalLM(llama, **settings))
    with pytest.raises(FederatedConfigError, match=message):
        module.configure_optimizers()


def test_a_tokenizer_of_another_model(llama: str, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path, dirs_exist_ok=True)
    tokenizer([*WORDS, "one too many"]).save_pretrained(tmp_path)
    with pytest.raises(FederatedConfigError, match="at most the model's 32 embeddings but got one of 33 tokens"):
        LoraCausalLM(str(tmp_path)).configure_model()


def test_a_tokenizer_without_end(tmp_path: Path) -> None:
    folder = save(LlamaForCausalLM(llama_config(num_hidden_layers=1)), tmp_path, cls_token="w3")
    with pytest.raises(FederatedConfigError, match="a padding or end-of-sequence token but it has neither"):
        _ = LoraCausalLM(folder).tokenizer
