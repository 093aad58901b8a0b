"""A warning that a client's model was crafted: the input of its final layer does not depend on the sample. Derived.

A fishing model gives every sample of a batch the same embedding (see `fishing`). The client can look: it needs no other
model to compare with and never reads a norm layer, whose weight may be 0 in an honest network too (residual branches
that start at zero). It is a warning, no guarantee: a norm weight that is small but not 0 passes, and leaks next to as
much.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

THRESHOLD = 1e-3  # nearly all features of honest networks stay above; see docs/label_inference.md
LEAST_SHARE = 0.25  # of the rows in which a feature must not be 0 for its spread to mean something


@dataclass(frozen=True)
class Reading:
    """What the input of a final layer looks like over one batch.

    Args:
        num_rows: Rows of the input: samples, or tokens.
        num_judged: Features that are not 0 in enough rows.
        smallest_spread: Smallest standard deviation over absolute mean of a judged feature; infinite without any.
        flagged_share: Share of the judged features whose spread is below the threshold.
        variance_share: Variance over energy (mean square), both summed over the judged features.
        fished: Whether most judged features are flagged, or next to all energy is in what does not vary.
    """

    num_rows: int
    num_judged: int
    smallest_spread: float
    flagged_share: float
    variance_share: float
    fished: bool

    @property
    def judged(self) -> bool:
        """Whether the batch says anything: one row does not, nor does an input of zeros."""
        return self.num_judged > 0


def read_tripwire(rows: Float[Tensor, "rows features"], threshold: float = THRESHOLD) -> Reading:
    r"""Return the statistics of a final layer's input.

    .. math:: s_j = \mathrm{std}_j / |\mathrm{mean}_j| \qquad
        v = \sum_j \mathrm{var}_j / \sum_j (\mathrm{var}_j + \mathrm{mean}_j^2)

    Zeros do not count: a ReLU puts them there, and a dropout before the head would otherwise hide the constant.

    Args:
        rows: The input, one row for each sample or token.
        threshold: Spread below which a feature is flagged; its square is that of `variance_share`.

    Example:
        >>> import torch
        >>> reading = read_tripwire(torch.tensor([[2.0, 0.0, 1.0], [2.0, 0.0, 1.0]]))
        >>> reading.num_judged, reading.flagged_share, reading.fished
        (2, 1.0, True)
    """
    num_rows, there = len(rows), (rows != 0).double()  # (rows, features)
    counts, values = there.sum(0), rows.detach().double()
    judged = counts >= max(2.0, LEAST_SHARE * num_rows)
    counts, values, there = counts[judged], values[:, judged], there[:, judged]
    if len(counts) == 0:
        return Reading(num_rows, 0, float("inf"), 0.0, 1.0, False)
    mean = values.sum(0) / counts
    variance = ((values - mean).square() * there).sum(0) / counts
    spread = variance.sqrt() / mean.abs()
    flagged = float((spread < threshold).double().mean())
    variance_share = float(variance.sum() / (variance + mean.square()).sum())
    fished = flagged > 0.5 or variance_share < threshold**2
    return Reading(num_rows, len(counts), float(spread.min()), flagged, variance_share, fished)
