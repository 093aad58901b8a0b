"""What is read from an optimizer, against local trainings that are written down."""

from typing import Any

import pytest
import torch
from torch import nn

from pl_fed.attacks import CannotAttackError, LocalSteps
from pl_fed.callbacks._seen_steps import SeenStep, local_steps, see_step


def seen(optimizer: Any, **options: Any) -> SeenStep:
    net = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    return see_step(optimizer(net.parameters(), **options), dict(net.named_parameters()), "1", "0")


def test_one_step_of_nesterov_looks_ahead() -> None:
    """By the momentum: 0.1 * (1 + 0.5)."""
    step = seen(torch.optim.SGD, lr=0.1, momentum=0.5, nesterov=True, weight_decay=0.01)
    found = local_steps([[step], [step]])
    assert found == LocalSteps(1, found.lr, 0.5, 0.01) and found.lr == pytest.approx(0.15)


def test_the_scale_of_other_optimizers_is_unknown_so_that_a_schedule_changes_nothing() -> None:
    steps = [seen(torch.optim.AdamW, lr=lr, weight_decay=0.0) for lr in (0.1, 0.3)]
    found = local_steps([steps] * 3)
    assert found == LocalSteps(2, found.lr, optimizer="adam") and found.lr == pytest.approx(0.2)


def test_a_frozen_norm_has_no_group_to_differ() -> None:
    net = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2, bias=False))
    step = see_step(torch.optim.SGD(net[1].parameters(), lr=0.1), dict(net.named_parameters()), "1", "0")
    assert step.same_norm and step.same_bias and not step.moving


def test_what_is_no_training() -> None:
    with pytest.raises(CannotAttackError, match="clients that step but they took no optimizer step"):
        local_steps([[], []])
    with pytest.raises(CannotAttackError, match=r"`local.lr` above 0 but got 1 and 0.0"):
        local_steps([[seen(torch.optim.SGD, lr=0.0)]])
    with pytest.raises(CannotAttackError, match=r"equal numbers of local steps but clients took \[0, 1\]"):
        local_steps([[seen(torch.optim.SGD, lr=0.1)], []])
