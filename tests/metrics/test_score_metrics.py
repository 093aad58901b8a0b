"""Metrics of scores against scipy and scikit-learn, on ties, constants and next to nothing."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import mean_absolute_error, root_mean_squared_error
from torchmetrics.functional import kendall_rank_corrcoef, pearson_corrcoef, spearman_corrcoef

from pl_fed.metrics import (
    Kendall,
    Pearson,
    RootMeanAbsoluteError,
    RootMeanSquaredError,
    Spearman,
    constant_predictor,
    kendall,
    one_rater,
    pearson,
    rmae,
    rmse,
    spearman,
)
from pl_fed.metrics.correlation import average_ranks

REFERENCES = {pearson: stats.pearsonr, spearman: stats.spearmanr, kendall: stats.kendalltau}
LEVELS = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=2, max_size=30)


@settings(deadline=None, max_examples=60)
@given(LEVELS)
def test_correlations_of_ties_are_those_of_scipy(pairs: list[tuple[int, int]]) -> None:
    """Five levels tie all the time; a constant side is nan there (with a warning) and here (without)."""
    x, y = np.array(pairs, float).T
    for ours, theirs in REFERENCES.items():
        found = float(ours(torch.tensor(x), torch.tensor(y)))
        if np.ptp(x) == 0 or np.ptp(y) == 0:
            assert math.isnan(found)
        else:
            assert found == pytest.approx(theirs(x, y).statistic, abs=1e-12)
    np.testing.assert_array_equal(average_ranks(torch.tensor(x)).numpy(), stats.rankdata(x))


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.int64])
def test_any_type_of_number(kind: torch.dtype) -> None:
    """A side that hardly varies far from zero keeps its digits."""
    x = (torch.arange(50) % 7 + 1_000_000).to(kind)
    y = (torch.arange(50) % 5).to(kind)
    for ours, theirs in REFERENCES.items():
        assert float(ours(x, y)) == pytest.approx(theirs(x.double().numpy(), y.double().numpy()).statistic, abs=1e-12)


def test_correlations_are_those_of_torchmetrics() -> None:
    """To single precision, which is its own."""
    x, y = torch.randint(0, 13, (200,)) / 12, torch.rand(200)
    theirs = {pearson: pearson_corrcoef, spearman: spearman_corrcoef, kendall: kendall_rank_corrcoef}
    for ours, reference in theirs.items():
        assert float(ours(x, y)) == pytest.approx(float(reference(x, y)), abs=1e-5)


def test_continuous_scores_against_levels() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 13, 800) / 12
    x = y + rng.normal(0, 0.3, 800)
    for ours, theirs in REFERENCES.items():
        assert float(ours(torch.tensor(x), torch.tensor(y))) == pytest.approx(theirs(x, y).statistic, abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.floats(-9, 9), st.integers(-3, 3)), min_size=2, max_size=40))
def test_kendall_counts_pairs(pairs: list[tuple[float, int]]) -> None:
    """Pair by pair: the sum of the signs over the root of the pairs that are not tied."""
    x, y = (np.array(side) for side in zip(*pairs, strict=True))
    signs = [np.sign(side[:, None] - side)[np.triu_indices(len(side), 1)] for side in (x, y)]
    free = [np.abs(sign).sum() for sign in signs]
    found = float(kendall(torch.tensor(x), torch.tensor(y)))
    if 0 in free:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(float(signs[0] @ signs[1]) / math.sqrt(free[0] * free[1]), abs=1e-12)


def test_kendall_of_many_different_scores() -> None:
    """A table of the values of both would have 10^10 cells of 8 bytes."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=100_000)
    y = x + rng.normal(size=100_000)
    assert float(kendall(torch.tensor(x), torch.tensor(y))) == pytest.approx(
        stats.kendalltau(x, y).statistic, abs=1e-12
    )


