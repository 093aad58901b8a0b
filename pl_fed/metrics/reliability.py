"""Reliability of raters: intraclass correlations of Shrout and Fleiss, and the formula of Spearman and Brown.

P. E. Shrout and J. L. Fleiss, "Intraclass Correlations: Uses in Assessing Rater Reliability", Psychological Bulletin
86(2), 1979: ICC(2,1) and ICC(2,k), two-way random raters, absolute agreement; ICC(3,1) and ICC(3,k), two-way mixed,
consistency. The letter k is for the mean of all raters, 1 for a single one.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Float, Num
from torch import Tensor

from pl_fed.errors import FederatedConfigError

Kind = Literal["ICC(2,1)", "ICC(2,k)", "ICC(3,1)", "ICC(3,k)"]


def icc(ratings: Num[Tensor, "images raters"], kind: Kind = "ICC(2,k)") -> Float[Tensor, ""]:
    r"""Return an intraclass correlation; nan for fewer than two images or raters, and where nothing varies.

    .. math:: ICC(2,1) = \frac{B - E}{B + (k - 1) E + k (J - E) / n} \qquad ICC(3,1) = \frac{B - E}{B + (k - 1) E}

    with the mean squares between images B, between raters J and of the residual E, n images and k raters.

    Args:
        ratings: Scores; every rater has rated every image.
        kind: Which one, in the names of Shrout and Fleiss.

    Raises:
        FederatedConfigError: If a rating is missing, or there is no such kind.
    """
    if kind not in get_args(Kind):
        raise FederatedConfigError(f"Expected `kind` to be one of {', '.join(get_args(Kind))} but got '{kind}'.")
    if ratings.isnan().any():
        raise FederatedConfigError(
            f"Expected a rating of every rater for every image but {int(ratings.isnan().sum())} are missing: keep the "
            "images that all have rated."
        )
    num_images, num_raters = ratings.shape
    if min(num_images, num_raters) < 2:
        return torch.tensor(float("nan"), dtype=torch.float64)
    between, judges, residual = _mean_squares(ratings.double())
    bias = (judges - residual) / num_images if kind.startswith("ICC(2") else torch.zeros_like(between)
    noise = bias if kind.endswith("k)") else (num_raters - 1) * residual + num_raters * bias
    return (between - residual) / (between + noise)  # 0 / 0 is nan


def _mean_squares(ratings: Float[Tensor, "images raters"]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean squares between images, between raters, and of the residual."""
    num_images, num_raters = ratings.shape
    centred = ratings - ratings.mean()
    of_images, of_raters = centred.mean(1, keepdim=True), centred.mean(0, keepdim=True)
    between = num_raters * of_images.square().sum() / (num_images - 1)
    judges = num_images * of_raters.square().sum() / (num_raters - 1)
    residual = (centred - of_images - of_raters).square().sum() / ((num_images - 1) * (num_raters - 1))
    return between, judges, residual


def spearman_brown(reliability: float, factor: float) -> float:
    """Return the reliability of the mean of `factor` times as many raters.

    Args:
        reliability: Reliability of the ratings now, for example the mean correlation of two raters.
        factor: How many times as many.

    Example:
        >>> spearman_brown(0.5, 3)
        0.75
    """
    divisor = 1 + (factor - 1) * reliability
    return factor * reliability / divisor if divisor else float("nan")
