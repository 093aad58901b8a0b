"""Pearson's and Spearman's correlation and Kendall's tau-b of scores with ties, in double precision.

Undefined is nan, without a warning: fewer than two pairs, a side without spread, or a nan among the values.
torchmetrics warns where Pearson's correlation is not defined, calls Spearman's of a constant 0 and is off in the sixth
digit, and compares all pairs for Kendall's tau, which a bootstrap over thousands of images cannot afford; hence the
formulas here.
"""

import math
from abc import abstractmethod
from typing import Any

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

UNDEFINED = float("nan")


def pearson(preds: Num[Tensor, " images"], target: Num[Tensor, " images"]) -> Float[Tensor, ""]:
    r"""Return Pearson's correlation.

    .. math:: r = \frac{\sum_i (x_i - \bar x)(y_i - \bar y)}{\sqrt{\sum_i (x_i - \bar x)^2 \sum_i (y_i - \bar y)^2}}

    Args:
        preds: Scores.
        target: Scores of the same images.

    Example:
        >>> round(float(pearson(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0, 5.0]))), 4)
        0.982
    """
    x, y = preds.double(), target.double()
    if len(x) < 2 or not (_varies(x) and _varies(y)):  # a mean that is rounded would leave a constant some spread
        return torch.tensor(UNDEFINED, dtype=torch.float64)
    x, y = x - x.mean(), y - y.mean()
    found: Tensor = x @ y / (torch.linalg.vector_norm(x) * torch.linalg.vector_norm(y))
    return found.clamp(-1.0, 1.0)


def _varies(values: Float[Tensor, " images"]) -> bool:
    return bool((values != values[0]).any()) and not bool(values.isnan().any())


def average_ranks(values: Num[Tensor, " images"]) -> Float[Tensor, " images"]:
    """Return ranks from 1; equal values share the mean of their ranks.

    Example:
        >>> average_ranks(torch.tensor([7, 3, 7])).tolist()
        [2.5, 1.0, 2.5]
    """
    _, which, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0)
    ranks: Tensor = last - (counts - 1) / 2
    return ranks[which].double()


def spearman(preds: Num[Tensor, " images"], target: Num[Tensor, " images"]) -> Float[Tensor, ""]:
    """Return Spearman's correlation: Pearson's of the average ranks.

    Args:
        preds: Scores.
        target: Scores of the same images.
    """
    if preds.isnan().any() or target.isnan().any():  # every nan would get a rank of its own
        return torch.tensor(UNDEFINED, dtype=torch.float64)
    return pearson(average_ranks(preds), average_ranks(target))


def kendall(preds: Num[Tensor, " images"], target: Num[Tensor, " images"]) -> Float[Tensor, ""]:
    r"""Return Kendall's tau-b.

    .. math:: \tau_b = (C - D) / \sqrt{(P - T_x)(P - T_y)}

    with the concordant, discordant and all pairs of images, and the pairs that are tied in either score. Pairs are
    counted without going through them (Knight, "A Computer Method for Calculating Kendall's Tau with Ungrouped Data",
    JASA 1966): in the order of `preds`, the discordant ones are those where `target` falls.

    Args:
        preds: Scores.
        target: Scores of the same images.
    """
    if preds.isnan().any() or target.isnan().any():
        return torch.tensor(UNDEFINED, dtype=torch.float64)
    x = torch.unique(preds, return_inverse=True)[1]
    values, y = torch.unique(target, return_inverse=True)
    both = (x * len(values) + y).sort().values  # by x, and by y where x is tied, so that ties count as no fall
    num_pairs, num_falls = len(x) * (len(x) - 1) // 2, _num_falls(both % max(len(values), 1))
    ties = [_num_ties(ranks) for ranks in (x, y, both)]
    free = [num_pairs - ties[0], num_pairs - ties[1]]
    if min(free) == 0:
        return torch.tensor(UNDEFINED, dtype=torch.float64)
    difference = num_pairs - ties[0] - ties[1] + ties[2] - 2 * num_falls
    tau = difference / math.sqrt(free[0]) / math.sqrt(free[1])
    return torch.tensor(tau, dtype=torch.float64, device=preds.device).clamp(-1.0, 1.0)


def _num_ties(values: Int[Tensor, " images"]) -> int:
    """Return the number of pairs with equal values."""
    counts = torch.unique(values, return_counts=True)[1]
    return int((counts * (counts - 1) // 2).sum())


def _num_falls(ranks: Int[Tensor, " images"]) -> int:
    """Return the number of pairs whose first rank is the larger one, in O(n log n) a binary digit of the ranks.

    Each pair is counted at the first digit in which it differs: by then those that agree so far stand together, in
    their old order, and the pair falls if a one stands before a zero.
    """
    num = 0
    for digit in reversed(range(int(ranks.max()).bit_length() if len(ranks) else 0)):
        group, is_one = ranks >> (digit + 1), (ranks >> digit) & 1
        ones_before = is_one.cumsum(0) - is_one
        ones_before = ones_before - ones_before[torch.searchsorted(group, group)]  # those of the group alone
        num += int(ones_before[is_one == 0].sum())
        ranks = ranks[(ranks >> digit).argsort(stable=True)]
    return num


class Correlation(Metric):
    """Keeps the scores of all batches and correlates them at the end; a subclass names the formula."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    preds: list[Tensor]
    target: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("preds", default=[], dist_reduce_fx="cat")
        self.add_state("target", default=[], dist_reduce_fx="cat")

    @staticmethod
    @abstractmethod
    def formula(preds: Tensor, target: Tensor) -> Tensor:
        """Return the correlation of some scores."""

    def update(self, preds: Num[Tensor, " batch"], target: Num[Tensor, " batch"]) -> None:
        """Keep a batch of scores."""
        self.preds.append(preds.detach())
        self.target.append(target.detach())

    def compute(self) -> Tensor:
        """Return the correlation of all scores; nan where it is not defined."""
        if not len(self.preds):  # after a synchronisation it is a tensor
            return torch.tensor(UNDEFINED)
        return self.formula(dim_zero_cat(self.preds), dim_zero_cat(self.target)).float()


class Pearson(Correlation):
    """Pearson's correlation of all batches."""

    formula = staticmethod(pearson)


class Spearman(Correlation):
    """Spearman's correlation of all batches, with average ranks for ties."""

    formula = staticmethod(spearman)


class Kendall(Correlation):
    """Kendall's tau-b of all batches."""

    formula = staticmethod(kendall)
