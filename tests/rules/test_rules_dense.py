"""Every rule against dense matrices, in float64, over layers of several shapes and unequal shares and ranks."""

import numpy as np
import pytest
import torch

from pl_fed.rules import AFLoRA, FedExLoRA, FedIT, FedSVD, FFALoRA, FlexLoRA, FLoRA, HetLoRA, LoRAFAIR, Rule
from pl_fed.updates import AdapterState, LayerSlots, Update
from tests.helpers.peers import (
    RANK,
    RULES,
    SHAPES,
    close,
    dense_change,
    global_dense,
    normal,
    own_factors,
    own_product,
    random_server,
    random_updates,
    rank_shares,
    rule_case,
    sent_sides,
    shares,
)

BOTH = frozenset({"a", "b"})
RANKS = pytest.mark.parametrize("ranks", [(4, 4, 4), (4, 2, 3), (1, 3, 2)], ids=["equal", "unequal", "below"])


def after(rule: Rule, server: AdapterState, updates: list[Update], seed: int = 0) -> AdapterState:
    return rule.renew(rule.aggregate(server, updates), torch.Generator().manual_seed(seed))


def deviation(name: str, ranks: tuple[int, ...], round_idx: int = 0) -> float:
    """Largest distance of the new global model from the old one plus the weighted mean of the dense updates."""
    rule, server, updates = rule_case(name, ranks=ranks, round_idx=round_idx)
    new, worst = after(rule, server, updates), 0.0
    for layer in SHAPES:
        weights = rank_shares(updates, layer) if isinstance(rule, AFLoRA) and rule.rank_weights else shares(updates)
        parts = [dense_change(server.layers[layer], update.layers[layer]) for update in updates]
        expected = global_dense(server, layer) + sum(w * part for w, part in zip(weights, parts, strict=True))
        worst = max(worst, float(np.abs(global_dense(new, layer) - expected).max()))
    return worst


@RANKS
@pytest.mark.parametrize("name", [name for name in RULES if name not in ("head", "fedsa", "local")])
def test_exact_rules_are_exact_and_the_others_are_not(name: str, ranks: tuple[int, ...]) -> None:
    """The models of FedSA and local training are the clients' own; the head has no adapter."""
    for round_idx in (0, 1):
        found = deviation(name, ranks, round_idx)
        if RULES[name]().exact:
            assert found < 2e-12
        elif not (name == "aflora-slot" and len(set(ranks)) == 1):  # then every slot has the same mean
            assert found > 1e-2 or (name == "aflora-literal" and ranks == (4, 4, 4))


@pytest.mark.parametrize("name", list(RULES))
def test_dense_tensors_are_the_example_weighted_mean(name: str) -> None:
    rule, server, updates = rule_case(name)
    new = after(rule, server, updates).dense["head"]
    moved = [update.dense.get("head", torch.zeros(3, 2)).numpy() for update in updates]
    close(new, server.dense["head"].numpy() + sum(w * x for w, x in zip(shares(updates), moved, strict=True)))


@pytest.mark.parametrize("name", list(RULES))
def test_the_servers_tensors_are_not_written_into(name: str) -> None:
    """Also the updates: an engine and a checkpoint may still hold them."""
    rule, server, updates = rule_case(name)
    before = {key: value.clone() for key, value in server.tensors().items()}
    sent = [value.clone() for update in updates for value in update.values()]
    new = after(rule, server, updates)
    assert all(torch.equal(value, before[key]) for key, value in server.tensors().items())
    assert all(torch.equal(x, y) for x, y in zip(sent, [v for u in updates for v in u.values()], strict=True))
    assert {key: value.dtype for key, value in new.tensors().items()} == {k: v.dtype for k, v in before.items()}
    assert {key: value.shape for key, value in new.tensors().items()} == {k: v.shape for k, v in before.items()}


# ---------------------------------------------------------------- what each rule is


@RANKS
def test_plain_averages(ranks: tuple[int, ...]) -> None:
    """FedIT, slot by slot; a slot that a client lacks gets no change from it."""
    server, updates = random_server(), random_updates(BOTH, ranks=ranks)
    new = FedIT().aggregate(server, updates)
    for name, layer in server.layers.items():
        a, b = layer.a.numpy().copy(), layer.b.numpy().copy()
        for weight, update in zip(shares(updates), updates, strict=True):
            for i in range(len(update.layers[name].slots)):
                a[i] += weight * update.layers[name].a[i].numpy()
                b[:, i] += weight * update.layers[name].b[:, i].numpy()
        close(new.layers[name].a, a)
        close(new.layers[name].b, b)


