"""Formats on the wire: errors and bytes against hand-computed ones, and what a link does to a message."""

import inspect
import math

import pytest
import torch
from torch import Tensor

from pl_fed.codecs import CastCodec, Int8Codec, make_codec, payload_bytes
from pl_fed.errors import FederatedConfigError
from pl_fed.exchange import fault_of
from pl_fed.updates import AdapterState, Broadcast, LayerSlots, LayerState, Update
from pl_fed.wire import Codecs, Wire


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def through(name: str, value: Tensor, rank_dim: int | None, seed: int = 0) -> tuple[Tensor, int]:
    """Return what arrives, and the bytes that were sent."""
    codec = make_codec(name)  # type: ignore[arg-type]
    payload = codec.encode(value, rank_dim, generator(seed))
    return codec.decode(payload, value.dtype), payload_bytes(payload)


def steps_of(value: Tensor, rank_dim: int) -> Tensor:
    """Return one quantisation step of int8 for each component, max |x| / 127, ready to be broadcast."""
    return value.abs().amax(1 - rank_dim, keepdim=True) / 127


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_float32_sends_the_tensor_as_it_is(dtype: torch.dtype) -> None:
    """Bit for bit, in the adapter's own format, denormals and signed zeros included."""
    value = torch.cat([torch.randn(20), torch.tensor([0.0, -0.0, 1e-40, 3e38])]).to(dtype).reshape(4, 6)
    arrived, num_bytes = through("float32", value, 0)
    assert arrived.dtype == dtype and torch.equal(arrived.view(torch.uint8), value.view(torch.uint8))
    assert num_bytes == 24 * value.element_size()


def test_bfloat16_halves_the_bytes_within_its_precision() -> None:
    """A significand of 8 bits rounds to nearest: at most 2^-9 of the next power of two, 2^-8 of the value."""
    value = torch.randn(8, 768) * torch.logspace(-6, 6, 8)[:, None]
    arrived, num_bytes = through("bfloat16", value, 0)
    assert num_bytes == 2 * value.numel()
    assert ((arrived - value).abs() <= 2.0**-8 * value.abs()).all()
    # the measured figure: 0.17 %
    assert 0.0015 < float((arrived - value).norm() / value.norm()) < 0.0019
    assert arrived.dtype == torch.float32


def test_int8_by_hand() -> None:
    """Rows (127, 63.5, 0) and (-254, 2, 1): scales 1 and 2, steps (127, 63.5, 0) and (-127, 1, 0.5).

    Whole steps arrive exactly, 63.5 as 63 or 64, half a step of 2 as 0 or 2.
    """
    value = torch.tensor([[127.0, 63.5, 0.0], [-254.0, 2.0, 1.0]])
    seen = set()
    for seed in range(40):
        codec = Int8Codec()
        numbers, scale = codec.encode(value, 0, generator(seed))
        assert numbers.dtype == torch.int8 and scale.tolist() == [[1.0], [2.0]]
        (first, second) = codec.decode((numbers, scale), torch.float32).tolist()
        assert (first[0], first[2], second[0], second[1]) == (127.0, 0.0, -254.0, 2.0)
        seen.add((first[1], second[2]))
    assert seen == {(63.0, 0.0), (63.0, 2.0), (64.0, 0.0), (64.0, 2.0)}


@pytest.mark.parametrize("rank_dim", [0, 1])
def test_int8_is_unbiased_and_off_by_less_than_a_step(rank_dim: int) -> None:
    """One draw is off by less than a step; its spread is at most half a step, so that of the mean of n draws is
    at most half a step / sqrt(n), and five such spreads bound all 60 means."""
    num_draws = 3000
    value = torch.randn(6, 10, dtype=torch.float64)
    value[:, 0] *= 100.0
    value[0] *= 1e-3
    step = steps_of(value, rank_dim)
    draws = generator(1)
    codec = Int8Codec()
    arrived = torch.stack(
        [codec.decode(codec.encode(value, rank_dim, draws), value.dtype) for _ in range(num_draws)]
    )  # (draws, 6, 10)
    assert ((arrived - value).abs() < step * (1 + 1e-6)).all()
    assert ((arrived.mean(0) - value).abs() <= 5 * 0.5 * step / math.sqrt(num_draws)).all()
    assert (arrived.std(0) > 0).any(), "rounding must be random"


