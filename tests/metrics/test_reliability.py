"""Intervals and reliability: against the published example, scipy, and identities."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from pl_fed.errors import FederatedConfigError
from pl_fed.metrics import bootstrap, icc, pearson, rmse, spearman_brown

# Shrout and Fleiss 1979, table 2: six targets, four judges.
TABLE = torch.tensor([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]])
PUBLISHED = {"ICC(2,1)": 0.29, "ICC(3,1)": 0.71, "ICC(2,k)": 0.62, "ICC(3,k)": 0.91}  # their table 4


@pytest.mark.parametrize(("kind", "value"), PUBLISHED.items())
def test_icc_is_that_of_shrout_and_fleiss(kind: str, value: float) -> None:
    assert round(float(icc(TABLE, kind)), 2) == value  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["2", "3"])
def test_mean_of_k_raters_is_spearman_brown_of_one(kind: str) -> None:
    single, average = (float(icc(TABLE, f"ICC({kind},{k})")) for k in ("1", "k"))  # type: ignore[arg-type]
    assert spearman_brown(single, 4) == pytest.approx(average, abs=1e-12)


def test_consistency_forgives_a_strict_rater_and_agreement_does_not() -> None:
    """The same ranking one level lower: consistent to 1, in absolute agreement below."""
    ratings = torch.tensor([[1.0, 2.0], [2.0, 3.0], [4.0, 5.0]])
    assert float(icc(ratings, "ICC(3,k)")) == pytest.approx(1.0)
    assert float(icc(ratings, "ICC(2,k)")) < 0.95


def test_icc_of_next_to_nothing() -> None:
    assert math.isnan(float(icc(torch.ones(1, 3)))) and math.isnan(float(icc(torch.ones(3, 1))))
    assert math.isnan(float(icc(torch.ones(4, 3))))
    with pytest.raises(FederatedConfigError, match="a rating of every rater for every image but 1 are missing: keep"):
        icc(torch.tensor([[1.0, math.nan], [2.0, 3.0]]))
    with pytest.raises(FederatedConfigError, match=r"`kind` to be one of ICC\(2,1\), .* but got 'ICC\(1,1\)'"):
        icc.__wrapped__(TABLE, "ICC(1,1)")  # past the checker of types


def test_spearman_brown_without_an_answer() -> None:
    assert math.isnan(spearman_brown(-1.0, 2))


def test_intervals_are_those_of_scipy() -> None:
    """Percentiles of 4,000 resamples of the mean and of a correlation; the seeds differ, the ends hardly do."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=80)
    y = x + rng.normal(size=80)
    ours = bootstrap(pearson, torch.tensor(x), torch.tensor(y), num_resamples=4000)
    theirs = stats.bootstrap(
        (x, y),
        lambda a, b: stats.pearsonr(a, b).statistic,
        paired=True,
        vectorized=False,
        n_resamples=4000,
        method="percentile",
        rng=2,
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)
    assert ours.value == pytest.approx(stats.pearsonr(x, y).statistic) and ours.num_undefined == 0


def test_intervals_are_a_function_of_the_seed() -> None:
    x, y = torch.rand(20), torch.rand(20)
    assert bootstrap(rmse, x, y, 50) == bootstrap(rmse, x, y, 50)
    assert bootstrap(rmse, x, y, 50) != bootstrap(rmse, x, y, 50, seed=1)


def test_undefined_resamples() -> None:
    """One of 30 differs: 1 / e of the resamples miss it, about 147 of 400."""
    x = torch.zeros(30)
    x[0] = 1.0
    found = bootstrap(pearson, x, x, 400)
    assert 80 < found.num_undefined < 200 and (found.low, found.high) == pytest.approx((1.0, 1.0))
    never = bootstrap(pearson, torch.ones(5), torch.rand(5), 50)
    assert math.isnan(never.value) and math.isnan(never.low) and never.num_undefined == 50
    nothing = bootstrap(rmse, torch.zeros(0), torch.zeros(0))
    assert math.isnan(nothing.value) and math.isnan(nothing.high)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": 1.0}, "`level` between 0 and 1 but got 1.0"),
        ({"num_resamples": -1}, "`num_resamples` to be at least 0 but got -1"),
    ],
)
def test_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(FederatedConfigError, match=message):
        bootstrap(rmse, torch.ones(3), torch.ones(3), **options)  # type: ignore[arg-type]
