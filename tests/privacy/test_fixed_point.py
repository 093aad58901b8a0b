"""Fixed point: cases by hand, the bound of the error, and sums that can never wrap around unseen."""

import inspect
import math
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pl_fed.errors import FederatedConfigError
from pl_fed.privacy.fixed_point import (
    CorruptSumError,
    FixedPoint,
    check_ring,
    choose_ring,
    decode_mean,
    encode,
    mean_error_bound,
)
from pl_fed.privacy.ring import Ring


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_by_hand() -> None:
    """4 bits and clip 7: levels -7 .. 7, step 1. 2.4 -> 2, -9 -> -7 (clipped), times the weight 3; then the weight."""
    config = FixedPoint(bits=4, clip=7.0, stochastic=False)
    encoded = encode(torch.tensor([2.4, -9.0, 7.0]), 3, config)
    assert encoded.values.tolist() == [6, -21, 21, 3]
    assert (encoded.num_clipped, encoded.clipped_share) == (1, pytest.approx(1 / 3))
    other = encode(torch.tensor([0.0, 1.0, -1.0]), 1, config)
    mean, weight = decode_mean(encoded.values + other.values, config, 2, 3)
    assert weight == 4
    assert mean.tolist() == [1.5, -5.0, 5.0]  # (6 + 0) / 4, (-21 + 1) / 4, (21 - 1) / 4


@pytest.mark.parametrize("bits", [2, 12, 22, 32])
@pytest.mark.parametrize("stochastic", [True, False])
def test_the_largest_value_never_leaves_the_grid(bits: int, stochastic: bool) -> None:
    """clip / step + u can be rounded up to the next level; it is put back and does not count as clipped."""
    config = FixedPoint(bits, 0.3, stochastic)
    value = torch.full((2000,), 0.3, dtype=torch.float64) * torch.tensor([1.0, -1.0]).repeat(1000)
    encoded = encode(value, 1, config, generator())
    assert encoded.num_clipped == 0
    assert int(encoded.values[:-1].abs().max()) <= config.max_level


def test_stochastic_rounding_has_mean_zero_and_is_reproducible() -> None:
    """0.3 of a step becomes 1 with probability 0.3; 40 000 draws have a standard error of 0.0023."""
    config = FixedPoint(bits=4, clip=7.0)
    vector = torch.full((40_000,), 0.3)
    values = encode(vector, 1, config, generator(1)).values
    assert abs(float(values[:-1].double().mean()) - 0.3) < 4 * 0.0023
    assert torch.equal(values, encode(vector, 1, config, generator(1)).values)
    assert not torch.equal(values, encode(vector, 1, config, generator(2)).values)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    bits=st.integers(2, 32),
    clip=st.floats(1e-3, 1e3),
    weights=st.lists(st.integers(1, 5000), min_size=1, max_size=12),
    stochastic=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_error_of_the_mean_is_bounded(
    seed: int, bits: int, clip: float, weights: list[int], stochastic: bool, dtype: torch.dtype
) -> None:
    """Against the exact weighted mean of the clipped vectors, in a ring that was chosen for the cohort."""
    config, draw = FixedPoint(bits, clip, stochastic), generator(seed)
    ring = choose_ring(config, len(weights), max(weights))
    vectors = [torch.randn(33, generator=draw, dtype=torch.float64) * clip * 0.6 for _ in weights]
    total = torch.zeros(34, dtype=torch.int64)
    for vector, weight in zip(vectors, weights, strict=True):
        total = ring.wrap(total + encode(vector, weight, config, draw).values)
    mean, weight = decode_mean(total, config, len(weights), max(weights), dtype)
    clipped = [w * v.clamp(-clip, clip) for v, w in zip(vectors, weights, strict=True)]
    exact = torch.stack(clipped).sum(0) / sum(weights)
    assert weight == sum(weights)
    assert float((mean.double() - exact).abs().max()) <= mean_error_bound(config, dtype)


