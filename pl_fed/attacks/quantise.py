"""The sum that secure aggregation gives: fixed point, exact but for the rounding of each client's own vector."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from pl_fed.errors import FederatedConfigError


@runtime_checkable
class SecureSum(Protocol):
    """Any function from the clients' vectors to their sum, which is the server's only view."""

    def __call__(self, vectors: Sequence[Tensor]) -> Any:
        """Return the sum, a tensor; the command line takes a class in the return type for the one to make."""
        ...


@dataclass(frozen=True)
class FixedPointSum:
    """Rounds every client's vector to `bits` bits in [-clip, clip] and sums as integers.

    Args:
        bits: Bits of one entry, with sign.
        clip: Entries beyond are cut off.

    Example:
        >>> FixedPointSum(bits=22, clip=8.0)([torch.tensor([0.5]), torch.tensor([0.25])])
        tensor([0.7500], dtype=torch.float64)
    """

    bits: int = 22
    clip: float = 8.0

    def __post_init__(self) -> None:
        """Check the values."""
        if not isinstance(self.bits, int) or not 2 <= self.bits <= 32 or not 0 < self.clip < math.inf:
            raise FederatedConfigError(
                f"Expected whole `bits` in [2, 32] and a finite `clip` above 0 but got {self.bits} and {self.clip}."
            )

    def __call__(self, vectors: Sequence[Tensor]) -> Tensor:
        """Return the sum of the rounded vectors, in float64."""
        step = self.clip / 2 ** (self.bits - 1)
        most = 2 ** (self.bits - 1) - 1
        whole = [(v.double() / step).round().clamp(-most, most).long() for v in vectors]
        total: Tensor = torch.stack(whole).sum(0).double() * step
        return total
