"""HetLoRA on the client: the penalty's gradient, and when the tail is dropped."""

import math

import pytest
import torch
from torch import Tensor, nn

from pl_fed.errors import FederatedConfigError
from pl_fed.rules import HetLoRA
from pl_fed.rules.base import TrainedLayer
from pl_fed.updates import AdapterState, LayerState
from tests.helpers.peers import normal


def layer(rank: int, held: int) -> TrainedLayer:
    generator = torch.Generator().manual_seed(0)
    a, b = nn.Parameter(normal(generator, rank, 9)), nn.Parameter(normal(generator, 5, rank))
    a.grad, b.grad = normal(generator, rank, 9), normal(generator, 5, rank)
    return TrainedLayer(a, b, None, torch.arange(held))


@pytest.mark.parametrize(
    ("gamma", "held", "tail"), [(0.5, 6, 3), (0.99, 4, 1), (0.29, 100, 71), (1.0, 6, 0), (0.5, 1, 0)]
)
def test_the_penalty_has_the_gradient_of_its_formula(gamma: float, held: int, tail: int) -> None:
    """The tail begins after ceil-free gamma r slots: .99 * 4 = 3.96 leaves 3, .29 * 100 = 29 leaves 29."""
    live = layer(max(held, 8), held)
    before = live.a.grad.clone(), live.b.grad.clone()
    HetLoRA(gamma=gamma, penalty=0.7).add_penalty({"x": live})
    a, b = (value.detach().clone().requires_grad_() for value in (live.a, live.b))
    if tail:
        term = 0.7 * b[:, held - tail : held].square().sum().sqrt() * a[held - tail : held].square().sum().sqrt()
        term.backward()
    else:
        a.grad, b.grad = torch.zeros_like(a), torch.zeros_like(b)
    torch.testing.assert_close(live.a.grad - before[0], a.grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(live.b.grad - before[1], b.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("zero", ["a", "b", "both"])
def test_the_penalty_is_finite_at_zero(zero: str) -> None:
    """B starts at zero; the norm's subgradient there is taken as zero, so the tail's A is not pushed and B is free."""
    live = layer(4, 4)
    before = live.a.grad.clone(), live.b.grad.clone()
    with torch.no_grad():
        for side in "ab" if zero == "both" else zero:
            getattr(live, side).zero_()
    HetLoRA(gamma=0.5).add_penalty({"x": live})
    assert torch.equal(live.a.grad, before[0]) or zero == "a"
    assert torch.equal(live.b.grad, before[1]) or zero == "b"
    assert live.a.grad.isfinite().all() and live.b.grad.isfinite().all()


def state(tail_a: float, tail_b: float) -> AdapterState:
    """Four slots; those of the tail (of half the slots) have these numbers in one place."""
    a, b = torch.ones(4, 3, dtype=torch.float64), torch.ones(2, 4, dtype=torch.float64)
    a[2:], b[:, 2:] = 0.0, 0.0
    a[3, 1], b[0, 3] = tail_a, tail_b
    return AdapterState({"x": LayerState(a, b)})


@pytest.mark.parametrize(
    ("after", "kept"),
    [((2.0, 3.0), 4), ((2.0, 2.9), 2), ((1.0, 5.9), 2), ((1.0, 6.1), 4), ((9.0, 0.0), 2)],
)
def test_the_tail_goes_when_the_product_of_its_norms_shrank(after: tuple[float, float], kept: int) -> None:
    """It was broadcast with norms 2 and 3, so 6."""
    slots = {"x": torch.arange(4)}
    found = HetLoRA(gamma=0.5).prune(state(2.0, 3.0), state(*after), slots)
    assert found["x"].tolist() == list(range(kept))
    assert HetLoRA(gamma=0.5, self_pruning=False).prune(state(2.0, 3.0), state(*after), slots)["x"].tolist() == [
        0,
        1,
        2,
        3,
    ]


def test_pruning_has_a_floor() -> None:
    slots = {"x": torch.arange(4)}
    found = HetLoRA(gamma=0.25, min_rank=3).prune(state(2.0, 3.0), state(1.0, 1.0), slots)
    assert found["x"].tolist() == [0, 1, 2]
    one = {"x": torch.arange(1)}
    assert HetLoRA(gamma=0.25).prune(state(2.0, 3.0), state(1.0, 1.0), one)["x"].tolist() == [0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gamma": 0.0}, "`gamma` of HetLoRA in .0, 1. but got 0.0"),
        ({"gamma": 1.1}, "`gamma` of HetLoRA"),
        ({"penalty": -1.0}, "`penalty` >= 0 and `min_rank` >= 1 of HetLoRA but got -1.0 and 1"),
        ({"min_rank": 0}, "`min_rank` >= 1 of HetLoRA"),
    ],
)
def test_arguments(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(FederatedConfigError, match=message):
        HetLoRA(**arguments)  # type: ignore[arg-type]


def test_the_penalty_pulls_the_tail_down() -> None:
    """Gradient descent on it alone: the norms' product falls and the head does not move."""
    live: TrainedLayer = layer(4, 4)
    optimizer = torch.optim.SGD([live.a, live.b], lr=0.1)
    start: list[Tensor] = [live.a.detach().clone(), live.b.detach().clone()]
    for _ in range(50):
        optimizer.zero_grad()
        live.a.grad, live.b.grad = torch.zeros_like(live.a), torch.zeros_like(live.b)
        HetLoRA(gamma=0.5, penalty=1.0).add_penalty({"x": live})
        optimizer.step()
    assert torch.equal(live.a[:2], start[0][:2]) and torch.equal(live.b[:, :2], start[1][:, :2])
    pairs = (start, (live.a.detach(), live.b.detach()))
    norms = [math.prod(float(v.norm()) for v in (a[2:], b[:, 2:])) for a, b in pairs]
    assert norms[1] < 0.1 * norms[0]
