"""How tensors are written on the wire: float32, bfloat16, or int8 with one scale per rank component.

A codec turns a tensor into the tensors that are really sent and back; bytes are counted on what is sent, and training
goes on with what was decoded. int8 rounds stochastically, so that its error has mean zero over clients. One scale per
rank component (a row of A, a column of B) costs four bytes a slot.
"""

from abc import ABC, abstractmethod
from typing import Literal, get_args

import torch
from torch import Tensor

from pl_fed.errors import FederatedConfigError

CodecName = Literal["float32", "bfloat16", "int8"]
Payload = tuple[Tensor, ...]


def payload_bytes(payload: Payload) -> int:
    """Return the size of a payload in bytes."""
    return sum(part.numel() * part.element_size() for part in payload)


class Codec(ABC):
    """Encodes one tensor; `rank_dim` names the dimension of rank components, None for dense tensors.

    Attributes:
        is_random: Whether `encode` draws from its generator.
    """

    is_random = False

    @abstractmethod
    def encode(self, value: Tensor, rank_dim: int | None, generator: torch.Generator | None) -> Payload:
        """Return the tensors that are sent."""

    @abstractmethod
    def decode(self, payload: Payload, dtype: torch.dtype) -> Tensor:
        """Return the tensor that arrives."""


class CastCodec(Codec):
    """Sends the tensor in another floating-point format, or as it is (adapters are float32) with None."""

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        self.dtype = dtype

    def encode(self, value: Tensor, rank_dim: int | None, generator: torch.Generator | None) -> Payload:
        """Cast."""
        return (value.to(self.dtype or value.dtype),)

    def decode(self, payload: Payload, dtype: torch.dtype) -> Tensor:
        """Cast back."""
        return payload[0].to(dtype)


class Int8Codec(Codec):
    """Sends 8-bit integers and one float32 scale for each rank component (one for a dense tensor)."""

    is_random = True

    def encode(self, value: Tensor, rank_dim: int | None, generator: torch.Generator | None) -> Payload:
        """Quantise with stochastic rounding; an all-zero component stays exactly zero."""
        assert generator is not None  # torch would draw from its own, which belongs to the client's training
        if rank_dim is None:
            peak = (
                value.abs().amax().reshape([1] * value.dim()) if value.numel() else value.new_zeros([1] * value.dim())
            )
        else:
            other = tuple(dim for dim in range(value.dim()) if dim != rank_dim)
            peak = value.abs().amax(other, keepdim=True)
        scale = (peak / 127).to(torch.float32)
        steps = value / torch.where(scale > 0, scale, torch.ones_like(scale)).to(value.dtype)
        noise = torch.rand(value.shape, generator=generator).to(value.device)  # on the CPU: the same on every device
        return torch.floor(steps + noise).clamp_(-127, 127).to(torch.int8), scale

    def decode(self, payload: Payload, dtype: torch.dtype) -> Tensor:
        """Scale back."""
        return payload[0].to(dtype) * payload[1].to(dtype)


def check_codec(name: str) -> None:
    """Raise `FederatedConfigError` if there is no codec of that name."""
    if name not in get_args(CodecName):
        raise FederatedConfigError(f"Expected a codec out of {', '.join(get_args(CodecName))} but got `{name}`.")


def make_codec(name: CodecName) -> Codec:
    """Return the codec of that name."""
    check_codec(name)
    if name == "int8":
        return Int8Codec()
    return CastCodec(None if name == "float32" else torch.bfloat16)
