"""Reference lines for predicted scores: a predictor that knows only the mean, and one human against the others."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Num
from torch import Tensor


def constant_predictor(
    metric: Callable[[Tensor, Tensor], Tensor], train: Num[Tensor, " train"], target: Num[Tensor, " images"]
) -> Float[Tensor, ""]:
    """Return the metric of always predicting the mean of the training scores; correlations are nan.

    Args:
        metric: Any of the functions of `pl_fed.metrics`.
        train: Training scores.
        target: Scores to predict.
    """
    mean = train.double().mean()
    return metric(mean.repeat(len(target)), target.double())


def one_rater(
    metric: Callable[[Tensor, Tensor], Tensor], ratings: Float[Tensor, "images raters"]
) -> Float[Tensor, " raters"]:
    """Return the metric of every rater against the mean of the other raters.

    An image counts where the rater and at least one other have rated it; a rater without such images gets what the
    metric says of nothing.

    Args:
        metric: Any of the functions of `pl_fed.metrics`.
        ratings: Scores; nan where a rater has not rated an image.
    """
    found = []
    for rater in range(ratings.shape[1]):
        own = ratings[:, rater].double()
        others = torch.cat([ratings[:, :rater], ratings[:, rater + 1 :]], 1).double().nanmean(1)
        known = ~(own.isnan() | others.isnan())
        found.append(metric(own[known], others[known]))
    return torch.stack(found)
