"""What kernels for parts of unlike sizes are given, on a CPU: results and gradients as without them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pl_fed.packing import Pass, Segments, jagged, padding
from pl_fed.packing.attention import PASS, packed_attention
from pl_fed.packing.layers import add_low_rank
from pl_fed.rules import AFLoRA
from tests.helpers.kernels import LENGTHS, count, heads
from tests.helpers.packed import federation, largest_difference, loader, module_of, randomise, run

pytestmark = pytest.mark.usefixtures("kernels")
grouped_in_torch = pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this torch has no `grouped_mm`")


def factors_of(clients: int, rank: int, diagonal: bool) -> tuple[list[Tensor], Tensor | None]:
    """Return A and B of 12 to 8 numbers, and a diagonal."""
    tensors = [torch.randn(clients, rank, 12), torch.randn(clients, 8, rank)]
    leaves = [x.requires_grad_() for x in tensors]
    return leaves, torch.randn(clients, rank).requires_grad_() if diagonal else None


@grouped_in_torch
@pytest.mark.parametrize("sequences", [[2, 1, 1], [1, 0, 3]], ids=["ragged", "client-without-rows"])
@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("diagonal", [False, True])
def test_grouped_low_rank(sequences: list[int], rank: int, diagonal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As linear layers client by client, gradients included; ranks that the kernel takes and others."""
    torch.manual_seed(0)
    segments = Segments(LENGTHS, sequences)
    (a, b), lam = factors_of(3, rank, diagonal)
    x, base = torch.randn(1, 11, 12, requires_grad=True), torch.randn(1, 11, 8)
    calls = count(monkeypatch, "grouped_low_rank")
    found = add_low_rank(base, x, a, b, lam, 0.5, segments)
    assert len(calls) == 2  # the check, and the product
    expected, start = [], 0
    for client, size in enumerate(segments.tokens):
        hidden = F.linear(x[0, start : start + size], a[client])
        expected.append(0.5 * F.linear(hidden if lam is None else hidden * lam[client], b[client]))
        start += size
    reference = base + torch.cat(expected)
    torch.testing.assert_close(found, reference)
    leaves = [x, a, b] if lam is None else [x, a, b, lam]
    for outer in (torch.randn_like(base), torch.ones(1, 1, 1).expand_as(base)):  # the second as `.sum()` has it
        slopes = (torch.autograd.grad(y, leaves, outer, retain_graph=True) for y in (found, reference))
        for first, second in zip(*slopes, strict=True):
            torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)


@grouped_in_torch
def test_what_is_not_aligned_is_copied() -> None:
    """Rows, and a gradient, that begin at an address which the kernel refuses."""
    a, b = torch.randn(2, 4, 8), torch.randn(2, 8, 4)
    rows = torch.randn(1 + 5 * 8)[1:].view(5, 8).requires_grad_()
    assert rows.data_ptr() % 16
    found = jagged.grouped_low_rank(rows, a, b, torch.ones(2, 1), [2, 3])
    (slope,) = torch.autograd.grad(found, rows, torch.ones(1 + 5 * 8)[1:].view(5, 8))
    clients = torch.tensor([0, 0, 1, 1, 1])
    torch.testing.assert_close(slope, (b @ a).sum(1)[clients])


