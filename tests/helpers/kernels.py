"""Kernels for parts of unlike sizes, on a CPU: torch has the grouped product there; attention is written out here."""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pl_fed.packing import jagged, padding

VARLEN = "torch.nn.attention.varlen"
LENGTHS = [2, 5, 1, 3]


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


def aligned(x: Tensor) -> None:
    """Fail where a GPU would, of whose addresses and rows 16 bytes are the unit."""
    strides = [step * x.itemsize for step, size in zip(x.stride(), x.shape, strict=True) if step != 1 and size > 1]
    assert x.data_ptr() % 16 == 0 and all(step and step % 16 == 0 for step in strides)


def strict(grouped_mm: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a grouped product that looks at what it is given as the one of a GPU does."""

    def kernel(rows: Tensor, stack: Tensor, *, offs: Tensor) -> Tensor:
        assert offs.dtype == torch.int32 and offs[-1] == len(rows)
        aligned(rows)
        aligned(stack)
        out = grouped_mm(rows, stack, offs=offs)
        if out.grad_fn is not None:
            out.grad_fn.register_prehook(lambda slopes: aligned(*slopes))
        return out

    return kernel


def put(monkeypatch: pytest.MonkeyPatch, function: Callable[..., Tensor] | None) -> None:
    """Put another variable-length attention in place of torch's; None for a torch without one."""
    module = ModuleType(VARLEN)
    if function is not None:
        vars(module)["varlen_attn"] = function
    monkeypatch.setitem(sys.modules, VARLEN, module)


def lend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a CPU have the kernels, in types in which results can be compared."""
    monkeypatch.setattr(padding, "LOOPS_ON", ())
    monkeypatch.setattr(jagged, "KERNELS_ON", ("cpu",))
    monkeypatch.setattr(jagged, "GROUPED_IN", (torch.float32, torch.bfloat16))
    monkeypatch.setattr(jagged, "VARLEN_IN", (torch.float64, torch.float32, torch.bfloat16))
    put(monkeypatch, varlen_attn)
    if hasattr(F, "grouped_mm"):
        monkeypatch.setattr(F, "grouped_mm", strict(F.grouped_mm))


def count(monkeypatch: pytest.MonkeyPatch, name: str) -> list[int]:
    """Return a list that grows with every call of a function of `jagged`."""
    calls, function = [], getattr(jagged, name)

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(1)
        return function(*args, **kwargs)

    monkeypatch.setattr(jagged, name, counted)
    return calls


def heads(dtype: torch.dtype, key_heads: int = 2) -> list[Tensor]:
    """Return four query heads and fewer key heads of width 8 over 11 tokens."""
    return [torch.randn(1, n, 11, 8, dtype=dtype, requires_grad=True) for n in (4, key_heads, key_heads)]
