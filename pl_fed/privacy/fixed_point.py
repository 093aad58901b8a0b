"""Fixed-point encoding: a weighted mean of float vectors as a sum of integers that a modular ring can carry.

A value x becomes the level q = round(x / step) of a grid with step = clip / (2^(bits - 1) - 1); a client sends
w * q for its integer weight w, and w itself as the last element. The sum over clients decodes to
step * sum(w q) / sum(w). The weights are multiplied in as integers after rounding, so the error of the mean does not
grow with the cohort or with the weights; the server learns the sum of the weights and no single one. Derived.

Stochastic rounding, floor(x / step + u) with u uniform in [0, 1), makes the expected error zero (as in Gupta et al.,
"Deep Learning with Limited Numerical Precision", ICML 2015, arXiv 1502.02551, section 3).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pl_fed.errors import FederatedConfigError
from pl_fed.privacy.ring import RING_BITS, Ring

MAX_BITS = 32  # float64 then still has 21 bits for the fraction that decides the rounding


class CorruptSumError(RuntimeError):
    """A sum cannot come from honest encodings; the round must be thrown away."""


@dataclass(frozen=True)
class FixedPoint:
    """How floats become integers.

    Args:
        bits: Bits of one encoded value before weighting, its sign included; 2 to 32.
        clip: Largest absolute value that can be sent, in the unit of the update; larger ones are clipped and counted.
        stochastic: Round up or down at random so that the expected error is zero; otherwise to the nearest level.

    Example:
        >>> encoded = encode(torch.tensor([0.5, -9.0]), 3, FixedPoint(bits=4, clip=7.0, stochastic=False))
        >>> encoded.values, encoded.num_clipped
        (tensor([  0, -21,   3]), 1)
    """

    bits: int = 22
    clip: float = 8.0
    stochastic: bool = True

    def __post_init__(self) -> None:
        """Check the values."""
        if not isinstance(self.bits, int) or not 2 <= self.bits <= MAX_BITS:
            raise FederatedConfigError(f"Expected whole `bits` from 2 to {MAX_BITS} but got {self.bits}.")
        if not (self.clip > 0 and math.isfinite(self.clip)):
            raise FederatedConfigError(f"Expected `clip` to be positive and finite but got {self.clip}.")

    @property
    def max_level(self) -> int:
        """Largest absolute integer of one encoded value before weighting."""
        return int(2 ** (self.bits - 1) - 1)

    @property
    def step(self) -> float:
        """Distance of two levels, in the unit of the update."""
        return self.clip / self.max_level


@dataclass(frozen=True)
class Encoded:
    """One client's vector in the ring.

    Args:
        values: Weighted levels and, as the last element, the weight.
        num_clipped: How many values lay beyond the clip.
    """

    values: Int[Tensor, " sent"]
    num_clipped: int

    @property
    def clipped_share(self) -> float:
        """Share of the values that were clipped, in [0, 1]."""
        return self.num_clipped / max(self.values.numel() - 1, 1)


def check_ring(ring: Ring, config: FixedPoint, num_clients: int, max_weight: int) -> None:
    """Check that no sum of a cohort can wrap around.

    Args:
        ring: Where the sum is taken.
        config: How values are encoded.
        num_clients: Size of the cohort.
        max_weight: Largest weight that a client may have.

    Raises:
        FederatedConfigError: If the largest possible sum does not fit.
    """
    if num_clients < 1 or max_weight < 1:
        raise FederatedConfigError(
            f"Expected `num_clients` and `max_weight` to be at least 1 but got {num_clients} and {max_weight}."
        )
    largest = num_clients * max_weight * config.max_level
    if largest >= ring.half:
        raise FederatedConfigError(
            f"Expected sums below 2^{ring.bits - 1} but {num_clients} clients of weight up to {max_weight} at "
            f"{config.bits} bits can reach 2^{math.log2(largest):.1f}: lower `bits`, scale the weights down, or use a "
            "larger ring if there is one."
        )


def choose_ring(config: FixedPoint, num_clients: int, max_weight: int) -> Ring:
    """Return the smallest ring in which no sum of a cohort can wrap around; see `check_ring`."""
    for bits in RING_BITS[:-1]:
        if num_clients * max_weight * config.max_level < Ring(bits).half:
            break
    else:
        bits = RING_BITS[-1]
    check_ring(Ring(bits), config, num_clients, max_weight)
    return Ring(bits)


def encode(
    vector: Float[Tensor, " values"], weight: int, config: FixedPoint, generator: torch.Generator | None = None
) -> Encoded:
    """Encode one client's vector with its weight.

    Args:
        vector: What is averaged, for example a flattened update.
        weight: The client's integer weight in the mean, at least 1.
        config: How values are encoded.
        generator: Source of the rounding, on the CPU so that it is the same on every device; needed if `stochastic`.

    Raises:
        ValueError: If a value is not finite, or the generator is missing.
        FederatedConfigError: If the weight is not whole, below 1 or too large for 64 bits.
    """
    max_weight = (Ring(64).half - 1) // config.max_level
    if not isinstance(weight, int) or not 1 <= weight <= max_weight:
        raise FederatedConfigError(
            f"Expected a whole `weight` from 1 to {max_weight} at {config.bits} bits but got {weight}: scale it."
        )
    exact = vector.detach().to("cpu", torch.float64)
    if not bool(torch.isfinite(exact).all()):
        raise ValueError("Expected finite values but got NaN or infinity: leave this client out of the round.")
    levels = exact / config.step
    if config.stochastic:
        if generator is None:
            raise ValueError("Expected a `generator` for stochastic rounding but got None: pass a seeded one.")
        levels = torch.floor(levels + torch.rand(levels.shape, generator=generator, dtype=torch.float64))
    else:
        levels = torch.round(levels)
    num_clipped = int((exact.abs() > config.clip).sum())
    integers = levels.clamp_(-config.max_level, config.max_level).to(torch.int64) * weight
    return Encoded(torch.cat([integers, torch.tensor([weight])]), num_clipped)


def decode_mean(
    total: Int[Tensor, " sent"],
    config: FixedPoint,
    num_survivors: int,
    max_weight: int,
    dtype: torch.dtype = torch.float32,
) -> tuple[Float[Tensor, " values"], int]:
    """Return the weighted mean of the survivors' vectors and the sum of their weights.

    A sum whose masks did not cancel is uniform, so it passes the checks here with probability
    num_survivors * max_weight / 2^bits for the last element alone.

    Args:
        total: Sum of the encoded vectors, as the representatives nearest to zero.
        config: How they were encoded.
        num_survivors: How many clients are in the sum.
        max_weight: Largest weight that a client may have.
        dtype: Type of the mean.

    Raises:
        CorruptSumError: If the sum cannot come from that many honest encodings.
    """
    weight = int(total[-1])
    if not num_survivors <= weight <= num_survivors * max_weight:
        raise CorruptSumError(
            f"Expected a sum of weights of {num_survivors} to {num_survivors * max_weight} but got {weight}: masks did "
            "not cancel or a client sent a wrong weight; throw the round away."
        )
    levels = total[:-1]
    limit = weight * config.max_level
    num_beyond = int(((levels > limit) | (levels < -limit)).sum())
    if num_beyond:
        raise CorruptSumError(
            f"Expected every sum within ±{limit} but {num_beyond} of {levels.numel()} lie beyond: masks did not cancel "
            "or a client sent values beyond the clip; throw the round away."
        )
    return (levels.to(torch.float64) / weight * config.step).to(dtype), weight


def mean_error_bound(config: FixedPoint, dtype: torch.dtype = torch.float32) -> float:
    """Return the largest absolute error of a decoded mean against the exact mean of the clipped vectors.

    One step with stochastic rounding and half a step without, whatever the cohort and the weights: the error of a
    weighted mean is at most the largest error of one vector. Added is what float64 and `dtype` round on the way.
    """
    rounding = config.step if config.stochastic else config.step / 2
    return rounding * (1 + 2.0**-20) + config.clip * torch.finfo(dtype).eps
