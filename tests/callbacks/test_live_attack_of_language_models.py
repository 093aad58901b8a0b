"""The live attack on a federated LoRA classifier: where it reads everything, and where it says that it cannot."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pl_fed.callbacks import _live_attack
from pl_fed.modules import LoraSequenceClassifier
from pl_fed.rules import AFLoRA
from pl_fed.secure_round import SecureAggregation
from tests.callbacks.test_live_attack import attacked, lora, pytestmark

__all__ = ["pytestmark"]  # the same warnings
UNBOUND = SecureAggregation("pairwise", binding=False)


def test_gpt2(gpt2: str, tmp_path: Path) -> None:
    """Its last norm is `ln_f` and its head has no bias: rank d, not d + 1."""
    (report,) = lora(gpt2, tmp_path, AFLoRA(), secure_aggregation=UNBOUND).reports
    assert report.exact_match == 1.0 and report.rank == 4 and report.margin < 0.1


def test_llama_has_rmsnorm(llama: str, tmp_path: Path) -> None:
    """One sentence that names the norm; the rounds go on."""
    with pytest.warns(UserWarning, match=r"does not apply: .* with a bias but got only .*RMSNorm"):
        attack = lora(llama, tmp_path, AFLoRA(), secure_aggregation=UNBOUND)
    assert not attack.reports and "no proof of safety" in (tmp_path / "label_inference_live.md").read_text()


class FrozenHead(LoraSequenceClassifier):
    """The head is the server's; only the low-rank layers are trained."""

    def configure_model(self) -> None:
        super().configure_model()
        for name, parameter in self.named_parameters():
            if "classifier" in name:
                parameter.requires_grad_(False)


def test_a_frozen_head(bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.callbacks.test_live_attack.LoraSequenceClassifier", FrozenHead)
    with pytest.warns(UserWarning, match=r"does not apply: .*classifier.*` is frozen"):
        attack = lora(bert, tmp_path, AFLoRA(), secure_aggregation=UNBOUND)
    assert not attack.reports


@pytest.mark.parametrize("backend", ["ideal", "pairwise"])
def test_poisoning_all_but_the_observation_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: Any
) -> None:
    """When the sum is read, every tensor of every module is NaN, no module runs, and nobody has an update."""
    (before,) = attacked(tmp_path / "a", secure_aggregation=SecureAggregation(backend, binding=False)).reports
    solve, calls = _live_attack.recover, []

    def recover(observation: Any) -> Any:
        calls.append(observation)
        assert set(vars(observation)) == {"aggregate", "models", "round"}
        modules = [part for part in gc.get_objects() if issubclass(type(part), nn.Module)]
        kept = [(t, t.detach().clone()) for part in modules for t in (*part.parameters(), *part.buffers())]
        with monkeypatch.context() as poisoned, torch.no_grad():
            poisoned.setattr(nn.Module, "__call__", refuse)
            for tensor, _ in kept:
                if tensor.is_floating_point():
                    tensor.fill_(float("nan"))
            found = solve(observation)
            for tensor, value in kept:
                tensor.copy_(value)
        return found

    monkeypatch.setattr(_live_attack, "recover", recover)
    attack = attacked(tmp_path / "b", secure_aggregation=SecureAggregation(backend, binding=False))
    assert len(calls) == 1 and attack.reports == [before] and before.exact_match == 1.0


def refuse(*_: Any, **__: Any) -> None:
    raise AssertionError("the attack ran a module")
