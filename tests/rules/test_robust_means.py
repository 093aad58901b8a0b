"""Robust means against numpy, scipy and brute force, with slots that some clients do not hold."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import trim_mean

from pl_fed.errors import FederatedConfigError
from pl_fed.rules import AFLoRA, FedIT, FFALoRA, Krum, Median, RobustMean, TrimmedMean
from pl_fed.updates import AdapterState, Update
from tests.helpers.peers import SHAPES, close, random_server, random_updates

BOTH = frozenset({"a", "b"})
RANKS = (4, 2, 3, 4, 1, 4, 3)


def many(size: float = 1.0) -> list[Update]:
    return random_updates(BOTH, ranks=RANKS, examples=(1, 2, 3, 4, 5, 6, 7), size=size)


def rows(updates: list[Update], layer: str, side: str, slot: int) -> np.ndarray:
    """The slot's updates of those clients that hold it, (holders, width)."""
    found = []
    for update in updates:
        part = update.layers[layer]
        value = part.a if side == "a" else part.b.T
        found += [value[i].numpy() for i, held in enumerate(part.slots.tolist()) if held == slot]
    return np.stack(found)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.2, 0.29, 0.45])
def test_trimmed_mean_is_scipys(share: float) -> None:
    server, updates = random_server(), many()
    new = FedIT(mean=TrimmedMean(share)).aggregate(server, updates)
    for layer, slot in itertools.product(SHAPES, range(4)):
        for side, moved in (
            ("a", new.layers[layer].a[slot] - server.layers[layer].a[slot]),
            ("b", new.layers[layer].b[:, slot] - server.layers[layer].b[:, slot]),
        ):
            close(moved, trim_mean(rows(updates, layer, side, slot), share, axis=0))
    heads = np.stack([update.dense["head"].numpy() for update in updates])
    close(new.dense["head"] - server.dense["head"], trim_mean(heads, share, axis=0))


def test_median_is_numpys() -> None:
    """Slots are held by 7, 6, 5 and 3 clients: odd and even numbers."""
    server, updates = random_server(), many()
    new = FedIT(mean=Median()).aggregate(server, updates)
    for layer, slot in itertools.product(SHAPES, range(4)):
        close(
            new.layers[layer].a[slot] - server.layers[layer].a[slot], np.median(rows(updates, layer, "a", slot), axis=0)
        )
        close(
            new.layers[layer].b[:, slot] - server.layers[layer].b[:, slot],
            np.median(rows(updates, layer, "b", slot), axis=0),
        )
    assert [len(rows(updates, "wide", "a", slot)) for slot in range(4)] == [7, 6, 5, 3]


def as_vector(update: Update) -> np.ndarray:
    parts = []
    for layer, (d_out, d_in) in SHAPES.items():
        a, b = np.zeros((4, d_in)), np.zeros((d_out, 4))
        for i, slot in enumerate(update.layers[layer].slots.tolist()):
            a[slot], b[:, slot] = update.layers[layer].a[i].numpy(), update.layers[layer].b[:, i].numpy()
        parts += [a.ravel(), b.ravel()]
    return np.concatenate([*parts, update.dense["head"].numpy().ravel()])


def brute_krum(updates: list[Update], num_faulty: int, num_chosen: int) -> set[int]:
    """Lowest sums over the best subset of n - f - 2 others, tried one by one."""
    points = [as_vector(update) for update in updates]
    scores = []
    for i, x in enumerate(points):
        others = [float(((x - y) ** 2).sum()) for j, y in enumerate(points) if j != i]
        subsets = itertools.combinations(others, len(points) - num_faulty - 2)
        scores.append(min(sum(subset) for subset in subsets))
    return {updates[i].client_id for i in np.argsort(scores)[:num_chosen]}


@pytest.mark.parametrize(("num_faulty", "num_chosen"), [(0, 1), (1, 1), (2, 3), (4, 2), (1, 7)])
def test_krum_is_brute_force(num_faulty: int, num_chosen: int) -> None:
    server, updates = random_server(), many()
    krum = Krum(num_faulty, num_chosen)
    chosen = {update.client_id for update in krum.chosen(server, updates)}
    assert chosen == brute_krum(updates, num_faulty, num_chosen)
    new = FedIT(mean=krum).aggregate(server, updates)
    kept = [update for update in updates if update.client_id in chosen]
    for layer in SHAPES:
        found = rows(kept, layer, "a", 0)
        close(new.layers[layer].a[0] - server.layers[layer].a[0], found.mean(axis=0))


def test_krum_of_twins() -> None:
    """Two equal updates are at distance zero of each other, which is a neighbour's distance, not their own."""
    server, updates = random_server(), random_updates(BOTH, ranks=(4, 4, 4, 4), examples=(1, 1, 1, 1))
    updates[3] = Update(3, 1, updates[1].layers, updates[1].dense)
    assert {update.client_id for update in Krum(1, 2).chosen(server, updates)} == {1, 3}


@pytest.mark.parametrize("mean", [Median(), TrimmedMean(0.2), Krum(1, 3)], ids=repr)
def test_one_faulty_client_of_seven_moves_nothing_beyond_the_honest_ones(mean: RobustMean) -> None:
    """Its update is a thousand times theirs; the plain mean goes astray."""
    updates = random_updates(BOTH, ranks=(4,) * 7, examples=(1,) * 7)
    bad = random_updates(BOTH, ranks=(4,) * 7, examples=(1,) * 7, size=1000.0)[3]
    mixed = [bad if update.client_id == 3 else update for update in updates]
    server = random_server()

    def moved(rule: Any) -> AdapterState:
        return rule.aggregate(server, mixed)

    honest = [update for update in updates if update.client_id != 3]
    for layer, slot in itertools.product(SHAPES, range(4)):
        found = rows(honest, layer, "a", slot)
        change = (moved(FedIT(mean=mean)).layers[layer].a[slot] - server.layers[layer].a[slot]).numpy()
        assert (found.min(axis=0) - 1e-12 <= change).all() and (change <= found.max(axis=0) + 1e-12).all()
    plain = moved(FedIT()).layers["wide"].a - server.layers["wide"].a
    assert plain.abs().max() > 50


@pytest.mark.parametrize("rule", [FFALoRA, AFLoRA])
def test_what_a_rule_does_not_send_stays(rule: Any) -> None:
    server, updates = random_server(), random_updates(frozenset({"b"}), ranks=(2, 1, 2))
    new = rule(mean=Median()).aggregate(server, updates)
    for layer in SHAPES:
        assert torch.equal(new.layers[layer].a, server.layers[layer].a)
        assert torch.equal(new.layers[layer].b[:, 2:], server.layers[layer].b[:, 2:])
        assert not torch.equal(new.layers[layer].b[:, :2], server.layers[layer].b[:, :2])


def test_arguments() -> None:
    with pytest.raises(FederatedConfigError, match="`share` of TrimmedMean in .0, 0.5. but got 0.5"):
        TrimmedMean(0.5)
    with pytest.raises(FederatedConfigError, match="`num_faulty` >= 0 and `num_chosen` >= 1 of Krum but got -1 and 1"):
        Krum(num_faulty=-1)
    with pytest.raises(
        FederatedConfigError, match="at least 4 clients in a round for Krum with `num_faulty`=1 .* got 3"
    ):
        FedIT(mean=Krum()).aggregate(random_server(), random_updates(BOTH))
