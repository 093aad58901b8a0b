"""Every rule on one layer of 1 x 2 with one slot and three clients, small enough to be done by hand.

    server   A = (1, 0)   B = 2            product (2, 0)
    client 0 A = (2, 0)   B = 4   n = 1    product (8, 0)
    client 1 A = (1, 1)   B = 4   n = 1    product (4, 4)
    client 2 A = (0, 2)   B = 1   n = 2    product (0, 2)

With p = (1/4, 1/4, 1/2): mean A = (.5 + .25, .25 + 1) = (.75, 1.25); mean B = 1 + 1 + .5 = 2.5;
mean product = (2 + 1, 1 + 1) = (3, 2). The product of the means is (1.875, 3.125).
"""

import math

import pytest
import torch
from torch import Tensor

from pl_fed.rules import (
    AFLoRA,
    FedExLoRA,
    FedIT,
    FedSALoRA,
    FedSVD,
    FFALoRA,
    FlexLoRA,
    FLoRA,
    HetLoRA,
    LocalOnly,
    LoRAFAIR,
    Median,
    RoLoRA,
    Rule,
    TrimmedMean,
)
from pl_fed.updates import AdapterState, LayerSlots, LayerState, Update

A, B = [[2.0, 0.0], [1.0, 1.0], [0.0, 2.0]], [4.0, 4.0, 1.0]


def tensor(*rows: object) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def server_and_updates(sides: str) -> tuple[AdapterState, list[Update]]:
    server = AdapterState({"x": LayerState(tensor([1.0, 0.0]), tensor([2.0]))}, {}, {"x": tensor([0.0, 0.0])})
    updates = []
    for k, n in enumerate((1, 1, 2)):
        a, b = tensor(A[k]) - server.layers["x"].a, tensor([B[k]]) - server.layers["x"].b
        part = LayerSlots(torch.tensor([0]), a if "a" in sides else None, b if "b" in sides else None)
        updates.append(Update(k, n, {"x": part}))
    return server, updates


def after(rule: Rule, sides: str, renew: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    server, updates = server_and_updates(sides)
    new = rule.aggregate(server, updates)
    new = rule.renew(new, torch.Generator().manual_seed(0)) if renew else new
    return new.layers["x"].a, new.layers["x"].b, new.merged["x"]


def check(found: tuple[Tensor, Tensor, Tensor], a: Tensor, b: Tensor, merged: Tensor | None = None) -> None:
    merged = tensor([0.0, 0.0]) if merged is None else merged
    for value, expected in zip(found, (a, b, merged), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-14, atol=1e-14)


MEAN_A, MEAN_B = tensor([0.75, 1.25]), tensor([2.5])
OLD_A, OLD_B = tensor([1.0, 0.0]), tensor([2.0])


def test_fedit() -> None:
    check(after(FedIT(), "ab"), MEAN_A, MEAN_B)


def test_b_only() -> None:
    check(after(FFALoRA(), "b"), OLD_A, MEAN_B)
    check(after(AFLoRA(), "b"), OLD_A, MEAN_B)


def test_rolora_in_turn() -> None:
    """Round 0 sends B, round 1 A."""
    assert [sorted(RoLoRA().sides(i)) for i in range(4)] == [["b"], ["a"], ["b"], ["a"]]
    check(after(RoLoRA(), "b"), OLD_A, MEAN_B)
    check(after(RoLoRA(), "a"), MEAN_A, OLD_B)


def test_fedsa_and_local() -> None:
    check(after(FedSALoRA(), "a"), MEAN_A, OLD_B)
    check(after(LocalOnly(), ""), OLD_A, OLD_B)


def test_fedex() -> None:
    """The residual is (3, 2) - (1.875, 3.125) = (1.125, -1.125)."""
    check(after(FedExLoRA(), "ab"), MEAN_A, MEAN_B, tensor([1.125, -1.125]))


def test_flora() -> None:
    """(3, 2) goes into the base model, B starts at zero and A within 1 / sqrt(2)."""
    a, b, merged = after(FLoRA(), "ab")
    check((merged, b, merged), tensor([3.0, 2.0]), tensor([0.0]), tensor([3.0, 2.0]))
    assert not torch.equal(a, OLD_A) and a.abs().max() <= 1 / math.sqrt(2)


def test_flex() -> None:
    """(3, 2) has one singular value sqrt(13) and the direction (3, 2) / sqrt(13), of either sign."""
    a, b, merged = after(FlexLoRA(), "ab")
    sign = torch.sign(b)
    check((a * sign, b * sign, merged), tensor([3.0, 2.0]) / math.sqrt(13), tensor([math.sqrt(13)]))


def test_fair() -> None:
    """With lambda 1: |A|^2 = .5625 + 1.5625 = 2.125; the residual (1.125, -1.125) times A is -.5625;
    dB = -.5625 / 3.125 = -.18."""
    check(after(LoRAFAIR(regularization=1.0), "ab"), MEAN_A, tensor([2.32]))


@pytest.mark.parametrize("rule", [FedSVD(), AFLoRA(refactor=True)])
def test_fedsvd(rule: Rule) -> None:
    """B A = (2.5, 0): singular value 2.5, direction (1, 0), of either sign."""
    a, b, merged = after(rule, "b")
    sign = torch.sign(b)
    check((a * sign, b * sign, merged), tensor([1.0, 0.0]), tensor([2.5]))


def test_robust_means() -> None:
    """B moves by 2, 2, -1. The median is 2; so is the mean without one client of three at each end."""
    check(after(FFALoRA(mean=Median()), "b"), OLD_A, tensor([4.0]))
    check(after(FFALoRA(mean=TrimmedMean(share=0.34)), "b"), OLD_A, tensor([4.0]))
    check(
        after(FFALoRA(mean=TrimmedMean(share=0.3)), "b"), OLD_A, tensor([3.0])
    )  # .9 clients are none: (2 + 2 - 1) / 3


def test_hetlora() -> None:
    """Two slots; client 0 holds both, the others the first, and all examples but client 0's are counted the same.

    First slots: A = (3, 4), (0, 3), (1, 0) and B = 1, 1, 2: norms of the products 5, 3, 2, weights .5, .3, .2.
    Client 0's second slot: A = (2, 2), B = 0, so that its product stays. Zero-padded sums:
    A = (1.5 + .2, 2 + .9) = (1.7, 2.9) and .5 (2, 2) = (1, 1); B = .5 + .3 + .4 = 1.2 and 0.
    """
    zero = LayerState(tensor([0.0, 0.0], [0.0, 0.0]), tensor([0.0, 0.0]))
    both, first = torch.tensor([0, 1]), torch.tensor([0])
    updates = [
        Update(0, 1, {"x": LayerSlots(both, tensor([3.0, 4.0], [2.0, 2.0]), tensor([1.0, 0.0]))}),
        Update(1, 7, {"x": LayerSlots(first, tensor([0.0, 3.0]), tensor([1.0]))}),
        Update(2, 7, {"x": LayerSlots(first, tensor([1.0, 0.0]), tensor([2.0]))}),
    ]
    new = HetLoRA().aggregate(AdapterState({"x": zero}), updates).layers["x"]
    torch.testing.assert_close(new.a, tensor([1.7, 2.9], [1.0, 1.0]), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(new.b, tensor([1.2, 0.0]), rtol=1e-14, atol=1e-14)
