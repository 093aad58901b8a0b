"""The tripwire on every architecture: silent on honest models, loud on crafted ones, and how it is evaded."""

import pytest
import torch
from torch import Tensor

from pl_fed.attacks import label_accuracy, read_tripwire, recover
from pl_fed.attacks.baselines import guess
from pl_fed.attacks.fishing import crafted
from tests.helpers.audited import (
    NETS,
    evade,
    images_of,
    label_draws,
    mlp,
    models_for,
    reading_of,
    small_cnn,
    train_a_little,
)


@pytest.mark.parametrize("name", NETS)
def test_alarms_on_crafted_models_only(name: str) -> None:
    """At initialisation and after some training; every model that an audit of eight clients crafts."""
    net = NETS[name]()
    target, models = models_for(net, 8)
    images = images_of(label_draws([32])[0])
    for _ in range(2):
        honest = reading_of(net, target, images)
        assert honest.judged and not honest.fished and honest.flagged_share < 0.05 and honest.variance_share > 0.01
        for beta in models.betas:
            with crafted(net, target, beta):
                reading = reading_of(net, target, images)
            assert reading.fished and reading.flagged_share == 1.0 and reading.variance_share < 1e-12
        train_a_little(net)


def test_a_norm_weight_of_zero_is_no_alarm() -> None:
    """Residual branches may start at zero: the weights of norm layers are never looked at."""
    net = NETS["pre_resnet"]()
    target, _ = models_for(net, 1)
    with torch.no_grad():
        net[1].bn.weight.zero_()
    assert not reading_of(net, target, images_of(label_draws([32])[0])).fished


def test_dropout_before_the_head_hides_nothing() -> None:
    """Half of the constant inputs are zero; the others are still equal."""
    net = mlp(64, dropout=0.5)
    target, models = models_for(net, 8)
    images = images_of(label_draws([32])[0])
    assert not reading_of(net, target, images).fished
    with crafted(net, target, models.betas[0]):
        assert reading_of(net, target, images).fished


def test_it_can_be_evaded() -> None:
    """With the norm weight at 1e-2 in place of 0 it is silent, and most labels are still named: no guarantee.

    The embeddings vary by about 1 % around those that the server computes, and so do the counts.
    """
    played, alarms = evade(small_cnn(), label_draws([32] * 8), 1e-2)
    found = label_accuracy(recover(played.observation).counts, played.true).mean()
    guessed = label_accuracy(guess(10, played.true.sum(1)), played.true).mean()
    assert alarms == 0.0 and found > 0.95 > 0.6 > guessed
    _, alarms = evade(small_cnn(), label_draws([32] * 8), 0.0)
    assert alarms == 1.0


def test_by_hand() -> None:
    """Features 3 +- .001 (spread 1/3000: flagged), 1 +- 1 (one of the values is 0 and only one is left: not judged),
    2 and 4 (mean 3, std 1: spread 1/3), and zeros (not judged).

    Variance 1e-6 + 1, energy 9 + 9 besides: the share is 1.000001 / 19.000001.
    """
    rows = torch.tensor([[3.001, 2.0, 2.0, 0.0], [2.999, 0.0, 4.0, 0.0]], dtype=torch.float64)
    reading = read_tripwire(rows)
    assert (reading.num_rows, reading.num_judged, reading.flagged_share, reading.fished) == (2, 2, 0.5, False)
    assert reading.smallest_spread == pytest.approx(1 / 3000)
    assert reading.variance_share == pytest.approx(1.000001 / 19.000001)
    assert read_tripwire(rows[:, :1]).fished and read_tripwire(rows, 0.5).fished
    assert not read_tripwire(rows, 1e-4).flagged_share


def test_next_to_no_variance_is_an_alarm_too() -> None:
    """Most features vary, but all the energy is in one that does not."""
    rows = torch.cat([torch.full((4, 1), 1e5), torch.randn(4, 3)], 1)
    reading = read_tripwire(rows)
    assert reading.flagged_share == 0.25 and reading.variance_share < 1e-6 and reading.fished


@pytest.mark.parametrize("rows", [torch.ones(1, 3), torch.zeros(4, 3), torch.zeros(0, 3)])
def test_what_cannot_be_judged(rows: Tensor) -> None:
    reading = read_tripwire(rows)
    assert not reading.judged and not reading.fished and reading.smallest_spread == float("inf")


def test_what_is_not_finite_is_no_alarm() -> None:
    assert not read_tripwire(torch.full((4, 3), float("nan"))).fished
