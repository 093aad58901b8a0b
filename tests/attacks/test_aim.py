"""Who is sent which model where the embeddings have a lower rank than the norm has biases."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from pl_fed.attacks import find_target
from pl_fed.attacks.aim import aim, independent_rows
from pl_fed.attacks.audit import AuditSettings, audit
from pl_fed.attacks.disaggregate import linear_system
from pl_fed.attacks.fishing import plan_rounds
from tests.attacks.test_defences import clients_of, noise_forward
from tests.helpers.audited import mlp


def bottleneck(activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    """64 biases, but the final layer sees eight features: rank 9."""
    body = [nn.Flatten(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 8), activation()]
    return nn.Sequential(*body, nn.Linear(8, 10))


def without_bias(activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    body = [nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), activation()]
    return nn.Sequential(*body, nn.Linear(8, 10, bias=False))


@pytest.mark.parametrize(
    ("make", "num_clients"),
    [
        (bottleneck, 16),
        (lambda: bottleneck(nn.Tanh), 16),
        (without_bias, 9),
        (without_bias, 10),
        (lambda: without_bias(nn.Sigmoid), 9),
        (lambda: without_bias(nn.Sigmoid), 20),
    ],
    ids=["relu", "tanh", "no bias, d + 1", "no bias, d + 2", "no bias, sigmoid, d + 1", "no bias, sigmoid, 20"],
)
def test_everybody_is_separated(make: Callable[[], nn.Module], num_clients: int) -> None:
    torch.manual_seed(0)
    net = make()
    report = audit(net, lambda: noise_forward(net), clients_of(net, [16] * num_clients), AuditSettings())
    assert report.exact_match == 1.0 and not report.under_determined
    assert "each with other targets" in report.notes[0] and len(report.notes) == 1
    assert report.condition < 1e4


def test_the_models_of_a_round_are_independent() -> None:
    """At most as many as numpy's rank of the embeddings with a column of ones, and well conditioned."""
    torch.manual_seed(0)
    net = bottleneck()
    target = find_target(net, lambda: noise_forward(net))
    models, plan = aim(net, target, lambda: noise_forward(net), 30)
    rows = torch.cat([models.embeddings, torch.ones(len(models.betas), 1).double()], 1)
    assert int(torch.linalg.matrix_rank(rows)) == len(rows) <= 9
    assert bool(linear_system(models.embeddings).identifiable.all())
    targets = torch.stack(plan) < len(rows) - 1
    assert targets.sum(0).tolist() == [1] * 30 and len(plan) == -(-30 // (len(rows) - 1))


def test_what_suffices_stays_one_round() -> None:
    torch.manual_seed(0)
    net = mlp(16)
    target = find_target(net, lambda: noise_forward(net))
    for num_clients, num_rounds in ((17, 1), (18, 2)):
        _, plan = aim(net, target, lambda: noise_forward(net), num_clients)
        assert len(plan) == num_rounds


def test_by_hand() -> None:
    """Beside (1, 1): (2, 2) is nothing, (3, 0) leaves 3 / sqrt(2), (0, 1) the same direction; beside 0 any basis."""
    rows = torch.tensor([[2.0, 2.0], [0.0, 1.0], [3.0, 0.0]])
    assert independent_rows(rows, torch.ones(2)) == [2]
    assert independent_rows(rows, torch.zeros(2)) == [2, 0]
    assert independent_rows(torch.zeros(2, 2), torch.ones(2)) == [0]
    assert [models.tolist() for models in plan_rounds(3, 2, last_is_told=False)] == [[0, 1, 2], [2, 2, 0]]
