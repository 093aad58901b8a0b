"""Kernels for parts of unlike sizes: what they are given, and that padding is used wherever one cannot be trusted.

On a CPU torch's grouped product runs in float32; variable-length attention is written out below as the documentation
of torch says it.
"""

import inspect
import logging
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pl_fed.packing import Pass, Segments, jagged, padding
from pl_fed.packing.attention import PASS, packed_attention
from pl_fed.packing.layers import add_low_rank
from pl_fed.rules import AFLoRA
from tests.helpers.packed import federation, largest_difference, loader, module_of, randomise, run

CPU = torch.device("cpu")
VARLEN = "torch.nn.attention.varlen"
LENGTHS = [2, 5, 1, 3]
grouped_in_torch = pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this torch has no `grouped_mm`")


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float, window: tuple[int, int]) -> Tensor:
    """Attend within one sequence (tokens, heads, width); head h reads key head h // group."""
    group = query.shape[1] // key.shape[1]
    places = torch.arange(len(query))
    ahead = places - places[:, None]
    hidden = (ahead > window[1]) if window[1] >= 0 else torch.zeros_like(ahead, dtype=torch.bool)
    assert window[0] == -1
    heads = []
    for head in range(query.shape[1]):
        scores = query[:, head] @ key[:, head // group].T * scale
        heads.append(scores.masked_fill(hidden, -torch.inf).softmax(-1) @ value[:, head // group])
    return torch.stack(heads, 1)


def varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    """Attend sequence by sequence; as strict about its arguments as torch."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32 and cu_seq_q[0] == 0 and cu_seq_q[-1] == len(query)
    assert enable_gqa or query.shape[1] == key.shape[1]
    assert all(x.stride(-1) == 1 and x.data_ptr() % 16 == 0 for x in (query, key, value))
    sizes, key_sizes = (ends.diff().tolist() for ends in (cu_seq_q, cu_seq_k))
    assert sizes == key_sizes and max_q == max_k == max(sizes)
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    parts = zip(*(x.split(sizes) for x in (query, key, value)), strict=True)
    return torch.cat([attend(q, k, v, factor, window_size) for q, k, v in parts])


@pytest.fixture
def declared() -> inspect.Signature:
    """Return the signature of torch's own variable-length attention."""
    found = inspect.signature(pytest.importorskip(VARLEN, exc_type=ImportError).varlen_attn)
    if "enable_gqa" not in found.parameters:
        pytest.skip("the attention of this torch knows neither groups nor a scale; padding is used")
    return found


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Let a CPU have the kernels; returns what puts another variable-length attention in place, None for none."""
    for name, value in {
        "KERNELS_ON": ("cpu",),
        "GROUPED_IN": (torch.float32, torch.bfloat16),
        "VARLEN_IN": (torch.float64, torch.float32, torch.bfloat16),
    }.items():
        monkeypatch.setattr(jagged, name, value)
    monkeypatch.setattr(padding, "LOOPS_ON", ())

    def put(function: Callable[..., Tensor] | None) -> None:
        module = ModuleType(VARLEN)
        if function is not None:
            vars(module)["varlen_attn"] = function
        monkeypatch.setitem(sys.modules, VARLEN, module)

    put(varlen_attn)
    trusted = (jagged.grouped_agrees, jagged.varlen_agrees)
    for function in trusted:
        function.cache_clear()
    yield put
    for function in trusted:
        function.cache_clear()


def count(monkeypatch: pytest.MonkeyPatch, name: str) -> list[int]:
    """Return a list that grows with every call of a function of `jagged`."""
    calls, function = [], getattr(jagged, name)

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(1)
        return function(*args, **kwargs)

    monkeypatch.setattr(jagged, name, counted)
    return calls


def factors_of(clients: int, rank: int, diagonal: bool) -> tuple[list[Tensor], Tensor | None]:
    """Return A and B of 12 to 8 numbers, and a diagonal."""
    tensors = [torch.randn(clients, rank, 12), torch.randn(clients, 8, rank)]
    leaves = [x.requires_grad_() for x in tensors]
    return leaves, torch.randn(clients, rank).requires_grad_() if diagonal else None


@grouped_in_torch
@pytest.mark.parametrize("sequences", [[2, 1, 1], [1, 0, 3]], ids=["ragged", "client-without-rows"])
@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("diagonal", [False, True])
def test_grouped_low_rank(
    sequences: list[int], rank: int, diagonal: bool, kernels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
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
def test_what_is_not_aligned_is_copied(kernels: Any) -> None:
    """Rows, and a gradient, that begin at an address which the kernel refuses."""
    a, b = torch.randn(2, 4, 8), torch.randn(2, 8, 4)
    rows = torch.randn(1 + 5 * 8)[1:].view(5, 8).requires_grad_()
    assert rows.data_ptr() % 16
    found = jagged.grouped_low_rank(rows, a, b, torch.ones(2, 1), [2, 3])
    (slope,) = torch.autograd.grad(found, rows, torch.ones(1 + 5 * 8)[1:].view(5, 8))
    clients = torch.tensor([0, 0, 1, 1, 1])
    torch.testing.assert_close(slope, (b @ a).sum(1)[clients])


@grouped_in_torch
def test_low_rank_under_autocast(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 rows and factors: computed in bfloat16, and of the type of the padded product."""
    calls = count(monkeypatch, "grouped_low_rank")
    inputs = [torch.randn(shape) for shape in ((5, 16), (2, 3, 16), (2, 8, 3), (2, 3))]
    with torch.autocast("cpu", torch.bfloat16):
        found, padded = (f(*inputs, [4, 1]) for f in (jagged.ragged_low_rank, padding.padded_low_rank))
        assert torch.is_autocast_enabled("cpu")
        double = jagged.ragged_low_rank(*(x.double() for x in inputs), [4, 1])
    assert len(calls) == 2 and found.dtype == padded.dtype == torch.bfloat16 and double.dtype == torch.float64
    torch.testing.assert_close(found, padded, rtol=0.05, atol=0.2)


@pytest.mark.parametrize(("d_in", "d_out", "dtype"), [(10, 8, "float32"), (8, 10, "float32"), (8, 8, "float64")])
def test_products_that_the_kernel_does_not_take(
    d_in: int, d_out: int, dtype: str, kernels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of 40 bytes, and a type of its own: padded, without asking."""
    calls = count(monkeypatch, "grouped_low_rank")
    shapes = ((5, d_in), (2, 3, d_in), (2, d_out, 3), (2, 3))
    inputs = [torch.randn(shape, dtype=getattr(torch, dtype)) for shape in shapes]
    found, padded = (f(*inputs, [4, 1]) for f in (jagged.ragged_low_rank, padding.padded_low_rank))
    assert not calls and torch.equal(found, padded)


def heads(dtype: torch.dtype, key_heads: int = 2) -> list[Tensor]:
    """Return four query heads and fewer key heads of width 8 over 11 tokens."""
    return [torch.randn(1, n, 11, 8, dtype=dtype, requires_grad=True) for n in (4, key_heads, key_heads)]


def attention_module(sequences: list[int]) -> nn.Module:
    module = nn.Module()
    vars(module)[PASS] = Pass(Segments(LENGTHS, sequences), [1, 2, 3])
    return module


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("scaling", [None, 0.7])
def test_varlen_attention(
    causal: bool, key_heads: int, scaling: float | None, kernels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_arguments_are_those_that_torch_declares(declared: inspect.Signature, kernels: Any) -> None:
    def kernel(*args: Any, **kwargs: Any) -> Tensor:
        declared.bind(*args, **kwargs)
        return varlen_attn(*args, **kwargs)

    kernels(kernel)
    assert jagged.varlen_agrees(CPU, torch.float32, 4, 2, 8, True)


def test_attention_under_autocast(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 queries and keys, as after rotation, and bfloat16 values."""
    calls = count(monkeypatch, "varlen_attention")
    query, key, value = heads(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inputs = (query, key, value.bfloat16(), LENGTHS, True, 0.4)
        found, padded = (f(*inputs) for f in (jagged.ragged_attention, padding.padded_attention))
    assert len(calls) == 2 and found.dtype == padded.dtype == torch.bfloat16
    torch.testing.assert_close(found, padded, rtol=0.05, atol=0.05)


def test_dropout_is_that_of_the_masks(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel has none that is a client's own."""
    calls, inputs, found = count(monkeypatch, "varlen_attention"), heads(torch.float64), []
    for loops_on in (("cpu",), ()):
        monkeypatch.setattr(padding, "LOOPS_ON", loops_on)
        found.append(packed_attention(attention_module([2, 1, 1]), *inputs, None, dropout=0.3, is_causal=True)[0])
    assert not calls and torch.equal(*found)


def failing(*args: Any, **kwargs: Any) -> Tensor:
    raise RuntimeError("no such architecture\nmore about it")


def ignoring(name: str, value: Any) -> Callable[..., Tensor]:
    """Return an attention that has its own idea of a setting."""

    def kernel(*args: Any, **kwargs: Any) -> Tensor:
        return varlen_attn(*args, **{**kwargs, name: value})

    return kernel


def one_sequence(
    query: Tensor, key: Tensor, value: Tensor, *_: Any, scale: float, window_size: Any, **__: Any
) -> Tensor:
    return attend(query, key, value, scale, window_size)


def other_heads(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Give head h the key head h modulo their number."""
    key, value = (x.repeat(1, query.shape[1] // x.shape[1], 1) for x in (key, value))
    return varlen_attn(query, key, value, *args, **kwargs)


def without_gradient(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return varlen_attn(query, key.detach() + 0 * key, value, *args, **kwargs)


def nothing(*args: Any, **kwargs: Any) -> Tensor:
    return varlen_attn(*args, **kwargs) * torch.nan


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kernel", "why"),
    [
        (None, "cannot import name 'varlen_attn'"),
        (failing, "no such architecture"),
        (ignoring("window_size", (-1, -1)), "its results are not those of padding"),
        (ignoring("scale", None), "its results are not those of padding"),
        (one_sequence, "its results are not those of padding"),
        (other_heads, "its results are not those of padding"),
        (without_gradient, "its results are not those of padding"),
        (nothing, "its results are not those of padding"),
    ],
    ids=["missing", "raises", "window", "scale", "offsets", "heads", "gradient", "nan"],
)
def test_attention_that_is_not_trusted(
    kernel: Any, why: str, dtype: torch.dtype, kernels: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Padding is used, and the log says so once."""
    kernels(kernel)
    caplog.set_level(logging.INFO, jagged.__name__)
    inputs = (*heads(dtype), LENGTHS, True, 0.4)
    found = [jagged.ragged_attention(*inputs) for _ in range(2)]
    assert all(torch.equal(x, padding.padded_attention(*inputs)) for x in found)
    (message,) = caplog.messages
    assert message.startswith(f"`varlen_attn` is not used on cpu in {dtype}, parts are padded instead: {why}")
    assert "\n" not in message


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_that_is_trusted(
    causal: bool, dtype: torch.dtype, kernels: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, jagged.__name__)
    assert jagged.varlen_agrees(CPU, dtype, 4, 2, 8, causal) and not caplog.messages


def wrong_slope(rows: Tensor, stack: Tensor, *, offs: Tensor) -> Tensor:
    """Give the right product, which all but the first client's factors do not learn from."""
    parts = rows.tensor_split(offs.tolist()[:-1])
    products = [
        part @ (m if k == 0 else m.detach() + 0 * m) for k, (part, m) in enumerate(zip(parts, stack, strict=True))
    ]
    return torch.cat(products)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kernel", "why"),
    [
        (None, "cannot import name 'grouped_mm'"),
        (failing, "no such architecture"),
        (lambda rows, stack, offs: rows @ stack[0], "its results are not those of padding"),
        (wrong_slope, "its results are not those of padding"),
    ],
    ids=["missing", "raises", "offsets", "gradient"],
)
def test_products_that_are_not_trusted(
    kernel: Any,
    why: str,
    dtype: torch.dtype,
    kernels: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Padding is used, and the log says so once."""
    monkeypatch.setattr(F, "grouped_mm", kernel, raising=False)
    if kernel is None:
        monkeypatch.delattr(F, "grouped_mm")
    caplog.set_level(logging.INFO, jagged.__name__)
    inputs = [torch.randn(shape, dtype=dtype) for shape in ((5, 16), (2, 3, 16), (2, 8, 3), (2, 3))]
    found = [jagged.ragged_low_rank(*inputs, [4, 1]) for _ in range(2)]
    assert all(torch.equal(x, padding.padded_low_rank(*inputs, [4, 1])) for x in found)
    (message,) = caplog.messages
    assert message.startswith(f"`grouped_mm` is not used on cpu in {dtype}, parts are padded instead: {why}")


@grouped_in_torch
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_that_are_trusted(dtype: torch.dtype, kernels: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, jagged.__name__)
    assert jagged.grouped_agrees(CPU, dtype) and not caplog.messages


def test_memory_that_does_not_suffice_says_nothing_about_a_kernel(kernels: Any) -> None:
    def full(*args: Any, **kwargs: Any) -> Tensor:
        raise torch.OutOfMemoryError("no memory")

    kernels(full)
    with pytest.raises(torch.OutOfMemoryError, match="no memory"):
        jagged.varlen_agrees(CPU, torch.float32, 2, 2, 8, True)
    kernels(varlen_attn)
    assert jagged.varlen_agrees(CPU, torch.float32, 2, 2, 8, True)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_the_check_leaves_no_trace(mode: Callable[[], Any], kernels: Any) -> None:
    """Random numbers, and what holds where it is asked."""
    torch.manual_seed(3)
    expected = torch.get_rng_state()
    with mode():
        states = [torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")]
        assert jagged.varlen_agrees(CPU, torch.float32, 2, 1, 8, True)
        after = [torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")]
    assert after == states and torch.equal(torch.get_rng_state(), expected)


def test_a_cpu_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is: where parts are padded on another device than a GPU no kernel is tried."""
    monkeypatch.setattr(padding, "LOOPS_ON", ())
    calls = [count(monkeypatch, name) for name in ("grouped_low_rank", "varlen_attention")]
    jagged.ragged_attention(*heads(torch.bfloat16), LENGTHS, True, 0.4)
    jagged.ragged_low_rank(*(torch.randn(s).bfloat16() for s in ((5, 8), (2, 8, 8), (2, 8, 8), (2, 8))), [4, 1])
    assert calls == [[], []]


@grouped_in_torch
@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
def test_clients_end_where_they_end_alone(
    folder: Callable[..., str], kernels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
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
