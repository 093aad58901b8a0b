"""Percentile bootstrap over images: Efron, "Bootstrap Methods: Another Look at the Jackknife", Ann. Statist. 1979."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, Num
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from pl_fed.errors import FederatedConfigError


@dataclass(frozen=True)
class Interval:
    """A figure with its interval.

    Args:
        value: The figure of all images; nan where it is not defined.
        low: Lower end of the interval.
        high: Upper end.
        num_undefined: Resamples in which the figure is not defined; they are left out. The ends are nan where that is
            more than half of them.
    """

    value: float
    low: float
    high: float
    num_undefined: int = 0


def resample(
    figures: Callable[[Int64[Tensor, " images"]], float | Sequence[float] | Tensor],
    num_images: int,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Float[np.ndarray, "resamples *figures"]:
    """Return one or several figures of images drawn with replacement.

    Args:
        figures: Gives the figures of the images with these indices, some of them several times.
        num_images: Number of images, and of the draws in a resample.
        num_resamples: Number of resamples.
        seed: Seed of the draws.

    Raises:
        FederatedConfigError: If `num_resamples` is negative.
    """
    if num_resamples < 0:
        raise FederatedConfigError(f"Expected `num_resamples` to be at least 0 but got {num_resamples}.")
    rng = np.random.default_rng(seed)
    num_resamples *= num_images > 0
    draws = (torch.from_numpy(rng.integers(num_images, size=num_images)) for _ in range(num_resamples))
    return np.array([np.asarray(figures(draw), np.float64) for draw in draws], np.float64)


def interval(value: float, found: Float[np.ndarray, " resamples"], level: float = 0.95) -> Interval:
    """Return a figure with the percentiles of its resamples.

    Args:
        value: The figure of all images.
        found: The figure of every resample.
        level: Share of the resamples inside the interval.

    Raises:
        FederatedConfigError: If `level` is no share.
    """
    if not 0.0 < level < 1.0:
        raise FederatedConfigError(f"Expected `level` between 0 and 1 but got {level}: 0.95 is usual.")
    defined = found[~np.isnan(found)]
    num_undefined = len(found) - len(defined)
    if not len(defined) or num_undefined > len(defined):
        return Interval(value, float("nan"), float("nan"), num_undefined)
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), num_undefined)


def bootstrap(
    metric: Callable[[Tensor, Tensor], Tensor],
    preds: Num[Tensor, " images"],
    target: Num[Tensor, " images"],
    num_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return a metric of scores and its percentile interval.

    Args:
        metric: Any of the functions of `pl_fed.metrics`.
        preds: Scores.
        target: Scores of the same images.
        num_resamples: Number of resamples.
        level: Share of them inside the interval.
        seed: Seed of the draws.

    Example:
        >>> from pl_fed.metrics import rmse
        >>> bootstrap(rmse, torch.zeros(5), torch.full((5,), 0.5))
        Interval(value=0.5, low=0.5, high=0.5, num_undefined=0)
    """
    found = resample(lambda images: metric(preds[images], target[images]), len(target), num_resamples, seed)
    return interval(float(metric(preds, target)), found, level)


class BootstrapInterval(Metric):
    """The interval of a figure over all batches.

    Args:
        formula: Any of the functions of `pl_fed.metrics`.
        num_resamples: Number of resamples.
        level: Share of them inside the interval.
        seed: Seed of the draws.
    """

    is_differentiable = False
    full_state_update = False
    preds: list[Tensor]
    target: list[Tensor]

    def __init__(
        self,
        formula: Callable[[Tensor, Tensor], Tensor],
        num_resamples: int = 1000,
        level: float = 0.95,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.formula, self.settings = formula, (num_resamples, level, seed)
        self.add_state("preds", default=[], dist_reduce_fx="cat")
        self.add_state("target", default=[], dist_reduce_fx="cat")

    def update(self, preds: Num[Tensor, " batch"], target: Num[Tensor, " batch"]) -> None:
        """Keep a batch of scores."""
        self.preds.append(preds.detach())
        self.target.append(target.detach())

    def compute(self) -> dict[str, Tensor]:
        """Return the ends, ``low`` and ``high``; nan where they are not defined."""
        low = high = float("nan")
        if len(self.preds):  # after a synchronisation it is a tensor
            preds, target = dim_zero_cat(self.preds).cpu(), dim_zero_cat(self.target).cpu()
            ends = bootstrap(self.formula, preds, target, *self.settings)
            low, high = ends.low, ends.high
        return {"low": torch.tensor(low), "high": torch.tensor(high)}
