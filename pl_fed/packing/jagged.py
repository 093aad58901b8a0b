"""Parts of unlike sizes without padding, by kernels for them: a grouped product for LoRA, variable-length attention.

Both are young in torch and differ between its versions and devices, so that a device's kernel is used only once it has
given what padding gives, forward and backward, on a small example; else padding is what remains.
"""

import logging
from collections.abc import Callable, Sequence
from functools import cache, lru_cache, partial
from textwrap import shorten

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from pl_fed.packing.padding import padded_attention, padded_low_rank

log = logging.getLogger(__name__)

KERNELS_ON = ("cuda",)
"""Devices that may have the kernels."""
GROUPED_IN = (torch.bfloat16,)
VARLEN_IN = (torch.bfloat16, torch.float16)
"""Types in which a kernel computes."""
ALIGNED_BYTES = 16
"""What addresses and rows are multiples of in both kernels."""
SAMPLE = (3, 1, 130)
"""Sizes of the parts in the example: odd ones, and one that is larger than a kernel's tile."""

Heads = Float[Tensor, "1 heads tokens width"]
KeyHeads = Float[Tensor, "1 key_heads tokens width"]


def ragged_low_rank(rows: Tensor, a: Tensor, b: Tensor, factors: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return `padded_low_rank`, whose arguments these are, without padding where the device can."""
    dtype, device = _computes_in(rows), rows.device
    fits = all(size * dtype.itemsize % ALIGNED_BYTES == 0 for size in (a.shape[2], b.shape[1]))
    if device.type in KERNELS_ON and dtype in GROUPED_IN and fits and grouped_agrees(device, dtype):
        return grouped_low_rank(rows, a, b, factors, sizes)
    return padded_low_rank(rows, a, b, factors, sizes)


def ragged_attention(
    query: Heads, key: KeyHeads, value: KeyHeads, lengths: Sequence[int], causal: bool, scale: float
) -> Float[Tensor, "1 tokens heads width"]:
    """Return `padded_attention`, whose arguments these are, without padding where the device can."""
    dtype, device = _computes_in(query), query.device
    if device.type in KERNELS_ON and dtype in VARLEN_IN:
        _, heads, _, width = query.shape
        if varlen_agrees(device, dtype, heads, key.shape[1], width, causal):
            return varlen_attention(query, key, value, lengths, causal, scale)
    return padded_attention(query, key, value, lengths, causal, scale)


def grouped_low_rank(rows: Tensor, a: Tensor, b: Tensor, factors: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return `padded_low_rank`, whose arguments these are, by two grouped products."""
    from torch.nn.functional import grouped_mm  # not in every torch that we allow; `_agree` finds out

    dtype, ends = _computes_in(rows), _offsets(tuple(sizes), rows.device)[1:]
    missing = -a.shape[1] % (ALIGNED_BYTES // dtype.itemsize)  # slots of zeros change nothing
    down = F.pad(a.to(dtype), (0, 0, 0, missing))
    up = F.pad((b * factors[:, None]).to(dtype), (0, missing))  # the factors here, where no row has to find its own
    hidden = grouped_mm(_aligned(rows.to(dtype)), _aligned(down).transpose(1, 2), offs=ends)
    change: Tensor = grouped_mm(hidden, _aligned(up).transpose(1, 2), offs=ends)
    if change.requires_grad:
        change.register_hook(_aligned)  # what comes back meets the same kernel
    return change


def varlen_attention(
    query: Heads, key: KeyHeads, value: KeyHeads, lengths: Sequence[int], causal: bool, scale: float
) -> Float[Tensor, "1 tokens heads width"]:
    """Return `padded_attention`, whose arguments these are, by flash attention."""
    from torch.nn.attention.varlen import varlen_attn  # as above; and slow to import

    dtype, starts, longest = _computes_in(query), _offsets(tuple(lengths), query.device), max(lengths)
    q, k, v = (_aligned(x.squeeze(0).transpose(0, 1).to(dtype)) for x in (query, key, value))  # (tokens, heads, width)
    window, grouped = (-1, 0 if causal else -1), q.shape[1] != k.shape[1]
    attended: Tensor = varlen_attn(  # type: ignore[assignment]  # a pair only where `return_aux` is asked for
        q, k, v, starts, starts, longest, longest, scale=scale, window_size=window, enable_gqa=grouped
    )
    return attended[None]


@cache
def grouped_agrees(device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether `grouped_low_rank` does what padding does on a device; asked once."""
    clients, rank, d_in, d_out = len(SAMPLE), 6, 32, 48
    shapes = ((sum(SAMPLE), d_in), (clients, rank, d_in), (clients, d_out, rank), (clients, rank))
    kernel, padded = (partial(function, sizes=SAMPLE) for function in (grouped_low_rank, padded_low_rank))
    return _agree("grouped_mm", kernel, padded, _inputs(shapes, device, dtype))


@cache
def varlen_agrees(
    device: torch.device, dtype: torch.dtype, heads: int, key_heads: int, width: int, causal: bool
) -> bool:
    """Tell whether `varlen_attention` does what padding does on a device with heads of this kind; asked once."""
    inputs = _inputs([(1, number, sum(SAMPLE), width) for number in (heads, key_heads, key_heads)], device, dtype)
    scale = 2 * width**-0.5  # not the usual one, so that a kernel that knows no other is found out
    settings = {"lengths": SAMPLE, "causal": causal, "scale": scale}
    kernel, padded = (partial(function, **settings) for function in (varlen_attention, padded_attention))
    return _agree("varlen_attn", kernel, padded, inputs)


def _agree(name: str, kernel: Callable[..., Tensor], padded: Callable[..., Tensor], inputs: Sequence[Tensor]) -> bool:
    """Compare outputs and gradients; say in the log why a kernel is not used."""
    device, dtype = inputs[0].device, inputs[0].dtype
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            pairs = zip(_outcome(kernel, inputs), _outcome(padded, inputs), strict=True)
            why = None if all(_close(x, y) for x, y in pairs) else "its results are not those of padding"
    except torch.OutOfMemoryError:  # says nothing about the kernel
        raise
    except Exception as error:  # whatever a kernel or its absence raises
        why = shorten(str(error) or repr(error), 200)
    if why is not None:
        log.info("`%s` is not used on %s in %s, parts are padded instead: %s", name, device, dtype, why)
    return why is None


def _inputs(shapes: Sequence[tuple[int, ...]], device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]


def _outcome(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    (outer,) = _inputs([tuple(out.shape)], out.device, out.dtype)
    return [out, *torch.autograd.grad(out, leaves, outer)]


def _close(found: Tensor, expected: Tensor) -> bool:
    """Tell whether two tensors agree in half of their digits, measured at the largest number; NaN never does."""
    bound = torch.finfo(expected.dtype).eps ** 0.5 * expected.float().abs().max()
    return bool((found.float() - expected.float()).abs().max() <= bound)


def _computes_in(x: Tensor) -> torch.dtype:
    """Return the type in which products of a tensor are computed here."""
    kind = x.device.type
    autocast = torch.is_autocast_enabled(kind) and x.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if autocast else x.dtype


def _aligned(x: Tensor) -> Tensor:
    """Return a tensor in one piece that starts where the kernels can read."""
    x = x.contiguous()
    return x.clone() if x.data_ptr() % ALIGNED_BYTES else x


@lru_cache(maxsize=8)  # every layer of a pass asks for the same
def _offsets(sizes: tuple[int, ...], device: torch.device) -> Int[Tensor, " ends"]:
    """Return where parts begin, and the end of the last: (parts + 1,)."""
    return F.pad(torch.tensor(sizes).cumsum(0), (1, 0)).to(device, torch.int32)
