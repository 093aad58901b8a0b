"""From a label mix to whole numbers, also when the batch size or the scale of the gradient is unknown. Derived."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pl_fed.attacks.losses import LossSpec

LARGEST_BATCH = 4096  # where the search for an unknown batch size ends
INTEGRAL = 0.01  # how far from whole numbers counts may lie that are taken for whole


def largest_remainder(raw: Float[Tensor, " classes"], total: int) -> Int[Tensor, " classes"]:
    """Round to whole numbers of 0 or more that sum to `total`.

    Example:
        >>> largest_remainder(torch.tensor([1.4, 0.5, 0.1]), 2)
        tensor([1, 1, 0])
    """
    raw = raw.double().nan_to_num().clamp(min=0)
    mass = float(raw.sum())
    shares = raw * (total / mass) if mass > 0 else torch.full_like(raw, total / len(raw))
    whole = shares.floor().long()
    missing = total - int(whole.sum())
    order = torch.argsort(shares - whole, descending=True, stable=True)
    whole[order[:missing]] += 1
    return whole


def round_counts(
    raw: Float[Tensor, " classes"], batch_size: int, one_label_each: bool = True
) -> Int[Tensor, " classes"]:
    """Round a client's raw counts; with several labels a sample each class is rounded on its own."""
    if one_label_each:
        return largest_remainder(raw, batch_size)
    return raw.nan_to_num().round().long().clamp(0, batch_size)


def smallest_batch(
    mix: Float[Tensor, " classes"], limit: int = LARGEST_BATCH, tolerance: float = INTEGRAL
) -> int | None:
    """Return the smallest batch size that makes all counts whole, or None.

    Counts with a common divisor give the size divided by it: the mix is then the same.

    Args:
        mix: Counts over batch size.
        limit: Largest size to try.
        tolerance: How far from a whole number a count may lie.

    Example:
        >>> smallest_batch(torch.tensor([0.6, 0.4], dtype=torch.float64))
        5
    """
    sizes = torch.arange(1, limit + 1, dtype=torch.float64)
    raw = sizes[:, None] * mix.double()  # (sizes, classes)
    good = ((raw - raw.round()).abs().amax(1) <= tolerance).nonzero().flatten()
    return int(sizes[good[0]]) if len(good) else None


def unknown_scale(
    gamma: Float[Tensor, " classes"], logits: Float[Tensor, " classes"], loss: LossSpec, batch_size: int | None = None
) -> tuple[float, bool]:
    """Return the unknown positive factor between gradient and Gamma, and whether it was confirmed.

    The label mix of the gradient Gamma / factor is a fraction of two affine functions of 1 / factor (`mix_fraction`).
    The share of a class without samples is 0, which gives the factor at once; with that of another class some share
    would be below 0, so it is the largest. Where the batch size is known but every class has samples, the rarest class
    is tried with 1, 2, ... samples until all counts are whole.

    Args:
        gamma: The gradient times the factor.
        logits: The client's logits.
        loss: The loss.
        batch_size: The number of labels if known; it also serves to confirm the factor.
    """
    above, below = loss.mix_fraction(logits, torch.zeros_like(gamma))  # of no gradient
    falls, sinks = (x - y for x, y in zip((above, below), loss.mix_fraction(logits, gamma), strict=True))
    ratios = torch.where(above > 0, falls / above, -torch.inf)
    rarest = int(ratios.argmax())
    first = float(ratios[rarest])
    if batch_size is None or first <= 0:
        return max(first, 1e-300), False
    for count in range(batch_size + 1):
        # The factor at which the rarest class has so many samples: batch_size * above / below = count.
        level = float(batch_size * above[rarest] - count * below[rarest])
        if level <= 0:
            break
        scale = float(batch_size * falls[rarest] - count * sinks[rarest]) / level
        if scale <= 0:
            break
        raw = batch_size * loss.label_mix(logits, gamma / scale)
        if float((raw - raw.round()).abs().max()) <= INTEGRAL * 5 and float(raw.min()) > -0.5:
            return scale, True
    return first, False
