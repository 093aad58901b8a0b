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

    A class without samples has the largest gradient that it can have, so Gamma over that ceiling is largest there and
    equals the factor. Where the batch size is known but every class has samples, the rarest class is tried with
    1, 2, ... samples until all counts are whole.

    Args:
        gamma: The gradient times the factor.
        logits: The client's logits.
        loss: The loss.
        batch_size: The number of labels if known; it also serves to confirm the factor.
    """
    ceiling = loss.ceiling(logits)
    ratios = torch.where(ceiling > 0, gamma / ceiling, -torch.inf)
    rarest = int(ratios.argmax())
    first = float(ratios[rarest])
    if batch_size is None or first <= 0:
        return max(first, 1e-300), False
    probability = loss.ceiling(logits)[rarest]
    for count in range(batch_size + 1):
        # One sample lowers the rarest class's gradient by what the loss says; linear, so the ends are enough.
        mix = torch.zeros_like(logits)
        mix[rarest] = count / batch_size
        level = probability - _slope(loss, logits, rarest) * mix[rarest]
        if float(level * gamma[rarest]) <= 0:
            break
        scale = float(gamma[rarest] / level)
        raw = batch_size * loss.label_mix(logits, gamma / scale)
        if float((raw - raw.round()).abs().max()) <= INTEGRAL * 5 and float(raw.min()) > -0.5:
            return scale, True
    return first, False


def _slope(loss: LossSpec, logits: Tensor, class_idx: int) -> float:
    """Return how much one class's gradient falls when its share of an unweighted batch grows from 0 to 1."""
    if loss.name == "bce_with_logits":
        p = float(torch.sigmoid(logits[class_idx]))
        positive = 1.0 if loss.class_weights is None else loss.class_weights[class_idx]
        return (p + positive * (1 - p)) / len(logits)
    return 1.0 - loss.label_smoothing