@RANKS
def test_flex_is_the_truncated_svd_of_the_dense_mean(ranks: tuple[int, ...]) -> None:
    server, updates = random_server(), random_updates(BOTH, ranks=ranks)
    new = after(FlexLoRA(), server, updates)
    for name, layer in server.layers.items():
        products = [own_product(layer, update.layers[name]) for update in updates]
        u, s, vh = np.linalg.svd(sum(w * x for w, x in zip(shares(updates), products, strict=True)))
        for rank in range(1, RANK + 1):  # every client gets the best part of its rank
            a, b = new.layers[name].a[:rank].numpy(), new.layers[name].b[:, :rank].numpy()
            close(b @ a, (u[:, :rank] * s[:rank]) @ vh[:rank])
        close(new.layers[name].a @ new.layers[name].a.T, np.eye(RANK))
        close(np.linalg.norm(new.layers[name].b.numpy(), axis=0), s[:RANK])


@RANKS
def test_flora_starts_anew(ranks: tuple[int, ...]) -> None:
    """B is zero and A is of the generator's seed alone, within 1 / sqrt(d_in), different in each layer."""
    server, updates = random_server(merged=True), random_updates(BOTH, ranks=ranks)
    first, second = after(FLoRA(), server, updates), after(FLoRA(), random_server(9, merged=True), updates)
    other = after(FLoRA(), server, updates, seed=1)
    for name, (_, d_in) in SHAPES.items():
        layer = first.layers[name]
        assert torch.equal(layer.a, second.layers[name].a) and not torch.equal(layer.a, other.layers[name].a)
        assert not layer.b.any() and 0.7 / d_in**0.5 < layer.a.abs().max() < 1 / d_in**0.5
    assert first.layers["square"].a[0, 0] != first.layers["wide"].a[0, 0]


@RANKS
def test_fedex_factors_are_the_averages(ranks: tuple[int, ...]) -> None:
    """So that a client that knows them needs the residual only, whose rank is that of all factors together."""
    server, updates = random_server(merged=True), random_updates(BOTH, ranks=ranks)
    new, plain = FedExLoRA().aggregate(server, updates), FedIT().aggregate(server, updates)
    for name in SHAPES:
        assert torch.equal(new.layers[name].a, plain.layers[name].a)
        assert torch.equal(new.layers[name].b, plain.layers[name].b)
        residual = (new.merged[name] - server.merged[name]).numpy()
        assert np.linalg.matrix_rank(residual, tol=1e-9) <= sum(ranks) + RANK


@RANKS
@pytest.mark.parametrize("strength", [1e-3, 0.5, 20.0])
def test_fair_minimises_its_objective(ranks: tuple[int, ...], strength: float) -> None:
    """dB is the least-squares solution of dB (A, sqrt(lambda) I) = (R, 0)."""
    server, updates = random_server(), random_updates(BOTH, ranks=ranks)
    new, plain = LoRAFAIR(strength).aggregate(server, updates), FedIT().aggregate(server, updates)
    for name, layer in server.layers.items():
        a, b = plain.layers[name].a.numpy(), plain.layers[name].b.numpy()
        parts = [dense_change(layer, update.layers[name]) for update in updates]
        target = global_dense(server, name) + sum(w * x for w, x in zip(shares(updates), parts, strict=True))
        system = np.concatenate([a, strength**0.5 * np.eye(RANK)], axis=1)
        wanted = np.concatenate([target - b @ a, np.zeros_like(b)], axis=1)
        solution = np.linalg.lstsq(system.T, wanted.T, rcond=None)[0].T
        close(new.layers[name].b.numpy() - b, solution, 1e-10)
        close(new.layers[name].a, a)


@RANKS
def test_hetlora_weights_and_padding(ranks: tuple[int, ...]) -> None:
    server, updates = random_server(), random_updates(BOTH, ranks=ranks)
    new = HetLoRA().aggregate(server, updates)
    for name, layer in server.layers.items():
        norms = np.array([np.linalg.norm(own_product(layer, update.layers[name])) for update in updates])
        factors = [own_factors(layer, update.layers[name]) for update in updates]
        close(new.layers[name].a, sum(w * a for w, (a, _) in zip(norms / norms.sum(), factors, strict=True)))
        close(new.layers[name].b, sum(w * b for w, (_, b) in zip(norms / norms.sum(), factors, strict=True)))