@grouped_in_torch
def test_low_rank_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 rows and factors: computed in bfloat16, and of the type of the padded product."""
    calls = count(monkeypatch, "grouped_low_rank")
    inputs = [torch.randn(shape) for shape in ((5, 16), (2, 3, 16), (2, 8, 3), (2, 3))]
    with torch.autocast("cpu", torch.bfloat16):
        found, padded = (f(*inputs, [4, 1]) for f in (jagged.ragged_low_rank, padding.padded_low_rank))
        assert torch.is_autocast_enabled("cpu")
        double = jagged.ragged_low_rank(*(x.double() for x in inputs), [4, 1])
    assert len(calls) == 2 and found.dtype == padded.dtype == torch.bfloat16 and double.dtype == torch.float64
    torch.testing.assert_close(found, padded, rtol=0.05, atol=0.2)


@pytest.mark.parametrize(
    ("d_in", "d_out", "dtype"),
    [(10, 8, "float32"), (8, 10, "float32"), (12, 8, "bfloat16"), (8, 8, "float64")],
)
def test_products_that_the_kernel_does_not_take(
    d_in: int, d_out: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of 40 and 24 bytes, and another type: padded, without asking."""
    calls = count(monkeypatch, "grouped_low_rank")
    shapes = ((5, d_in), (2, 3, d_in), (2, d_out, 3), (2, 3))
    inputs = [torch.randn(shape, dtype=getattr(torch, dtype)) for shape in shapes]
    found, padded = (f(*inputs, [4, 1]) for f in (jagged.ragged_low_rank, padding.padded_low_rank))
    assert not calls and torch.equal(found, padded)


def attention_module(sequences: list[int]) -> nn.Module:
    module = nn.Module()
    vars(module)[PASS] = Pass(Segments(LENGTHS, sequences), [1, 2, 3])
    return module


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("scaling", [None, 0.7])
def test_varlen_attention(causal: bool, key_heads: int, scaling: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch's attention sequence by sequence with repeated key heads, gradients included."""
    calls = count(monkeypatch, "varlen_attention")
    inputs = heads(torch.float64, key_heads)
    found, _ = packed_attention(attention_module([2, 1, 1]), *inputs, None, scaling=scaling, is_causal=causal)
    assert len(calls) == 2  # the check, and the attention
    full = [x.repeat_interleave(4 // x.shape[1], 1) for x in inputs]
    parts = zip(*(x.split(LENGTHS, 2) for x in full), strict=True)
    plain = [F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scaling) for q, k, v in parts]
    expected = torch.cat(plain, 2).transpose(1, 2)
    torch.testing.assert_close(found, expected)
    outer = torch.randn_like(expected)
    slopes = (torch.autograd.grad(y, inputs, outer) for y in (found, expected))
    for first, second in zip(*slopes, strict=True):
        torch.testing.assert_close(first, second)


def test_attention_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 queries and keys, as after rotation, and bfloat16 values."""
    calls = count(monkeypatch, "varlen_attention")
    query, key, value = heads(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inputs = (query, key, value.bfloat16(), LENGTHS, True, 0.4)
        found, padded = (f(*inputs) for f in (jagged.ragged_attention, padding.padded_attention))
    assert len(calls) == 2 and found.dtype == padded.dtype == torch.bfloat16
    torch.testing.assert_close(found, padded, rtol=0.05, atol=0.05)


def test_dropout_is_that_of_the_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel has none that is a client's own."""
    calls, inputs, found = count(monkeypatch, "varlen_attention"), heads(torch.float64), []
    for loops_on in (("cpu",), ()):
        monkeypatch.setattr(padding, "LOOPS_ON", loops_on)
        found.append(packed_attention(attention_module([2, 1, 1]), *inputs, None, dropout=0.3, is_causal=True)[0])
    assert not calls and torch.equal(*found)


@grouped_in_torch
@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
def test_clients_end_where_they_end_alone(folder: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama with fewer key heads, ragged texts and unequal ranks in float32, where rounding is near 1e-6."""
    sgd = lambda parameters: torch.optim.SGD(parameters, lr=0.05)  # noqa: E731
    calls = [count(monkeypatch, name) for name in ("grouped_low_rank", "varlen_attention")]
    found = []
    for engine in ("sequential", "packed"):
        module = module_of("llama", folder("llama"), sgd)
        torch.manual_seed(2)
        module.configure_model()
        randomise(module)
        start = {name: p.detach().clone() for name, p in module.named_parameters()}
        assert calls == [[], []]
        found.append(run(module, federation(AFLoRA(), engine), loader("llama")))
        assert any((value - start[name]).abs().max() > 1e-3 for name, value in found[-1].items() if name in start)
    assert all(len(made) > 10 for made in calls)
    assert largest_difference(*found) < 1e-5
