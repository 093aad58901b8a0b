"""The attack is exact where the mathematics says so: every architecture, batch size, class number and cohort."""

import pytest
import torch
from torch import nn

from pl_fed.attacks.accuracy import exact_match, label_accuracy
from pl_fed.attacks.baselines import guess
from pl_fed.attacks.cohorts import recover_over_rounds
from pl_fed.attacks.cut_norm import find_target
from pl_fed.attacks.fishing import make_models, plan_rounds
from pl_fed.attacks.observation import LocalSteps, Observation, PublicRound
from pl_fed.attacks.simulate import aggregate, client_update
from pl_fed.attacks.solve import combine, recover
from tests.helpers.audited import (
    IDEAL,
    NETS,
    Attacked,
    bn2d_flatten,
    groupnorm_cnn,
    images_of,
    label_draws,
    mlp,
    models_for,
    play,
    resnet,
)


def check_exact(played: Attacked, margin: float = 0.1) -> None:
    found = recover(played.observation)
    assert bool(found.found.all()) and not found.under_determined
    assert bool(exact_match(found.counts, played.true).all()), (found.counts - played.true).tolist()
    assert found.margin < margin


@pytest.mark.parametrize("name", NETS)
def test_every_architecture(name: str) -> None:
    """N = 8, B = 32, on real images."""
    check_exact(play(NETS[name](), label_draws([32] * 8)))


@pytest.mark.parametrize("name", ["small_cnn", "lenet_bn", "vgg_bn", "pre_resnet", "vit", "groupnorm", "gpt2"])
def test_more_clients_and_larger_batches(name: str) -> None:
    """N = 16, B = 256."""
    check_exact(play(NETS[name](), label_draws([256] * 16)))


@pytest.mark.parametrize("num_classes", [10, 100])
@pytest.mark.parametrize("num_clients", [8, 33, 64, 65])
def test_as_many_clients_as_the_rank(num_clients: int, num_classes: int) -> None:
    played = play(mlp(64, num_classes), label_draws([32] * num_clients, num_classes), num_classes=num_classes)
    check_exact(played)
    found = recover(played.observation)
    assert found.rank == found.num_models == num_clients
    assert found.condition < (1.1 * (1 + num_clients) ** 0.5 if num_clients < 64 else 100)


def test_one_client_too_many_is_reported() -> None:
    found = recover(play(mlp(64), label_draws([8] * 66)).observation)
    assert found.under_determined and found.rank == 65 and found.num_models == 66
    assert not bool(found.found.all()) and any("66 models but rank 65" in note for note in found.notes)


def test_channels_not_features_are_the_rank() -> None:
    """16 channels of 16 pixels: 17 clients can be separated, an 18th cannot."""
    check_exact(play(bn2d_flatten(), label_draws([16] * 17)))
    assert recover(play(bn2d_flatten(), label_draws([16] * 18)).observation).under_determined


@pytest.mark.parametrize("sizes", [[1] * 8, [1, 3, 17, 200, 1024, 2, 64, 31], [1024] * 4])
def test_batch_sizes(sizes: list[int]) -> None:
    """From 1 (GroupNorm: batch norm refuses a batch of one) to 1024, equal or not."""
    check_exact(play(groupnorm_cnn(), label_draws(sizes)))


def test_one_class_clients() -> None:
    check_exact(play(mlp(), [torch.full((32,), k) for k in range(8)]))


def test_weighted_sum() -> None:
    """Clients weigh what their number of examples says, as in a federated mean."""
    sizes = [8, 16, 32, 64]
    weights = torch.tensor(sizes, dtype=torch.float64) / sum(sizes)
    check_exact(play(mlp(), label_draws(sizes), weights=weights))


def test_clients_that_drop_out() -> None:
    """The server knows whose update arrived; the others' models leave the system."""
    played = play(mlp(), label_draws([32] * 12))
    there = torch.tensor([0, 2, 3, 7, 11])
    public = PublicRound(there, torch.ones(5, dtype=torch.float64), played.true.sum(1)[there])
    summed = aggregate([played.updates[k] for k in there.tolist()], public.weights, IDEAL)
    found = recover(Observation(summed, played.observation.models, public))
    assert found.num_models == 5 and torch.equal(found.counts, played.true[there])