def test_correlations_stay_inside_their_range() -> None:
    """Perfect agreement rounds to 1 and not above, with and without ties."""
    for num in range(2, 200):
        for x in (torch.arange(num), torch.arange(num) // 2 * 2 + 1):
            for correlation in REFERENCES:
                both = [float(correlation(x, x)), -float(correlation(x, -x))]
                assert all(math.isnan(value) or 1 - 1e-12 < value <= 1.0 for value in both)


@pytest.mark.parametrize("correlation", REFERENCES)
def test_undefined_is_nan(correlation: object) -> None:
    """Nothing, one pair, a constant (also one that a mean would round), and a nan."""
    tenth = torch.full((3,), 0.1)
    cases = [(torch.zeros(0), torch.zeros(0)), (torch.ones(1), torch.ones(1)), (tenth, torch.arange(3.0))]
    cases += [(torch.arange(3.0), tenth), (torch.tensor([0.0, math.nan, 1.0]), torch.arange(3.0))]
    for x, y in cases:
        assert math.isnan(float(correlation(x, y)))  # type: ignore[operator]


def test_two_pairs() -> None:
    x = torch.tensor([0.2, 0.7])
    for correlation in REFERENCES:
        assert float(correlation(x, x)) == pytest.approx(1.0) and float(correlation(x, -x)) == pytest.approx(-1.0)


def test_deviations() -> None:
    """By hand: errors of 0, 0.09 and 0.16 give a mean of 0.25 / 3; and the references of scikit-learn."""
    x, y = torch.tensor([0.5, 0.59, 0.16]), torch.tensor([0.5, 0.5, 0.0])
    assert float(rmae(x, y)) == pytest.approx(math.sqrt(0.25 / 3), abs=1e-7)
    assert float(rmae(x, y)) == pytest.approx(math.sqrt(mean_absolute_error(y, x)), abs=1e-7)
    assert float(rmse(x, y)) == pytest.approx(root_mean_squared_error(y, x), abs=1e-7)
    assert math.isnan(float(rmse(torch.zeros(0), torch.zeros(0))))


@pytest.mark.parametrize(
    ("metric", "function"),
    [
        (Pearson, pearson),
        (Spearman, spearman),
        (Kendall, kendall),
        (RootMeanSquaredError, rmse),
        (RootMeanAbsoluteError, rmae),
    ],
)
def test_classes_over_batches(metric: type, function: object) -> None:
    """Batches of unlike size give what the function gives of all; empty is nan, and a reset forgets."""
    x, y = torch.rand(23), torch.randint(0, 5, (23,)) / 4
    running = metric()
    assert math.isnan(float(_quiet(running)))
    for part in (slice(0, 10), slice(10, 11), slice(11, 23)):
        running.update(x[part], y[part])
    assert float(running.compute()) == pytest.approx(float(function(x, y)), abs=1e-6)  # type: ignore[operator]
    running.reset()
    running.update(x[:4], y[:4])
    assert float(running.compute()) == pytest.approx(float(function(x[:4], y[:4])), abs=1e-6)  # type: ignore[operator]


def _quiet(metric: object) -> torch.Tensor:
    """Ask a metric before its first batch, of which torchmetrics warns."""
    with pytest.warns(UserWarning, match="called before"):
        found: torch.Tensor = metric.compute()  # type: ignore[attr-defined]
    return found


def test_constant_predictor() -> None:
    """Train mean 0.5 against 0 and 1: every error is 0.5; no correlation."""
    train, target = torch.tensor([0.25, 0.75]), torch.tensor([0.0, 1.0])
    assert float(constant_predictor(rmse, train, target)) == 0.5
    assert math.isnan(float(constant_predictor(spearman, train, target)))


def test_one_rater_against_the_others() -> None:
    """The third rater has not seen the last image, the second nothing that another has seen but the first three."""
    nan = math.nan
    ratings = torch.tensor([[0.0, 0.5, 0.25], [1.0, 0.5, 0.75], [0.5, 0.5, 0.0], [0.25, nan, nan]])
    means = torch.tensor([0.375, 0.625, 0.25])
    assert float(one_rater(rmse, ratings)[0]) == pytest.approx(float(rmse(ratings[:3, 0], means)))
    found = one_rater(pearson, ratings)
    assert found.shape == (3,) and math.isnan(float(found[1]))  # a constant
    expected = stats.pearsonr([0.25, 0.75, 0.0], [0.25, 0.75, 0.5]).statistic
    assert float(found[2]) == pytest.approx(expected)
