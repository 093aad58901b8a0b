"""Reference lines for predicted scores: a predictor that knows only the mean, and one human against the others."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Num
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


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


class OneRater(Metric):
    """Figures of one rater against the mean of the others, over all batches: the mean over raters of `one_rater`.

    Raters for whom a figure is not defined are left out of its mean.

    Args:
        formulas: Functions of `pl_fed.metrics` by the names of their figures.
    """

    is_differentiable = False
    full_state_update = False
    own: list[Tensor]
    others: list[Tensor]
    raters: list[Tensor]

    def __init__(self, formulas: Mapping[str, Callable[[Tensor, Tensor], Tensor]], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.formulas = dict(formulas)
        for name in ("own", "others", "raters"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, ratings: Float[Tensor, "batch raters"]) -> None:
        """Keep a batch of ratings; nan where a rater has not rated an image."""
        known = ~ratings.isnan()
        sums, counts = ratings.nansum(1, keepdim=True), known.sum(1, keepdim=True)
        others = (sums - ratings) / (counts - 1)
        usable = known & (counts > 1)  # (batch, raters)
        self.own.append(ratings[usable])
        self.others.append(others[usable])
        self.raters.append(usable.nonzero()[:, 1])

    def compute(self) -> dict[str, Tensor]:
        """Return the figures by name; nan where none is defined."""
        if not len(self.own):  # after a synchronisation it is a tensor
            return {name: torch.tensor(float("nan")) for name in self.formulas}
        own, others, raters = (dim_zero_cat(state) for state in (self.own, self.others, self.raters))
        chosen = [raters == rater for rater in raters.unique()]
        found: dict[str, Tensor] = {}
        for name, formula in self.formulas.items():
            values = [formula(own[mine], others[mine]) for mine in chosen]
            found[name] = torch.stack(values).nanmean() if values else torch.tensor(float("nan"))
        return found
