"""Scores as numbers and as levels: by hand and against torch's own losses."""

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from pl_fed.errors import FederatedConfigError
from pl_fed.modules import ScoreSettings
from pl_fed.modules.score_losses import chosen_targets, level_shares, nearest_level, predicted_scores, score_losses

NAN = math.nan
ONE = ScoreSettings(("semantic",), levels=5)


def test_levels_of_ratings() -> None:
    """Means of three raters lie on twelfths; 3/8 and 5/8 lie half way between two levels of five."""
    scores = torch.arange(13) / 12
    expected = [0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4]
    assert nearest_level(scores, 5).tolist() == expected
    assert nearest_level(torch.tensor([0.375, 0.625, -3.0, 7.0]), 5).tolist() == [2, 3, 0, 4]
    shares = level_shares(scores, 5)
    torch.testing.assert_close(shares.sum(1), torch.ones(13))
    torch.testing.assert_close((shares @ torch.arange(5.0)) / 4, scores)
    assert ((shares > 1e-6).sum(1) <= 2).all()


def test_the_scores_that_are_learned() -> None:
    targets = torch.tensor([[0.1, 0.2]])
    torch.testing.assert_close(chosen_targets(targets, ONE), torch.tensor([[0.2]]))
    both = chosen_targets(targets, ScoreSettings(("semantic", "entity")))
    torch.testing.assert_close(both, torch.tensor([[0.2, 0.1]]))


def test_squared_error_by_hand_leaves_missing_ratings_out() -> None:
    outputs = torch.tensor([[0.5, 2.0], [0.25, -1.0]], requires_grad=True)
    losses, known = score_losses(outputs, torch.tensor([[1.0, NAN], [0.25, 0.0]]), ScoreSettings())
    assert losses.tolist() == [[0.25, 0.0], [0.0, 1.0]] and known.tolist() == [[True, False], [True, True]]
    losses.sum().backward()
    assert outputs.grad is not None and outputs.grad.tolist() == [[-1.0, 0.0], [0.0, -2.0]]


def test_hard_levels_are_plain_cross_entropy() -> None:
    """What the label inference audit presumes of the loss."""
    outputs, targets = torch.randn(7, 5), torch.rand(7, 1)
    losses, _ = score_losses(outputs, targets, ONE)
    torch.testing.assert_close(losses.mean(), F.cross_entropy(outputs, nearest_level(targets[:, 0], 5)))


def test_soft_levels_by_hand() -> None:
    """A rating of 5/16 lies a quarter of the way from level 1 to level 2."""
    outputs = torch.randn(1, 5)
    losses, _ = score_losses(outputs, torch.tensor([[0.3125]]), ScoreSettings(("semantic",), 5, soft_labels=True))
    log = outputs.log_softmax(1)[0]
    torch.testing.assert_close(losses[0, 0], -(0.75 * log[1] + 0.25 * log[2]))


def test_two_scores_have_their_own_outputs() -> None:
    outputs, targets = torch.randn(3, 10), torch.tensor([[0.0, 1.0], [0.5, NAN], [NAN, NAN]])
    losses, _ = score_losses(outputs, targets, ScoreSettings(levels=5))
    first = F.cross_entropy(outputs[:, :5], torch.tensor([0, 2, 0]), reduction="none")
    second = F.cross_entropy(outputs[:, 5:], torch.tensor([4, 0, 0]), reduction="none")
    expected = torch.stack([first, second], 1) * torch.tensor([[1, 1], [1, 0], [0, 0]])
    torch.testing.assert_close(losses, expected)


def test_scores_from_outputs_by_hand() -> None:
    """Half of level 1 and half of level 4 of five: scores .25 and 1, mean .625, deviation .375."""
    outputs = torch.tensor([[-99.0, 0.0, -99.0, -99.0, 0.0]])
    found = predicted_scores(outputs, ONE)
    assert found.scores.item() == pytest.approx(0.625) and found.uncertainty is not None
    assert found.uncertainty.item() == pytest.approx(0.375)
    assert found.probabilities is not None and found.probabilities.shape == (1, 1, 5)
    plain = predicted_scores(torch.tensor([[-0.5, 1.5]]), ScoreSettings())
    assert plain.scores.tolist() == [[0.0, 1.0]] and plain.probabilities is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"names": ()}, r"`scores.names` to be one or both of entity, semantic but got \[\]"),
        ({"names": ("semantic", "semantic")}, "one or both of entity, semantic"),
        ({"names": ("story",)}, r"one or both of entity, semantic but got \['story'\]"),
        ({"levels": 1}, "`scores.levels` to be at least 2 or null but got 1"),
        ({"soft_labels": True}, "`scores.levels` with `scores.soft_labels` but got null"),
        ({"max_length": 0}, "`scores.max_length` to be at least 1 or null but got 0"),
    ],
)
def test_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(FederatedConfigError, match=message):
        ScoreSettings(**settings)
