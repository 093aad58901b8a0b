"""The rows of the table of cases on every kind of network, not on the fastest one alone."""

import pytest
import torch

from pl_fed.attacks.accuracy import exact_match, label_accuracy
from pl_fed.attacks.losses import LossSpec
from pl_fed.attacks.observation import LocalSteps
from pl_fed.attacks.quantise import FixedPointSum
from pl_fed.attacks.solve import Correction, recover
from tests.helpers.audited import NETS, Attacked, label_draws, play

SEVEN = ["small_cnn", "lenet_bn", "vgg_bn", "pre_resnet", "vit", "groupnorm", "gpt2", "bn2d_pool"]
every = pytest.mark.parametrize("name", SEVEN)


def figure(played: Attacked, correction: Correction = "auto") -> tuple[float, float]:
    """Return mean label accuracy and the share of exact matches."""
    counts = recover(played.observation, correction).counts
    return float(label_accuracy(counts, played.true).mean()), float(exact_match(counts, played.true).double().mean())


@every
def test_fixed_point(name: str) -> None:
    """22 bits are enough at every learning rate; 8 are not at the smallest."""
    net, labels = NETS[name](), label_draws([32] * 8)
    for lr in (1.0, 0.1, 0.01):
        played = play(net, labels, LocalSteps(lr=lr), secure_sum=FixedPointSum(22, 8.0))
        assert figure(played) == (1.0, 1.0), lr
    assert figure(play(net, labels, LocalSteps(lr=0.01), secure_sum=FixedPointSum(8, 8.0)))[1] == 0.0


@every
def test_batches(name: str) -> None:
    """Unequal ones, and clients of one class."""
    assert figure(play(NETS[name](), label_draws([2, 3, 17, 200, 64, 5, 32, 31]))) == (1.0, 1.0)
    assert figure(play(NETS[name](), [torch.full((32,), k) for k in range(8)])) == (1.0, 1.0)


@every
def test_local_steps(name: str) -> None:
    """lr .01, s = .3: exact with the simulated path, with weight decay too; the mean gradient is not at 20 steps."""
    net, labels = NETS[name](), label_draws([32] * 8)
    for local in (LocalSteps(4, 0.01), LocalSteps(20, 0.01), LocalSteps(4, 0.01, weight_decay=0.1)):
        assert figure(play(net, labels, local, scale=0.3), "trajectory") == (1.0, 1.0), local
    accuracy, exact = figure(play(net, labels, LocalSteps(20, 0.01), scale=0.3), "naive")
    assert 0.94 < accuracy < 1.0 > exact


@every
def test_momentum_and_adam(name: str) -> None:
    """Four steps on a batch each: momentum .9 leaves a few labels wrong, Adam hardly a count right, and says so."""
    net, labels = NETS[name](), label_draws([128] * 8)
    accuracy, _ = figure(play(net, labels, LocalSteps(4, 0.01, momentum=0.9), scale=0.3, fresh_batches=True))
    assert 0.95 <= accuracy <= 0.99
    played = play(net, labels, LocalSteps(4, 0.01, optimizer="adam"), scale=0.3, fresh_batches=True)
    accuracy, exact = figure(played)
    assert 0.5 < accuracy < 0.9 and exact == 0.0
    assert any("Adam" in note for note in recover(played.observation).notes)


@every
@pytest.mark.parametrize("spec", [LossSpec(label_smoothing=0.1), LossSpec("bce_with_logits")], ids=["smoothing", "bce"])
def test_other_losses(name: str, spec: LossSpec) -> None:
    assert figure(play(NETS[name](), label_draws([32] * 8), spec=spec)) == (1.0, 1.0)