def test_int8_has_one_scale_for_each_row_of_a_and_column_of_b() -> None:
    """A component that is 10^4 times larger costs the others no precision; with one scale they would vanish."""
    loud = torch.tensor([1e4, 1.0, 1.0])
    a, b = torch.randn(3, 50) * loud[:, None], torch.randn(70, 3) * loud
    for value, rank_dim, shape in ((a, 0, (3, 1)), (b, 1, (1, 3))):
        numbers, scale = Int8Codec().encode(value, rank_dim, generator())
        assert scale.shape == shape
        arrived = Int8Codec().decode((numbers, scale), value.dtype)
        assert ((arrived - value).abs() <= steps_of(value, rank_dim) * 1.0001).all()
        assert payload_bytes((numbers, scale)) == value.numel() + 4 * 3
    flat = Int8Codec().decode(Int8Codec().encode(a, None, generator()), a.dtype)
    assert float((flat - a)[1:].abs().max()) > 1.0


def test_int8_keeps_zero_components_exactly_zero() -> None:
    """A slot that was not trained must not move; nor does a zero inside a component."""
    value = torch.randn(4, 30)
    value[1], value[3] = 0.0, 0.0
    value[0, 7] = 0.0
    for seed in range(20):
        arrived, _ = through("int8", value, 0, seed)
        assert not arrived[1].any() and not arrived[3].any() and arrived[0, 7] == 0.0
    columns, _ = through("int8", value.T.contiguous(), 1)
    assert not columns[:, 1].any()
    assert not through("int8", torch.zeros(5), None)[0].any()


def test_ratio_and_error_on_tensors_of_a_real_adapter() -> None:
    """GPT-2's c_attn, rank 8: A is 8 x 768 and uniform, an update of B is 2304 x 8 and about normal.

    Bytes: A 6144 + 32, B 18432 + 32 against four times 24576, so 3.99 x. A step is c / 127 for values up to c, and the
    mean square of stochastic rounding is 1/6 of a step: for uniform values (deviation c / sqrt 3) 0.56 % of the norm;
    for 2304 normal values, c is about 3.5 deviations, so 3.5 / 127 / sqrt 6 = 1.1 %.
    """
    a = torch.empty(8, 768).uniform_(-0.036, 0.036)
    b = 1e-3 * torch.randn(2304, 8)
    sent = 0
    for value, rank_dim, expected in ((a, 0, 0.0056), (b, 1, 0.0112)):
        arrived, num_bytes = through("int8", value, rank_dim)
        assert float((arrived - value).norm() / value.norm()) == pytest.approx(expected, rel=0.1)
        sent += num_bytes
    assert sent == 6144 + 32 + 18432 + 32
    assert 3.9 < 4 * 24576 / sent < 4.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["float32", "bfloat16", "int8"])
def test_a_diverged_update_is_still_recognised_on_arrival(name: str, bad: float) -> None:
    """A codec that made a finite number of it would let a broken client into the aggregate."""
    server = AdapterState({"x": LayerState(torch.zeros(2, 5), torch.zeros(4, 2))}, {"head": torch.zeros(3)})
    for where in ("b", "dense"):
        b, dense = torch.randn(4, 2), torch.randn(3)
        (b if where == "b" else dense).view(-1)[1] = bad
        update = Update(0, 1, {"x": LayerSlots(torch.tensor([0, 1]), None, b)}, {"head": dense})
        wire = Wire(name, generator(), sends_slots=True, exact_a=False)  # type: ignore[arg-type]
        assert fault_of(wire.update(update), server) == "not_finite"


def test_finite_updates_are_accepted_when_their_sum_is_not() -> None:
    """Four times 3e38 is beyond float32, and so is the sum over tensors; an infinity beside its opposite is none."""
    server = AdapterState({}, {"x": torch.zeros(4), "y": torch.zeros(4)})
    large = torch.full((4,), 3e38)
    assert not large.sum().isfinite()
    assert fault_of(Update(0, 1, {}, {"x": large, "y": large}), server) == ""
    assert fault_of(Update(0, 1, {}, {"x": large / 4, "y": large / 4}), server) == ""
    opposite = torch.tensor([float("inf"), float("-inf"), 0.0, 0.0])
    assert fault_of(Update(0, 1, {}, {"x": large, "y": opposite}), server) == "not_finite"
    assert fault_of(Update(0, 1, {}, {}), server) == ""


