"""The ring of integers modulo 2^32 or 2^64 in which vectors are masked and summed.

Only the two sizes of machine words are offered: every word of a keystream is then a uniform ring element as it comes
(nothing to reject, nothing to cut off), and additions wrap around by themselves. The small ring halves what is sent and
what the mask generator has to produce. Values are handed over as int64 tensors of the representatives nearest to zero,
-2^(bits - 1) .. 2^(bits - 1) - 1 (two's complement); on the wire they are little-endian unsigned words.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from pl_fed.errors import FederatedConfigError

RING_BITS = (32, 64)
Words = NDArray[np.unsignedinteger[Any]]
"""Ring elements as they are masked and sent: little-endian unsigned words."""


@dataclass(frozen=True)
class Ring:
    """The integers modulo 2^bits.

    Args:
        bits: 32 or 64.

    Example:
        >>> Ring(32).wrap(torch.tensor([2**31, 5 - 2**32]))
        tensor([-2147483648,           5])
    """

    bits: int = 64

    def __post_init__(self) -> None:
        """Check the size."""
        if self.bits not in RING_BITS:
            raise FederatedConfigError(f"Expected `bits` of the ring to be 32 or 64 but got {self.bits}.")

    @property
    def word_bytes(self) -> int:
        """Bytes of one element."""
        return self.bits // 8

    @property
    def half(self) -> int:
        """Half the modulus: sums must lie in [-half, half) to be read back."""
        return int(2 ** (self.bits - 1))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Little-endian unsigned words, on every machine."""
        return np.dtype(f"<u{self.word_bytes}")

    def wrap(self, values: Int[Tensor, " values"]) -> Int[Tensor, " values"]:
        """Return the representatives nearest to zero."""
        return values.to(torch.int32).to(torch.int64) if self.bits == 32 else values.to(torch.int64)

    def check(self, values: Tensor) -> None:
        """Refuse a vector that is not made of representatives: it would be wrapped without a word.

        Raises:
            FederatedConfigError: If the tensor is not int64 or a value does not fit.
        """
        if values.dtype != torch.int64:
            raise FederatedConfigError(f"Expected an int64 vector but got {values.dtype}: encode it in fixed point.")
        if values.numel() and self.bits < 64:
            low, high = int(values.min()), int(values.max())
            if low < -self.half or high >= self.half:
                raise FederatedConfigError(
                    f"Expected values in [-2^{self.bits - 1}, 2^{self.bits - 1}) but got {low} to {high}: use a ring "
                    "of 64 bits."
                )

    def words(self, values: Tensor) -> Words:
        """Return a new array of the elements; see `check`."""
        self.check(values)
        return values.detach().cpu().numpy().astype(self.dtype)

    def values(self, words: Words) -> Int[Tensor, " values"]:
        """Return the elements as an int64 tensor of the representatives nearest to zero."""
        signed = np.dtype(f"<i{self.word_bytes}")
        return torch.from_numpy(words.view(signed).astype(np.int64))
