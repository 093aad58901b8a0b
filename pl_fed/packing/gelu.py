"""GELU in its tanh form for a packed pass, with the slope found on the way.

``y = x s(u)`` with ``u = 2 c (x + a x^3)``, s the logistic function, ``c = sqrt(2 / pi)`` and ``a = 0.044715``, since
``(1 + tanh(u / 2)) / 2 = s(u)``. The slope ``s + x s (1 - s) u'`` has the same s, so the backward pass is one product.
On a CPU torch computes a tanh in each direction, which is most of what a small model's activations cost.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_TWICE_C = 2 * math.sqrt(2 / math.pi)
_CUBIC = 0.044715
BLOCK = 2**17
"""Numbers at a time: what is read again is still in the cache."""


def _block(x: Tensor, y: Tensor, slope: Tensor, factor: Tensor, rest: Tensor, constant: Tensor) -> None:
    torch.addcmul(constant, x, x, value=_TWICE_C * _CUBIC, out=factor)  # u / x; u' is 3 of it less 2 * _TWICE_C
    torch.mul(factor, x, out=slope).sigmoid_()
    torch.mul(x, slope, out=y)
    torch.addcmul(y, y, slope, value=-1, out=rest)  # x s (1 - s)
    slope.addcmul_(rest, factor, value=3).add_(rest, alpha=-2 * _TWICE_C)


class _TanhGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y, slope = torch.empty_like(x), torch.empty_like(x)
        spare, constant = x.new_empty(2, min(BLOCK, x.numel())), x.new_tensor(_TWICE_C)
        parts = zip(*(value.view(-1).split(BLOCK) for value in (x, y, slope)), strict=True)
        for x_part, y_part, slope_part in parts:
            factor, rest = spare[:, : len(x_part)]
            _block(x_part, y_part, slope_part, factor, rest, constant)
        ctx.save_for_backward(slope)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        product: Tensor = outer * slope
        return product


def tanh_gelu(x: Tensor) -> Tensor:
    """Return GELU in its tanh form, elementwise.

    Example:
        >>> x = torch.tensor([-1.0, 0.0, 2.0], requires_grad=True)
        >>> [round(value, 4) for value in tanh_gelu(x).tolist()]
        [-0.1588, 0.0, 1.9546]
    """
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64) or not x.is_contiguous():
        return F.gelu(x, approximate="tanh")
    y: Tensor = _TanhGelu.apply(x) if x.requires_grad else F.gelu(x, approximate="tanh")  # type: ignore[no-untyped-call]
    return y
