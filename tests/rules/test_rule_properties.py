"""What a rule says of itself, checked against what it does."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pl_fed import rules
from pl_fed.corrections import Scaffold
from pl_fed.errors import FederatedConfigError
from pl_fed.rounds import LocalTraining
from pl_fed.rules import AFLoRA, FedSVD, FFALoRA, Krum, Median, Rule, TrimmedMean
from pl_fed.server_optimizer import ServerOptimizer
from pl_fed.strategy import FederatedStrategy
from pl_fed.updates import AdapterState, LayerSlots, Update
from tests.helpers.peers import RANK, RULES, SHAPES, global_dense, random_updates, rule_case

ALL = pytest.mark.parametrize("name", list(RULES))


def after(rule: Rule, server: AdapterState, updates: list[Update]) -> AdapterState:
    return rule.renew(rule.aggregate(server, updates), torch.Generator().manual_seed(0))


def distance(first: AdapterState, second: AdapterState) -> float:
    """The largest difference of the dense models and tensors; factors of one product may differ by sign."""
    differences = [global_dense(first, name) - global_dense(second, name) for name in SHAPES]
    return max(
        *(float(abs(difference).max()) for difference in differences),
        float((first.dense["head"] - second.dense["head"]).abs().max()),
    )


@ALL
def test_the_order_of_the_updates_does_not_matter(name: str) -> None:
    rule, server, updates = rule_case(name)
    assert distance(after(rule, server, updates), after(rule, server, updates[::-1])) < 1e-12
    tensors = [after(rule, server, order).tensors() for order in (updates, [updates[1], updates[2], updates[0]])]
    if not rule.rotates:  # there, a singular vector and its negative are the same
        assert all((tensors[0][key] - tensors[1][key]).abs().max() < 1e-12 for key in tensors[0])


def shifted(update: Update, seed: int, sign: float) -> Update:
    """Return the update plus or minus noise of its seed."""
    generator = torch.Generator().manual_seed(seed)

    def move(value: Tensor | None) -> Tensor | None:
        if value is None:
            return None
        return value + sign * torch.randn(value.shape, generator=generator, dtype=value.dtype)

    layers = {name: LayerSlots(p.slots, move(p.a), move(p.b)) for name, p in update.layers.items()}
    return Update(update.client_id, update.num_examples, layers, {n: move(v) for n, v in update.dense.items()})  # type: ignore[misc]


@pytest.mark.parametrize("mean", [None, Median()], ids=["mean", "median"])
@ALL
def test_sums_only(name: str, mean: Any) -> None:
    """Two clients of equal weight move apart by the same noise: a server that sees only sums cannot tell."""
    rule, server, updates = rule_case(name, ranks=(4, 3, 3), examples=(7, 5, 5))
    if mean is not None:
        if not rule.averages or name in ("aflora-literal", "aflora-slot") or not any_values(updates):
            return
        rule = type(rule)(mean=mean)
    moved = [updates[0], shifted(updates[1], 3, 1.0), shifted(updates[2], 3, -1.0)]
    found = distance(after(rule, server, updates), after(rule, server, moved))
    assert found < 1e-12 if rule.sums_only else found > 1e-3


def any_values(updates: list[Update]) -> bool:
    return any(True for update in updates for _ in update.values())


@ALL
def test_sides_and_messages(name: str) -> None:
    """Nothing that stays on the client travels, and an update holds what is trained and sent."""
    rule, server, _ = rule_case(name)
    slots = {layer: torch.arange(2) for layer in SHAPES}
    for round_idx in (0, 1):
        sides = rule.sides(round_idx)
        assert sides <= rule.optimizer_sides()
        message = rule.broadcast(server, slots)
        sent = rule.update(server, server.clone(), {}, slots, sides)
        for layer in SHAPES:
            down, up = message.layers[layer], sent[layer]
            for side in "ab":
                assert (getattr(down, side) is None) == (side in rule.keeps or name == "head")
                assert (getattr(up, side) is not None) == (side in sides - rule.keeps)
        assert bool(message.dense) == ("dense" not in rule.keeps)
    assert rule.personalised == (name in ("fedsa", "local"))


@ALL
def test_unequal_ranks_change_only_held_slots_unless_the_rule_mixes_them(name: str) -> None:
    """`heterogeneous` is what a paper says; every rule takes unequal ranks, and slots nobody holds stay."""
    rule, server, _ = rule_case(name)
    updates = random_updates(rule.sides(0) - rule.keeps, ranks=(2, 1, 2))
    new = rule.aggregate(server, updates)
    mixes = {"flex", "fair", "hetlora", "aflora-literal"}
    for layer in SHAPES:
        same_a = torch.equal(new.layers[layer].a[2:], server.layers[layer].a[2:])
        same_b = torch.equal(new.layers[layer].b[:, 2:], server.layers[layer].b[:, 2:])
        assert (same_a and same_b) == (name not in mixes)
        assert new.layers[layer].a.shape[0] == RANK
    assert rule.heterogeneous == (type(rule).__name__ in ("AFLoRA", "FLoRA", "FlexLoRA", "HetLoRA"))


# ---------------------------------------------------------------- what does not go together


@pytest.mark.parametrize("mean", [Median(), TrimmedMean(0.2), Krum()], ids=repr)
@pytest.mark.parametrize("rule", [c for n in rules.__all__ if isinstance(c := getattr(rules, n), type)])
def test_a_robust_mean_needs_a_rule_that_averages(rule: Any, mean: Any) -> None:
    if not issubclass(rule, Rule) or rule is Rule:
        return
    if rule.averages:
        made = rule(mean=mean)
        assert made.mean is mean and not made.exact and not made.sums_only
        return
    with pytest.raises(
        FederatedConfigError, match=f"no robust `mean` with {rule.__name__} .*: {rule.why_not_averages}"
    ):
        rule(mean=mean)
    assert rule.why_not_averages


def test_a_robust_mean_needs_updates_of_equal_meaning() -> None:
    with pytest.raises(FederatedConfigError, match="Expected `aggregation: delta` with a robust `mean` but got `slot`"):
        AFLoRA(aggregation="slot", mean=Median())


def strategy(rule: Rule, **kwargs: Any) -> FederatedStrategy:
    return FederatedStrategy(rule, **kwargs)


@pytest.mark.parametrize(
    "optimizer",
    [ServerOptimizer("adam"), ServerOptimizer("yogi"), ServerOptimizer(momentum=0.5), ServerOptimizer(lr=0.5)],
)
@ALL
def test_moments_need_a_fixed_basis(name: str, optimizer: ServerOptimizer) -> None:
    rule = RULES[name]()
    if not rule.rotates:
        assert strategy(rule, server_optimizer=optimizer)
        return
    with pytest.raises(
        FederatedConfigError, match=f"the plain server optimizer with {type(rule).__name__} but got `{optimizer.name}`"
    ):
        strategy(rule, server_optimizer=optimizer)


@ALL
def test_control_variates_need_a_fixed_basis_and_no_diagonal(name: str) -> None:
    rule, local = RULES[name](), LocalTraining(correction=Scaffold())
    if rule.rotates or rule.reinitialises:
        message = f"Expected no Scaffold with {type(rule).__name__} but got it: the rule changes the factors' basis"
    elif "diagonal" in rule.optimizer_sides():
        message = "Expected no Scaffold with a learned diagonal but got it with AFLoRA"
    else:
        assert strategy(rule, local=local)
        return
    with pytest.raises(FederatedConfigError, match=message):
        strategy(rule, local=local)


@ALL
def test_kept_optimizers_need_a_fixed_basis(name: str) -> None:
    rule, local = RULES[name](), LocalTraining(optimizer="kept")
    if not (rule.rotates or rule.reinitialises):
        assert strategy(rule, local=local)
        return
    message = f"`local.optimizer: fresh` with {type(rule).__name__} but got `kept`: the rule changes the factors' basis"
    with pytest.raises(FederatedConfigError, match=message):
        strategy(rule, local=local)


def test_what_does_go_together() -> None:
    assert strategy(AFLoRA(train_diagonal=False), local=LocalTraining(correction=Scaffold()))
    assert strategy(FedSVD(), server_optimizer=ServerOptimizer())
    assert FFALoRA(mean=Median()).settings() != FFALoRA().settings()


@ALL
def test_sums_are_enough_where_a_rule_says_so(name: str) -> None:
    """The aggregate again, from nothing but the sums of mass times contribution and of the masses."""
    rule, server, updates = rule_case(name)
    if not rule.sums_only:
        return
    parts = [rule.contribution(server, update) for update in updates]
    assert all({k: v.shape for k, v in part.items()} == {k: v.shape for k, v in parts[0].items()} for part in parts)
    mean = {}
    for key in parts[0]:
        layer = key.rpartition("/")[0]
        mass = [rule.mass(server, update, layer) for update in updates]
        total = sum((m * part[key] for m, part in zip(mass, parts, strict=True)), torch.zeros_like(parts[0][key]))
        mean[key] = total / sum(mass)
    found, expected = rule.absorb(server, mean).tensors(), rule.aggregate(server, updates).tensors()
    assert all((found[key] - expected[key]).abs().max() < 1e-12 for key in expected)
