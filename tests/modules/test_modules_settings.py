"""The settings' checks, and the modules in YAML."""

from typing import Any

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

from pl_fed.errors import FederatedConfigError
from pl_fed.modules import (
    GenerationSettings,
    LoraCausalLM,
    LoraModule,
    LoraSequenceClassifier,
    LoraSettings,
    ModelLoading,
)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 0}, r"rank `lora.r` to be at least 1 but got 0"),
        ({"r": -4}, r"rank `lora.r` to be at least 1 but got -4"),
        ({"lora_alpha": 0}, r"`lora.lora_alpha` to be at least 1 or null but got 0"),
        ({"lora_dropout": 1.0}, r"`lora.lora_dropout` in \[0, 1\) but got 1.0"),
        ({"target_modules": []}, "`lora.target_modules` to name layers but got none"),
        ({"extra": {"r": 3}}, r"without what is set elsewhere but got \['r'\]"),
        ({"extra": {"task_type": "CAUSAL_LM"}}, r"without what is set elsewhere but got \['task_type'\]"),
        ({"extra": {"use_rs_lora": True}}, r"arguments of `peft.LoraConfig` but got \['use_rs_lora'\]"),
    ],
)
def test_lora_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(FederatedConfigError, match=message):
        LoraSettings(**settings)


@pytest.mark.parametrize("name", ["max_new_tokens", "num_examples"])
def test_generation_settings_are_checked(name: str) -> None:
    with pytest.raises(FederatedConfigError, match=f"`generation.{name}` to be at least 1"):
        GenerationSettings(**{name: 0})


def test_scale_is_two_unless_said() -> None:
    assert [LoraSettings(r=r).alpha / r for r in (1, 8, 64)] == [2.0, 2.0, 2.0]
    assert LoraSettings(r=8, lora_alpha=4).alpha == 4


CAUSAL = """
class_path: pl_fed.modules.LoraCausalLM
init_args:
  model: org/name
  lora: {r: 4, target_modules: [q_proj, v_proj], lora_dropout: 0.05, extra: {use_rslora: true}}
  optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.5}}
  lr_scheduler: {class_path: torch.optim.lr_scheduler.StepLR, init_args: {step_size: 3}}
  schedule_interval: epoch
  loading: {dtype: bfloat16, quantization: {load_in_4bit: true}}
  generation: {max_new_tokens: 7}
"""
CLASSIFIER = """
class_path: pl_fed.modules.LoraSequenceClassifier
init_args:
  model: org/name
  lora: {target_modules: all-linear, init_lora_weights: gaussian}
  num_labels: 5
"""


def parse(text: str) -> tuple[Any, str]:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LoraModule, "module")
    config = parser.parse_object({"module": yaml.safe_load(text)})
    return parser.instantiate(config).module, parser.dump(config)


def test_causal_lm_from_yaml() -> None:
    module, dumped = parse(CAUSAL)
    assert isinstance(module, LoraCausalLM)
    assert module.lora == LoraSettings(4, None, ["q_proj", "v_proj"], 0.05, extra={"use_rslora": True})
    assert module.loading == ModelLoading("bfloat16", {"load_in_4bit": True})
    assert module.generation == GenerationSettings(7)
    optimizer = module.optimizer([torch.nn.Parameter(torch.zeros(1))])
    assert isinstance(optimizer, torch.optim.SGD) and optimizer.defaults["lr"] == 0.5
    assert module.lr_scheduler is not None and module.schedule_interval == "epoch"
    assert parse(yaml.safe_dump(yaml.safe_load(dumped)["module"]))[1] == dumped


def test_classifier_from_yaml() -> None:
    module, dumped = parse(CLASSIFIER)
    assert isinstance(module, LoraSequenceClassifier)
    assert module.lora == LoraSettings(target_modules="all-linear", init_lora_weights="gaussian")
    assert module.num_labels == 5
    assert parse(yaml.safe_dump(yaml.safe_load(dumped)["module"]))[1] == dumped


def test_yaml_refuses_a_misspelt_setting() -> None:
    with pytest.raises(Exception, match="does not accept option 'rank'"):
        parse(CLASSIFIER.replace("target_modules: all-linear", "rank: 4"))


def test_hyperparameters_are_plain(llama: str) -> None:
    module = LoraCausalLM(llama, LoraSettings(r=2), generation=GenerationSettings())
    found = dict(module.hparams_initial)
    assert found["lora"]["r"] == 2 and found["loading"]["dtype"] == "float32" and found["generation"]["sample"] is False
    assert "optimizer" not in found
    yaml.safe_dump(found)


def test_one_label_is_refused() -> None:
    with pytest.raises(FederatedConfigError, match="`num_labels` to be at least 2 or null but got 1"):
        LoraSequenceClassifier("org/name", num_labels=1)