def test_hetlora_without_any_norm_weights_by_examples() -> None:
    """B is zero on all clients: nothing tells them apart, and A is still averaged."""
    server, updates = random_server(), random_updates(frozenset({"a"}), ranks=(4, 4, 4))
    for layer in server.layers.values():
        layer.b.zero_()
    new, plain = HetLoRA().aggregate(server, updates), FedIT().aggregate(server, updates)
    for name in SHAPES:
        close(new.layers[name].a, plain.layers[name].a)


@pytest.mark.parametrize("rule", [FedSVD(), AFLoRA(refactor=True)], ids=["fedsvd", "refactor"])
@RANKS
def test_rotations(rule: Rule, ranks: tuple[int, ...]) -> None:
    """The product stays, A has orthonormal rows, B the singular values in falling order."""
    server, updates = random_server(), random_updates(frozenset({"b"}), ranks=ranks)
    plain = rule.aggregate(server, updates)
    new = after(rule, server, updates)
    for name in SHAPES:
        close(global_dense(new, name), global_dense(plain, name))
        close(new.layers[name].a @ new.layers[name].a.T, np.eye(RANK))
        values = np.linalg.svd(global_dense(plain, name))[1][:RANK]
        close(np.linalg.norm(new.layers[name].b.numpy(), axis=0), values)


def test_a_rotation_after_arbitrary_slots() -> None:
    """AFLoRA's clients may hold any slots (after pruning); the dense sum is exact all the same."""
    generator, server = torch.Generator().manual_seed(4), random_server()
    updates = []
    for k, ids in enumerate(([0, 2], [3], [1, 2, 3])):
        parts = {n: LayerSlots(torch.tensor(ids), None, normal(generator, o, len(ids))) for n, (o, _) in SHAPES.items()}
        updates.append(Update(k, 3 + 2 * k, parts, {}))
    new = after(AFLoRA(refactor=True), server, updates)
    for name, layer in server.layers.items():
        parts = [dense_change(layer, update.layers[name]) for update in updates]
        change = sum(w * x for w, x in zip(shares(updates), parts, strict=True))
        close(global_dense(new, name), global_dense(server, name) + change)


# ---------------------------------------------------------------- limits


@pytest.mark.parametrize(
    "rule", [FedExLoRA(), FLoRA(), FlexLoRA(), LoRAFAIR(1e-13), FedIT()], ids=lambda rule: type(rule).__name__
)
def test_one_client_is_its_own_mean(rule: Rule) -> None:
    """The server's model is the client's, whatever the rule."""
    server = random_server(merged=rule.merges)
    updates = random_updates(BOTH, ranks=(RANK,), examples=(7,))
    new = after(rule, server, updates)
    for name, layer in server.layers.items():
        start = server.merged[name].numpy() if rule.merges else 0.0
        close(global_dense(new, name), start + own_product(layer, updates[0].layers[name]), 1e-11)


@RANKS
def test_a_shared_a_gives_ffa(ranks: tuple[int, ...]) -> None:
    """FedSVD and AFLoRA always, with rank weights if the ranks are equal."""
    server, updates = random_server(), random_updates(frozenset({"b"}), ranks=ranks)
    ffa = after(FFALoRA(), server, updates)
    for rule in (FedSVD(), AFLoRA(), *([AFLoRA(rank_weights=True)] if ranks == (4, 4, 4) else [])):
        new = after(rule, server, updates)
        for name in SHAPES:
            close(global_dense(new, name), global_dense(ffa, name))


def test_hetlora_of_equal_norms_is_plain_averaging() -> None:
    server, updates = random_server(), random_updates(BOTH, ranks=(4, 4, 4), examples=(3, 3, 3))
    for name, layer in server.layers.items():
        for update in updates:
            part = update.layers[name]
            scale = 5.0 / np.linalg.norm(own_product(layer, part))
            part.b = (layer.b + part.b) * scale - layer.b
    new, plain = HetLoRA().aggregate(server, updates), FedIT().aggregate(server, updates)
    for name in SHAPES:
        close(new.layers[name].a, plain.layers[name].a)
        close(new.layers[name].b, plain.layers[name].b)


def test_every_rule_has_both_rounds() -> None:
    """`sent_sides` of the two rounds together are what the rule lets travel."""
    for make in RULES.values():
        rule = make()
        assert sent_sides(rule, 0) | sent_sides(rule, 1) == rule.optimizer_sides() - rule.keeps
