"""The best factors of a rank: product, order, and slots that the product does not fill."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pl_fed.rules.factors import principal_factors
from pl_fed.rules.fedsvd import refactored
from pl_fed.updates import AdapterState, LayerState
from tests.helpers.peers import close, normal


@given(
    seed=st.integers(0, 1000),
    d_out=st.integers(1, 9),
    d_in=st.integers(1, 9),
    stack=st.integers(1, 12),
    rank=st.integers(1, 9),
)
@settings(max_examples=80, deadline=None)
def test_best_factors_of_any_shape(seed: int, d_out: int, d_in: int, stack: int, rank: int) -> None:
    """Up to the layer's width A has orthonormal rows; the product is the truncated SVD."""
    generator = torch.Generator().manual_seed(seed)
    a, b, spare = normal(generator, stack, d_in), normal(generator, d_out, stack), normal(generator, rank, d_in)
    new_a, new_b = principal_factors(a, b, rank, spare)
    assert new_a.shape == (rank, d_in) and new_b.shape == (d_out, rank)
    u, s, vh = np.linalg.svd((b @ a).numpy(), full_matrices=False)
    close(new_b @ new_a, (u[:, :rank] * s[:rank]) @ vh[:rank], 1e-11)
    wide = min(rank, d_in)
    close(new_a[:wide] @ new_a[:wide].T, np.eye(wide), 1e-11)
    assert (new_a.norm(dim=1) > 1e-6).all(), "a dead slot"
    close(new_b.norm(dim=0)[: len(s)], s[:rank], 1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("found", [0, 1, 2])
def test_spare_slots_can_learn(found: int, dtype: torch.dtype) -> None:
    """A product of rank below the slots: B is zero there, and A has new orthonormal rows out of the spare ones' span.

    The spare rows are the A that the product was made with, so that those which are used up must not come again.
    """
    generator = torch.Generator().manual_seed(found)
    a, b = normal(generator, 4, 9).to(dtype), normal(generator, 5, 4).to(dtype)
    b[:, found:] = 0.0
    new_a, new_b = principal_factors(a, b, 4, a)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    close(new_b @ new_a, b @ a, tolerance)
    close(new_a @ new_a.T, np.eye(4), tolerance)
    assert new_b.abs().max(dim=0).values.gt(1e-3).tolist() == [i < found for i in range(4)]
    outside = new_a - new_a @ torch.linalg.pinv(a) @ a
    close(outside, np.zeros((4, 9)), tolerance)


def test_spare_rows_that_depend_on_each_other() -> None:
    """Twice the same direction, and one that the product has: the slots are orthonormal all the same."""
    a = torch.eye(1, 6, dtype=torch.float64)
    spare = torch.zeros(3, 6, dtype=torch.float64)
    spare[0, 0] = spare[1, 1] = spare[2, 1] = 1.0
    new_a, new_b = principal_factors(a, torch.ones(4, 1, dtype=torch.float64), 3, spare)
    close(new_a @ new_a.T, np.eye(3))
    close(new_a[:2].abs(), np.eye(2, 6))
    assert not new_b[:, 1:].any()


def test_weak_directions_are_kept_in_float32() -> None:
    """A direction 20 000 times weaker than the strongest is part of the model; only rounding is lost."""
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(normal(generator, 600, 2)).Q for _ in range(2))
    a, b = v.T.float().contiguous(), (u * torch.tensor([1.0, 5e-5], dtype=torch.float64)).float()
    new_a, new_b = principal_factors(a, b, 2, a)
    assert (new_b.double() @ new_a.double() - b.double() @ a.double()).norm() < 2e-7
    torch.testing.assert_close(new_b.norm(dim=0), torch.tensor([1.0, 5e-5]), rtol=1e-3, atol=0)


def test_a_zero_product_stays_as_it_is() -> None:
    generator = torch.Generator().manual_seed(0)
    server = AdapterState({"x": LayerState(normal(generator, 3, 5), torch.zeros(4, 3, dtype=torch.float64))})
    assert torch.equal(refactored(server).layers["x"].a, server.layers["x"].a)


def test_a_rotation_twice_is_once() -> None:
    """Refactoring what is refactored changes nothing but rounding and signs, which no decomposition settles."""
    generator = torch.Generator().manual_seed(0)
    server = AdapterState({"x": LayerState(normal(generator, 3, 5), normal(generator, 4, 3))})
    once = refactored(server)
    twice = refactored(once)
    signs = torch.sign((once.layers["x"].a * twice.layers["x"].a).sum(1))
    close(signs[:, None] * twice.layers["x"].a, once.layers["x"].a)
