"""Federated runs of every peer under Lightning equal a plain-torch loop with dense matrices, in float64.

Float64 shows that the two compute the same: they differ by rounding only, since the loop adds to the base weights what
pl_fed keeps beside them, and decomposes dense matrices where pl_fed decomposes thin factors.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import default_collate

from pl_fed.clients import ClientsConfig
from pl_fed.corrections import FedProx, Scaffold
from pl_fed.loaders import RoundLoader
from pl_fed.rounds import CohortConfig, LocalTraining, derive_seed
from pl_fed.rules import FedExLoRA, FedIT, FedSALoRA, FedSVD, FFALoRA, FlexLoRA, FLoRA, HetLoRA, LoRAFAIR, RoLoRA
from tests.helpers.peer_reference import Peers
from tests.helpers.reference import Visit
from tests.helpers.tiny import SHARDS, TinyLM, Tokens, eval_loader, make_strategy, make_trainer
from tests.helpers.tiny_regression import Points, TinyRegression

SEED, RANKS = 5, [4, 3, 2, 1]
RULES: dict[str, tuple[Any, dict[str, float]]] = {
    "fedit": (FedIT, {}),
    "ffa": (FFALoRA, {}),
    "flora": (FLoRA, {}),
    "hetlora": (lambda: HetLoRA(gamma=0.6, penalty=0.4), {"gamma": 0.6, "penalty": 0.4}),
    "flex": (FlexLoRA, {}),
    "fedsa": (FedSALoRA, {}),
    "rolora": (RoLoRA, {}),
    "fedex": (FedExLoRA, {}),
    "fair": (lambda: LoRAFAIR(0.3), {"lambda": 0.3}),
    "fedsvd": (FedSVD, {}),
}


class PlainLM(TinyLM):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.2)


class PlainRegression(TinyRegression):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.2)


MODELS = {"Conv1D": (TinyLM, Tokens), "Linear": (TinyRegression, Points)}


def visits(loader: RoundLoader, data: Any, num_rounds: int) -> list[list[Visit]]:
    """Lay the schedule open as tensors."""
    return [
        [
            Visit(
                client.client_id,
                RANKS[client.client_id],
                len(SHARDS[client.client_id]),
                [default_collate([data[i] for i in batch]) for batch in client.batches],
                derive_seed(SEED, round_idx, client.client_id, 0x5E),
            )
            for client in loader.plan.schedule(round_idx).work
        ]
        for round_idx in range(num_rounds)
    ]


def redraw(shapes: list[torch.Size]) -> Any:
    def draw(round_idx: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(derive_seed(SEED, round_idx, 0x5D))
        uniform = [torch.rand(shape, generator=generator, dtype=torch.float64) for shape in shapes]
        return [(2 * u - 1) / math.sqrt(u.shape[1]) for u in uniform]

    return draw


def lora_layers(module: Any) -> dict[str, Any]:
    return {n: m for n, m in module.named_modules() if "default" in getattr(m, "lora_A", {})}


@torch.no_grad()
def effective(module: Any) -> dict[str, Tensor]:
    """The whole weight of every adapted layer, (d_out, d_in)."""
    found = {}
    for name, layer in lora_layers(module).items():
        base = layer.get_base_layer().weight
        product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        merged = getattr(layer, "lora_merged", torch.zeros_like(product))
        found[name] = (base.T if layer.fan_in_fan_out else base) + layer.scaling["default"] * (product + merged)
    return found


def compare(
    method: str,
    rule: Any,
    options: dict[str, float],
    kind: str,
    optimizer: str,
    clients: int | None,
    make: Any = None,
    **strategy: Any,
) -> tuple[Any, Peers]:
    """Run both and compare the whole weights, and the factors where they are unique."""
    make, data = make or MODELS[kind][0], MODELS[kind][1]()
    module, reference = (make(optimizer).double() for _ in range(2))
    start = effective(module)
    federation = make_strategy(
        rule, clients=ClientsConfig(ranks=RANKS), cohort=CohortConfig(clients=clients), seed=SEED, **strategy
    )
    loader = RoundLoader(data, SHARDS, batch_size=3)
    trainer = make_trainer(federation, max_epochs=4)
    trainer.fit(module, loader, *([eval_loader()] if kind == "Conv1D" else []))

    shapes = [layer.lora_A["default"].weight.shape for layer in lora_layers(reference).values()]
    draw = redraw(shapes) if method == "flora" else None
    make_optimizer = {
        "plain": lambda parameters: torch.optim.SGD(parameters, lr=0.2),
        "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=2e-2),
        "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.5 if kind == "Conv1D" else 0.2, momentum=0.9),
    }[optimizer]
    loop = Peers(reference.model, reference.loss, method, make_optimizer, draw, options)
    loop.run(visits(loader, data, 4))

    found, expected = effective(module), effective(reference)
    for name, value in expected.items():
        assert (found[name] - value).abs().max() < 1e-10, f"{name}: {(found[name] - value).abs().max()}"
        assert method == "fedsa" or (value - start[name]).abs().max() > 1e-4, "nothing was trained"
    if method not in ("flex", "fedsvd"):
        for mine, other in zip(lora_layers(module).values(), lora_layers(reference).values(), strict=True):
            a, b = mine.lora_A["default"].weight, mine.lora_B["default"].weight
            assert (a - other.lora_A["default"].weight).abs().max() < 1e-10
            assert (b - other.lora_B["default"].weight).abs().max() < 1e-10
    return trainer.strategy.loop.federation, loop  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", list(MODELS))
@pytest.mark.parametrize("method", list(RULES))
def test_run_equals_plain_torch(method: str, kind: str) -> None:
    """Four rounds of unequal ranks with dropout; rotating rules with everybody, so that no slot stays empty."""
    rule, options = RULES[method]
    everybody = method in ("flex", "fedsvd")
    optimizer = "adamw" if kind == "Linear" else "sgd"
    federation, loop = compare(method, rule(), options, kind, optimizer, None if everybody else 3)
    for client_id, own in loop.own.items():
        kept = federation.states[client_id].kept
        assert len(kept) == len(own) == 2
        for b, expected in zip(kept.values(), own, strict=True):
            assert (b - expected).abs().max() < 1e-10 and b.abs().max() > 1e-3
    if method == "hetlora":
        held = {k: [len(ids) for ids in state.slots.values()] for k, state in federation.states.items()}
        assert held == loop.ranks and any(r < RANKS[k] for k, layers in held.items() for r in layers), "none pruned"


@pytest.mark.parametrize("kind", list(MODELS))
@pytest.mark.parametrize("method", ["fedit", "ffa", "fedsa", "flora", "fedsvd"])
def test_fedprox_equals_plain_torch(method: str, kind: str) -> None:
    """mu (w - w_server) in the gradients; with FLoRA from the new factors, with FedSVD in the new basis."""
    rule, local = RULES[method][0](), LocalTraining(epochs=1, correction=FedProx(mu=0.3))
    compare(method, rule, {"mu": 0.3}, kind, "sgd", None if method == "fedsvd" else 3, local=local)


@pytest.mark.parametrize("kind", list(MODELS))
@pytest.mark.parametrize("method", ["fedit", "ffa", "fedex"])
def test_scaffold_equals_option_two(method: str, kind: str) -> None:
    """Plain SGD: the mean gradient of a client is ``c_k - c + (x - y) / (K lr)``; three of four clients a round."""
    rule, local = RULES[method][0](), LocalTraining(epochs=1, correction=Scaffold())
    make = {"Conv1D": PlainLM, "Linear": PlainRegression}[kind]
    federation, loop = compare(method, rule, {"scaffold": 0.2}, kind, "plain", 3, local=local, make=make)
    sides = "b" if method == "ffa" else "ab"
    server = [value for layer in federation.controls.server.layers.values() for value in (layer.a, layer.b)]
    for i, (found, expected) in enumerate(zip(server, loop.variate, strict=True)):
        assert (found - expected).abs().max() < 1e-10
        assert bool(expected.any()) == ("ab"[i % 2] in sides)
    assert len(loop.variates) >= 3
    for client_id, variates in loop.variates.items():
        own = federation.states[client_id].control
        assert len(own) == 2 * len(sides)
        for i, name in enumerate(lora_layers_of(federation)):
            for side, expected in zip("ab", variates[2 * i : 2 * i + 2], strict=True):
                if side in sides:
                    assert (own[f"{name}/{side}"] - expected).abs().max() < 1e-10


def lora_layers_of(federation: Any) -> list[str]:
    return list(federation.server.layers)
