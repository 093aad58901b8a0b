"""A kernel for parts of unlike sizes is used once it has agreed with padding; else padding is, and the log says so."""

import inspect
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pl_fed.packing import jagged, padding
from tests.helpers.kernels import LENGTHS, VARLEN, attend, count, heads, put, varlen_attn

CPU = torch.device("cpu")
grouped_in_torch = pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this torch has no `grouped_mm`")


@pytest.fixture
def declared() -> inspect.Signature:
    """Return the signature of torch's own variable-length attention."""
    found = inspect.signature(pytest.importorskip(VARLEN, exc_type=ImportError).varlen_attn)
    if "enable_gqa" not in found.parameters:
        pytest.skip("the attention of this torch knows neither groups nor a scale; padding is used")
    return found


def test_arguments_are_those_that_torch_declares(
    declared: inspect.Signature, kernels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kernel(*args: Any, **kwargs: Any) -> Tensor:
        declared.bind(*args, **kwargs)
        return varlen_attn(*args, **kwargs)

    put(monkeypatch, kernel)
    assert jagged.varlen_agrees(CPU, torch.float32, 4, 2, 8, True)


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
    kernel: Any,
    why: str,
    dtype: torch.dtype,
    kernels: None,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Padding is used, and the log says so once."""
    put(monkeypatch, kernel)
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
    causal: bool, dtype: torch.dtype, kernels: None, caplog: pytest.LogCaptureFixture
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
    kernels: None,
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
def test_products_that_are_trusted(dtype: torch.dtype, kernels: None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, jagged.__name__)
    assert jagged.grouped_agrees(CPU, dtype) and not caplog.messages


def test_too_little_memory_says_nothing_about_a_kernel(kernels: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> Tensor:
        raise torch.OutOfMemoryError("no memory")

    put(monkeypatch, full)
    with pytest.raises(torch.OutOfMemoryError, match="no memory"):
        jagged.varlen_agrees(CPU, torch.float32, 2, 2, 8, True)
    put(monkeypatch, varlen_attn)
    assert jagged.varlen_agrees(CPU, torch.float32, 2, 2, 8, True)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_the_check_leaves_no_trace(mode: Callable[[], Any], kernels: None) -> None:
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


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    """Whichever is used there: in bfloat16 near what padding gives in float32."""
    shapes = ((11, 16), (3, 6, 16), (3, 24, 6), (3, 6))
    products = [torch.randn(shape, device="cuda") for shape in shapes]
    query, key, value = (x.detach().cuda() for x in heads(torch.float32))
    with torch.autocast("cuda", torch.bfloat16):
        change = jagged.ragged_low_rank(*products, [7, 1, 3])
        attended = jagged.ragged_attention(query, key, value, LENGTHS, True, 0.4)
    expected = padding.padded_low_rank(*products, [7, 1, 3])
    assert (change - expected).abs().max() < 0.05 * expected.abs().max()
    torch.testing.assert_close(
        attended.float(), padding.padded_attention(query, key, value, LENGTHS, True, 0.4), rtol=0.05, atol=0.05
    )