def test_bound_is_reached_within_a_factor_of_two() -> None:
    """It is no empty promise: half a step off comes out of nearest rounding, nearly a step out of stochastic."""
    for stochastic in (True, False):
        config = FixedPoint(8, 1.0, stochastic)
        vector = torch.linspace(-1, 1, 20_000, dtype=torch.float64)
        mean, _ = decode_mean(encode(vector, 1, config, generator()).values, config, 1, 1, torch.float64)
        assert float((mean - vector).abs().max()) > mean_error_bound(config, torch.float64) / 2


def extreme(value: float, weight: int, config: FixedPoint) -> Tensor:
    return encode(torch.tensor([value, -value]), weight, config, generator()).values


@pytest.mark.parametrize(("num_clients", "bits"), [(1023, 22), (1024, 22), (3, 30), (5, 30)])
def test_full_cohorts_of_extreme_values_do_not_wrap(num_clients: int, bits: int) -> None:
    """The largest sums there can be: in the ring that is chosen they are read back exactly."""
    config = FixedPoint(bits, 8.0)
    ring = choose_ring(config, num_clients, 1)
    total = ring.wrap(extreme(100.0, 1, config) * num_clients)
    mean, weight = decode_mean(total, config, num_clients, 1)
    assert weight == num_clients
    assert mean.tolist() == [8.0, -8.0]


def test_smallest_ring_is_chosen() -> None:
    """22 bits have 2^21 - 1 levels: 1024 clients reach 2^31 - 1024, which still fits in 32 bits; 1025 do not."""
    config = FixedPoint(22)
    assert choose_ring(config, 1024, 1) == Ring(32)
    assert choose_ring(config, 1025, 1) == Ring(64)
    assert choose_ring(config, 4, 257) == Ring(64)
    check_ring(Ring(64), FixedPoint(32), 2**16, 2**15)
    with pytest.raises(
        FederatedConfigError, match=r"Expected sums below 2\^63 but 65536 clients of weight up to 65537"
    ):
        choose_ring(FixedPoint(32), 2**16, 2**16 + 1)
    with pytest.raises(FederatedConfigError, match=r"Expected sums below 2\^31 but 1025 clients .* larger ring"):
        check_ring(Ring(32), config, 1025, 1)
    with pytest.raises(FederatedConfigError, match="`num_clients` and `max_weight` to be at least 1"):
        check_ring(Ring(32), config, 0, 1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite values but got NaN or infinity"):
        encode(torch.tensor([1.0, bad]), 1, FixedPoint(), generator())


def test_settings_and_weights_are_checked() -> None:
    for bits in (1, 33):
        with pytest.raises(FederatedConfigError, match=f"whole `bits` from 2 to 32 but got {bits}"):
            FixedPoint(bits=bits)
    with pytest.raises(FederatedConfigError, match="but got 22.5"):  # without the tests' type checker
        inspect.unwrap(FixedPoint.__post_init__)(types.SimpleNamespace(bits=22.5))  # type: ignore[arg-type]
    for clip in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(FederatedConfigError, match="`clip` to be positive and finite"):
            FixedPoint(clip=clip)
    with pytest.raises(ValueError, match="`generator` for stochastic rounding"):
        encode(torch.zeros(1), 1, FixedPoint())
    for weight in (0, -1, 4398048608258):
        with pytest.raises(FederatedConfigError, match=f"whole `weight` from 1 to 4398048608257 .* but got {weight}"):
            encode(torch.zeros(1), weight, FixedPoint(), generator())
    with pytest.raises(FederatedConfigError, match="whole `weight` from 1 .* but got 1.5"):
        inspect.unwrap(encode)(torch.zeros(1), 1.5, FixedPoint(), generator())


def test_sums_that_nobody_can_have_sent_are_refused() -> None:
    config = FixedPoint(4, 7.0, stochastic=False)
    with pytest.raises(CorruptSumError, match="a sum of weights of 2 to 6 but got 7"):
        decode_mean(torch.tensor([0, 7]), config, 2, 3)
    with pytest.raises(CorruptSumError, match="a sum of weights of 2 to 6 but got 1"):
        decode_mean(torch.tensor([0, 1]), config, 2, 3)
    for value in (15, -15, -(2**63)):
        with pytest.raises(CorruptSumError, match="within ±14 but 1 of 2 lie beyond"):
            decode_mean(torch.tensor([0, value, 2]), config, 2, 3)
