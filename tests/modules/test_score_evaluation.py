"""Figures of scores against scipy and scikit-learn, by client by hand."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import mean_absolute_error, root_mean_squared_error

from pl_fed.metrics import bootstrap, spearman
from pl_fed.modules.score_evaluation import ScoreEvaluation

NAN = math.nan


def test_figures_of_two_scores_in_batches_with_missing_ratings() -> None:
    rng = np.random.default_rng(1)
    scores, targets = rng.random((30, 2)), np.round(rng.random((30, 2)) * 4) / 4
    targets[[3, 17], 0] = np.nan
    targets[5] = np.nan
    means = np.nanmean(targets[:10], 0)
    evaluation = ScoreEvaluation(("entity", "semantic"), torch.from_numpy(means).float())
    for part in (slice(0, 11), slice(11, 30)):
        found, wanted = (torch.from_numpy(x[part]).float() for x in (scores, targets))
        losses = torch.where(wanted.isnan(), 0.0, 2.0)
        evaluation.update(found, wanted, losses, torch.full((len(found),), -1))
    results = evaluation.results(evaluation.table())
    assert results["loss"] == pytest.approx(2.0)
    for i, name in enumerate(("entity", "semantic")):
        known = ~np.isnan(targets[:, i])
        x, y = scores[known, i], targets[known, i]
        expected = {
            "rmse": root_mean_squared_error(y, x),
            "rmae": mean_absolute_error(y, x) ** 0.5,
            "pcc": stats.pearsonr(x, y).statistic,
            "srcc": stats.spearmanr(x, y).statistic,
            "kendall": stats.kendalltau(x, y).statistic,
            "constant_rmse": root_mean_squared_error(y, np.full_like(y, means[i])),
            "constant_rmae": mean_absolute_error(y, np.full_like(y, means[i])) ** 0.5,
        }
        assert {key: results[f"{name}_{key}"] for key in expected} == pytest.approx(expected, abs=1e-5)
    assert not any("client" in name for name in results)


def test_clients_by_hand() -> None:
    """Semantic errors: client 4 has .1 and .3, client 7 has .4, nobody the last. Entity: .2, none, 0."""
    targets = torch.tensor([[0.5, 0.5], [NAN, 0.5], [0.5, 0.5], [0.5, 0.5]])
    scores = targets.nan_to_num(0.5) + torch.tensor([[0.2, 0.1], [0.9, -0.3], [0.0, 0.4], [0.5, 0.5]])
    evaluation = ScoreEvaluation(("entity", "semantic"))
    evaluation.update(scores, targets, torch.zeros(4, 2), torch.tensor([4, 4, 7, -1]))
    table = evaluation.table()
    assert table == pytest.approx({4: 0.05**0.5, 7: 0.4})
    results = evaluation.results(table)
    assert results["worst_client_semantic_rmse"] == pytest.approx(0.4) and results["worst_client_id"] == 7.0
    assert results["client_mean_semantic_rmse"] == pytest.approx((0.05**0.5 + 0.4) / 2)
    assert results["worst_client_entity_rmse"] == pytest.approx(0.2)
    assert results["client_mean_entity_rmse"] == pytest.approx(0.1)
    assert "semantic_constant_rmse" not in results


def test_a_score_that_nobody_rated_is_not_a_number() -> None:
    evaluation = ScoreEvaluation(("entity", "semantic"), torch.tensor([0.5, 0.5]))
    targets = torch.tensor([[NAN, 0.0], [NAN, 1.0]])
    evaluation.update(torch.tensor([[0.1, 0.0], [0.2, 1.0]]), targets, torch.zeros(2, 2), torch.tensor([0, 1]))
    results = evaluation.results(evaluation.table())
    assert math.isnan(results["entity_rmse"]) and math.isnan(results["entity_srcc"])
    assert results["semantic_pcc"] == pytest.approx(1.0) and results["semantic_rmse"] == 0.0
    assert "worst_client_entity_rmse" not in results


def test_one_rater_and_intervals_are_those_of_all_batches() -> None:
    """Against scipy and the plain bootstrap; the second rater has not rated some images, the third rates nothing."""
    rng = np.random.default_rng(2)
    ratings = rng.random((40, 3, 2))
    ratings[:9, 1], ratings[:, 2] = np.nan, np.nan
    targets, scores = np.nanmean(ratings, 1), rng.random((40, 2))
    evaluation = ScoreEvaluation(("entity", "semantic"), intervals=True)
    for part in (slice(0, 9), slice(9, 40)):
        found, wanted, by_rater = (torch.from_numpy(x[part]) for x in (scores, targets, ratings))
        evaluation.update(found, wanted, torch.zeros_like(wanted), torch.full((len(found),), -1), by_rater)
    results = evaluation.results({})
    for i, name in enumerate(("entity", "semantic")):
        a, b = ratings[9:, 0, i], ratings[9:, 1, i]
        expected = {"rmse": root_mean_squared_error(a, b), "srcc": stats.spearmanr(a, b).statistic}
        assert {key: results[f"{name}_one_rater_{key}"] for key in expected} == pytest.approx(expected, abs=1e-6)
        ends = bootstrap(spearman, torch.from_numpy(scores[:, i]), torch.from_numpy(targets[:, i]))
        assert (results[f"{name}_srcc_low"], results[f"{name}_srcc_high"]) == pytest.approx((ends.low, ends.high))
        assert results[f"{name}_srcc_low"] < results[f"{name}_srcc"] < results[f"{name}_srcc_high"]


def test_a_single_rater_is_no_reference() -> None:
    evaluation = ScoreEvaluation(("semantic",))
    one = torch.tensor([[0.5], [0.25]])
    evaluation.update(one, one, torch.zeros(2, 1), torch.tensor([-1, -1]), one[:, None])
    assert not any("one_rater" in key or "low" in key for key in evaluation.results({}))
