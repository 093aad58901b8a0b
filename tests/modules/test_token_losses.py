"""Losses in chunks of tokens equal those from all logits at once, gradients included."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pl_fed.modules import LoraCausalLM, LoraSettings
from pl_fed.modules.token_losses import frozen_head, token_losses
from tests.modules.tiny_models import collate_language, language_rows

MODELS = ("llama", "gpt2")


def loaded(folder: str, **lora: Any) -> Any:
    module = LoraCausalLM(folder, LoraSettings(r=2, **lora))
    module.configure_model()
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module.double()


def step(module: Any, logits_at_once: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    module.logits_at_once = logits_at_once
    module.zero_grad()
    torch.manual_seed(3)  # dropout
    loss = module.training_step(collate_language(language_rows(5)), 0)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("logits_at_once", [1, 7, 64], ids=lambda n: f"{n} at once")
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_against_torch(logits_at_once: int, bias: bool) -> None:
    head = nn.Linear(3, 5, bias=bias, dtype=torch.float64).requires_grad_(False)
    hidden = torch.randn(9, 3, dtype=torch.float64, requires_grad=True)
    targets, weights = torch.randint(0, 5, (9,)), torch.rand(9, dtype=torch.float64)
    found = token_losses(hidden, head, targets, logits_at_once)
    expected = F.cross_entropy(head(hidden), targets, reduction="none")
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    slopes = [torch.autograd.grad((losses * weights).sum(), hidden)[0] for losses in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-13, atol=1e-13)


def test_no_tokens() -> None:
    hidden = torch.zeros(0, 3, requires_grad=True)
    losses = token_losses(hidden, nn.Linear(3, 5).requires_grad_(False), torch.zeros(0, dtype=torch.int64), 8)
    losses.sum().backward()
    assert losses.shape == (0,) and hidden.grad is not None


@pytest.mark.parametrize("model", MODELS)
def test_training_step(model: str, request: pytest.FixtureRequest) -> None:
    module = loaded(request.getfixturevalue(model))
    assert frozen_head(module.model.get_base_model()) is not None
    expected, slopes = step(module, 2**23)
    found, own = step(module, 40)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert own.keys() == slopes.keys() and own
    for name, slope in slopes.items():
        torch.testing.assert_close(own[name], slope, rtol=1e-10, atol=1e-12, msg=name)


def test_logits_are_never_there_at_once(llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 40 numbers in chunks, none is wider; the head itself is not called."""
    module, seen = loaded(llama), []
    plain = F.linear

    def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        out = plain(x, weight, bias)
        if weight is module.model.get_output_embeddings().weight:
            seen.append(out.numel())
        return out

    monkeypatch.setattr(F, "linear", linear)
    step(module, 40)
    assert len(seen) > 1 and max(seen) <= 40


def test_under_autocast(llama: str) -> None:
    """bfloat16 in the head as without chunks, float32 in the cross-entropy."""
    module = loaded(llama).float()
    with torch.autocast("cpu", torch.bfloat16):
        expected, slopes = step(module, 2**23)
        found, own = step(module, 40)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    for name, slope in slopes.items():
        torch.testing.assert_close(own[name], slope, rtol=0.1, atol=0.02 * float(slope.abs().max()), msg=name)


@pytest.mark.parametrize("reason", ["adapter", "trained", "unknown"])
def test_other_heads_keep_their_logits(reason: str, llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head with an adapter or in training, and models that may scale their logits."""
    module = loaded(llama, target_modules=["q_proj", "lm_head"] if reason == "adapter" else ["q_proj"])
    model = module.model.get_base_model()
    if reason == "trained":
        model.get_output_embeddings().requires_grad_(True)
    if reason == "unknown":
        monkeypatch.setattr("pl_fed.modules.token_losses.PLAIN_LOGITS", ("OtherForCausalLM",))
    assert frozen_head(model) is None
    expected, _ = step(module, 2**23)
    found, _ = step(module, 40)
    assert torch.equal(found, expected)