def test_edge_shapes_of_int8() -> None:
    """No slots, one number, and values so small that the float32 scale is zero."""
    for shape, rank_dim in (((7, 0), 1), ((0, 7), 0)):
        empty, num_bytes = through("int8", torch.zeros(shape), rank_dim)
        assert empty.shape == shape and num_bytes == 0
    assert through("int8", torch.zeros(0), None)[1] == 4
    scalar, num_bytes = through("int8", torch.tensor(-3.0), None)
    assert scalar.item() == pytest.approx(-3.0) and scalar.shape == () and num_bytes == 5
    tiny, _ = through("int8", torch.full((1, 3), 1e-60, dtype=torch.float64), 0)
    assert not tiny.any()


def test_the_generator_alone_decides_the_rounding() -> None:
    value = torch.randn(4, 40)
    first, again = through("int8", value, 0, seed=3), through("int8", value, 0, seed=3)
    torch.rand(5)
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], through("int8", value, 0, seed=4)[0])


def test_unknown_formats_are_refused() -> None:
    """The type checker of the tests is taken off: users do not have it."""
    for make in (lambda: inspect.unwrap(make_codec)("int4"), lambda: Codecs.__post_init__(_Stub())):
        with pytest.raises(FederatedConfigError, match="Expected a codec out of .*int8.* but got `int4`"):
            make()
    assert isinstance(make_codec("bfloat16"), CastCodec)


class _Stub:
    up, down = "float32", "int4"


# ---------------------------------------------------------------- a link


def message() -> tuple[Broadcast, Update]:
    """Three slots of a layer of 10 inputs and 7 outputs, two of one of 4 and 6 without A; a head of 5 numbers."""
    layers = {
        "x": LayerSlots(torch.tensor([0, 2, 5]), torch.randn(3, 10), torch.randn(7, 3)),
        "y": LayerSlots(torch.tensor([1, 4]), None, torch.randn(6, 2)),
    }
    return Broadcast(layers, {"head": torch.randn(5)}), Update(8, 17, layers, {"head": torch.randn(5)})


# A of x 30 numbers in 3 components; B of x 21 in 3, of y 12 in 2; the head 5 in one
SIZES = {"float32": 4 * 68, "bfloat16": 2 * 68, "int8": 68 + 4 * (3 + 3 + 2 + 1)}


@pytest.mark.parametrize("sends_slots", [False, True])
@pytest.mark.parametrize("name", list(SIZES))
def test_bytes_of_a_link_are_those_of_its_payloads(name: str, sends_slots: bool) -> None:
    """Each number and scale, and two bytes for each of the five slot ids where they travel."""
    broadcast, update = message()
    for send in ("broadcast", "update"):
        wire = Wire(name, generator(), sends_slots, exact_a=False)  # type: ignore[arg-type]
        arrived = getattr(wire, send)(broadcast if send == "broadcast" else update)
        assert wire.num_bytes == SIZES[name] + (2 * 5 if sends_slots else 0)
        assert arrived.layers["x"].slots.tolist() == [0, 2, 5] and arrived.layers["y"].a is None
        for side in ("a", "b"):
            sent = getattr(broadcast.layers["x"], side)
            got = getattr(arrived.layers["x"], side)
            assert got.shape == sent.shape and float((got - sent).abs().max()) < 0.05
            assert torch.equal(got, sent) == (name == "float32")
    assert (arrived.client_id, arrived.num_examples) == (8, 17)


@pytest.mark.parametrize("name", list(SIZES))
def test_an_a_that_is_never_trained_arrives_exactly(name: str) -> None:
    """Four bytes for each of its 30 numbers; the rest is encoded as usual."""
    broadcast, _ = message()
    wire = Wire(name, generator(), sends_slots=False, exact_a=True)  # type: ignore[arg-type]
    arrived = wire.broadcast(broadcast)
    assert torch.equal(arrived.layers["x"].a, broadcast.layers["x"].a)
    assert torch.equal(arrived.layers["x"].b, broadcast.layers["x"].b) == (name == "float32")
    own = {"float32": 4, "bfloat16": 2, "int8": 1}[name]
    assert wire.num_bytes == 4 * 30 + own * 38 + (4 * (3 + 2 + 1) if name == "int8" else 0)