def test_running_statistics_do_not_matter() -> None:
    net = mlp()
    norm = net[2]
    assert isinstance(norm, nn.BatchNorm1d) and norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.uniform_(-1e3, 1e3)
    norm.running_var.fill_(1e-6)
    check_exact(play(net, label_draws([32] * 8)))


def test_the_stem_of_a_post_activation_network() -> None:
    """Its embedding is a nonlinear image of beta: exact all the same, as far as the rank goes."""
    net = resnet(pre=False)
    played = play(net, label_draws([32] * 4), secure_sum=None)
    assert played.target.norm_name == "1"
    found = recover(played.observation)
    assert torch.equal(found.counts, played.true) and found.rank == 4


def test_five_hundred_clients_in_several_rounds() -> None:
    """64 targets a round, the others on the model of bias 0; everyone is separated once."""
    net, num_clients = mlp(64), 500
    labels = label_draws([6] * num_clients)
    plan = plan_rounds(num_clients, 64)
    assert len(plan) == 8
    target, models = models_for(net, 65)
    data = [(images_of(own, k), own) for k, own in enumerate(labels)]

    def loss(batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return nn.functional.cross_entropy(net(batch[0]), batch[1])

    local, true = (
        LocalSteps(),
        torch.stack([torch.bincount(y, minlength=10) for y in labels]),
    )
    surplus = [
        client_update(net, target, models.betas[64], [batch], loss, local) for batch in data
    ]  # the same each time
    weights, rounds = torch.ones(num_clients, dtype=torch.float64), []
    for models_of in plan:
        updates = [
            surplus[k] if m == 64 else client_update(net, target, models.betas[m], [data[k]], loss, local)
            for k, m in enumerate(models_of.tolist())
        ]
        public = PublicRound(models_of, weights, true.sum(1))
        rounds.append(recover(Observation(aggregate(updates, weights, IDEAL), models, public)))
        assert not rounds[-1].under_determined
    assert torch.equal(combine(rounds).counts, true)


def test_the_same_model_for_everybody_over_changing_cohorts() -> None:
    net, num_clients, size = mlp(), 8, 32
    labels = label_draws([size] * num_clients)
    true = torch.stack([torch.bincount(y, minlength=10) for y in labels])
    target, models = models_for(net, 1)
    one = [
        client_update(
            net,
            target,
            models.betas[0],
            [(images_of(own, k), own)],
            lambda b: nn.functional.cross_entropy(net(b[0]), b[1]),
            LocalSteps(),
        )
        for k, own in enumerate(labels)
    ]
    present = torch.rand(12, num_clients, generator=torch.Generator().manual_seed(3)) < 0.6
    seen = []
    for row in present:
        ids = row.nonzero().flatten().tolist()
        ones = torch.ones(len(ids), dtype=torch.float64)
        public = PublicRound(torch.zeros(len(ids), dtype=torch.long), ones, torch.full((len(ids),), size))
        seen.append(Observation(aggregate([one[k] for k in ids], ones, IDEAL), models, public))
    sizes = torch.full((num_clients,), size)
    assert torch.equal(recover_over_rounds(seen, present, sizes).counts, true)
    few = recover_over_rounds(seen[:4], present[:4], sizes)
    assert few.under_determined and not bool(few.found.all())
    alone = recover(seen[0])
    assert not bool(alone.found.any()) and any("share a model" in note for note in alone.notes)


def test_a_guess_is_far_from_it() -> None:
    """The figure beside which all others are to be read."""
    played = play(mlp(), label_draws([32] * 8))
    assert 0.2 < float(label_accuracy(guess(10, played.true.sum(1)), played.true).mean()) < 0.7


def test_finding_and_making_models_leave_no_trace() -> None:
    net = mlp(dropout=0.3).train()
    net[1].weight.grad = torch.ones_like(net[1].weight)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    betas, state = torch.rand(2, 64, dtype=torch.float64), torch.get_rng_state()
    target = find_target(net, lambda: net(torch.randn(4, 1, 8, 8)))
    make_models(net, target, betas, lambda: net(torch.randn(4, 1, 8, 8)), moving=True)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state) and all(part.training for part in net.modules())
    assert torch.equal(net[1].weight.grad, torch.ones_like(net[1].weight)) and net[5].weight.grad is None
    assert not net[2]._forward_hooks and not net[5]._forward_pre_hooks
