"""The sum that secure aggregation gives: fixed point, exact but for the rounding of each client's own vector."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pl_fed.errors import FederatedConfigError

SecureSum = Callable[[Sequence[Tensor]], Tensor]  # the clients' vectors to their sum, the server's only view


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
        if not 2 <= self.bits <= 32 or self.clip <= 0:
            raise FederatedConfigError(
                f"Expected `bits` in [2, 32] and `clip` above 0 but got {self.bits} and {self.clip}."
            )

    def __call__(self, vectors: Sequence[Float[Tensor, " params"]]) -> Float[Tensor, " params"]:
        """Return the sum of the rounded vectors, in float64."""
        step = self.clip / 2 ** (self.bits - 1)
        most = 2 ** (self.bits - 1) - 1
        whole = [(v.double() / step).round().clamp(-most, most).long() for v in vectors]
        total: Tensor = torch.stack(whole).sum(0).double() * step
        return total
