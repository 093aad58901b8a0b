"""Pickles of many small tensors: torch writes a file for each, which takes longer than a small client's step."""

import io
import pickle
from typing import Any

import torch
from torch import Tensor


class _Pickler(pickle.Pickler):
    """Writes ordinary tensors as their bytes, and everything else as ever."""

    def reducer_override(self, value: Any) -> Any:
        plain = type(value) is Tensor and value.layout is torch.strided and value.device.type == "cpu"
        if not plain or value.requires_grad or value.is_quantized or value.is_conj() or value.is_neg():
            return NotImplemented
        data = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return _tensor, (data, value.dtype, tuple(value.shape))


def _tensor(data: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Rebuild a tensor, in memory of its own."""
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape) if data else torch.empty(shape, dtype=dtype)


def dumps(value: Any) -> bytes:
    """Return a value as bytes that `pickle.loads` reads; tensors keep every bit.

    Example:
        >>> pickle.loads(dumps({"a": torch.tensor([1.0, 2.0])}))
        {'a': tensor([1., 2.])}
    """
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    return buffer.getvalue()
