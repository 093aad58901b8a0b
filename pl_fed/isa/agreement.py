"""How far raters agree: pairwise correlations, intraclass correlations and their intervals.

A pair is compared on the images that both have rated, an intraclass correlation is taken over the images that all
raters of a group have rated; each row says how many these are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pl_fed.errors import FederatedConfigError
from pl_fed.isa.ratings import Ratings
from pl_fed.isa.ratings_layouts import SCORES
from pl_fed.metrics import icc, interval, kendall, one_rater, pearson, resample, rmse, spearman, spearman_brown
from pl_fed.metrics.reliability import Kind

CORRELATIONS = {"PCC": pearson, "SRCC": spearman, "Kendall tau-b": kendall}
REFERENCES = {"PCC": pearson, "SRCC": spearman, "RMSE": rmse}
PAIRS, AGAINST = "mean of pairs", "one against the others"
LEGEND = (
    "PCC: Pearson, SRCC: Spearman with average ranks. ICC(2,k): two-way random raters, absolute agreement, mean of the "
    "k raters; (2,1): one rater; ICC(3,k), ICC(3,1): consistency, raters' levels aside (Shrout & Fleiss 1979). "
    "Spearman-Brown: reliability of the mean of the raters from the mean PCC of pairs. One against the others: a rater "
    "and the mean of the rest, on average; what a scorer has to reach to be as good as one human."
)


@dataclass(frozen=True)
class AgreementConfig:
    """What is computed.

    Args:
        by: Column such as ``site`` whose groups of raters are compared by themselves; None takes all raters together.
        icc: Which intraclass correlations.
        num_resamples: Resamples of the images for the intervals; 0 gives none.
        level: Share of the resamples inside an interval.
        seed: Seed of the resamples.
    """

    by: str | None = None
    icc: tuple[Kind, ...] = ("ICC(2,k)", "ICC(2,1)", "ICC(3,k)")
    num_resamples: int = 1000
    level: float = 0.95
    seed: int = 0


@dataclass(frozen=True)
class AgreementRow:
    """One figure.

    Args:
        group: Group of raters; empty where all are one.
        score: ``entity`` or ``semantic``.
        measure: What is measured.
        raters: Whose agreement it is.
        num_images: Images that it is taken over; for the mean of pairs the smallest number.
        value: The figure; nan where it is not defined.
        low: Lower end of its interval.
        high: Upper end.
    """

    group: str
    score: str
    measure: str
    raters: str
    num_images: int
    value: float
    low: float
    high: float


def agreement(ratings: Ratings, config: AgreementConfig = AgreementConfig()) -> list[AgreementRow]:
    """Return the agreement of raters, by group and score.

    Args:
        ratings: Ratings of two or more raters.
        config: What is computed.

    Raises:
        FederatedConfigError: If a group has fewer than two raters.
    """
    rows = []
    for group in ratings.groups(config.by):
        scores = ratings.of_group(config.by, group).scores
        present = np.flatnonzero(~np.isnan(scores).all((0, 2)))
        names = [ratings.raters[i] for i in present]
        if len(names) < 2:
            where = f"group '{group}' of '{config.by}'" if config.by else f"'{ratings.source}'"
            raise FederatedConfigError(
                f"Expected at least two raters in {where} but got {', '.join(names) or 'none'}: agreement needs a "
                "rating of each rater, in the long or the wide layout."
            )
        for i, score in enumerate(SCORES):
            rated = ~np.isnan(scores[:, :, i]).all(1)
            values = torch.from_numpy(scores[rated][:, present, i])  # (images, raters)
            rows += [AgreementRow(group, score, *row) for row in _of_score(values, names, config)]
    return rows


def _of_score(
    values: Float[Tensor, "images raters"], names: Sequence[str], config: AgreementConfig
) -> list[tuple[str, str, int, float, float, float]]:
    """Return the rows of one score, without group and score."""
    known = ~values.isnan()
    pairs = list(combinations(range(len(names)), 2))
    shared = [int((known[:, a] & known[:, b]).sum()) for a, b in pairs]
    complete = values[known.all(1)]
    twice = int((known.sum(1) >= 2).sum())
    labels, everyone = [*(f"{names[a]} - {names[b]}" for a, b in pairs), PAIRS], f"all {len(names)}"
    about = [(measure, label) for measure in CORRELATIONS for label in labels]
    about += [("Spearman-Brown", everyone), *((measure, AGAINST) for measure in REFERENCES)]
    about += [(kind, everyone) for kind in config.icc]
    counts = [*[*shared, min(shared)] * len(CORRELATIONS), min(shared), *[twice] * len(REFERENCES)]
    counts += [len(complete)] * len(config.icc)

    def of_pairs(images: Tensor) -> list[float]:
        return _pair_figures(values[images], pairs)

    def of_all(images: Tensor) -> list[float]:
        return [float(icc(complete[images], kind)) for kind in config.icc]

    columns: list[tuple[float, np.ndarray]] = []
    for figures, num_images in ((of_pairs, len(values)), (of_all, len(complete))):
        found = figures(torch.arange(num_images))
        drawn = resample(figures, num_images, config.num_resamples, config.seed)
        columns += zip(found, drawn.reshape(len(drawn), len(found)).T, strict=True)
    ends = [interval(value, drawn, config.level) for value, drawn in columns]
    return [
        (measure, who, count, end.value, end.low, end.high)
        for (measure, who), count, end in zip(about, counts, ends, strict=True)
    ]


def _pair_figures(values: Float[Tensor, "images raters"], pairs: Sequence[tuple[int, int]]) -> list[float]:
    """Return every correlation of every pair and its mean, the Spearman-Brown figure, and those against the others."""
    figures, stepped_up = [], math.nan
    for measure, correlation in CORRELATIONS.items():
        found = []
        for a, b in pairs:
            both = ~(values[:, a].isnan() | values[:, b].isnan())
            found.append(float(correlation(values[both, a], values[both, b])))
        mean = sum(found) / len(found)
        figures += [*found, mean]
        stepped_up = spearman_brown(mean, values.shape[1]) if measure == "PCC" else stepped_up
    return [*figures, stepped_up, *(float(one_rater(metric, values).mean()) for metric in REFERENCES.values())]
