"""Invariants of a run that hold for every rule: the order of arrival, clients that fail, and the bytes that travel."""

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from pl_fed.accounting import NetworkSize, client_cost
from pl_fed.adapters import Adapter
from pl_fed.clients import ClientsConfig
from pl_fed.context import RoundContext
from pl_fed.corrections import Scaffold
from pl_fed.errors import ClientFailureError
from pl_fed.loaders import RoundLoader
from pl_fed.rounds import CohortConfig, LocalTraining
from pl_fed.rules import AFLoRA, FedIT, FedSALoRA, FFALoRA, FLoRA, LocalOnly, RoLoRA, Rule
from tests.helpers.peers import RULES
from tests.helpers.tiny import TinyLM, make_strategy, make_trainer
from tests.helpers.tiny_regression import Points, TinyRegression

SHARDS = [[0, 1, 2], [3, 4], [5, 6, 7, 8], [9, 10]]
RANKS = [4, 3, 2, 1]
LAYERS = [(7, 10), (5, 7)]  # (d_out, d_in) of the two layers


def fit(rule: Rule, callback: pl.Callback, max_epochs: int = 2, **strategy: Any) -> dict[str, torch.Tensor]:
    """Train and return everything that the federation keeps."""
    strategy.setdefault("cohort", CohortConfig())
    strategy.setdefault("clients", ClientsConfig(ranks=RANKS))
    trainer = make_trainer(make_strategy(rule, **strategy), max_epochs=max_epochs, callbacks=[callback])
    trainer.fit(TinyRegression(), RoundLoader(Points(11), SHARDS, batch_size=2))
    federation = trainer.strategy.loop.federation  # type: ignore[attr-defined]
    clients = {f"{k} {n}": v for k, s in federation.states.items() for n, v in {**s.kept, **s.control}.items()}
    slots = {f"{k} slots {n}": v for k, s in federation.states.items() for n, v in s.slots.items()}
    return {**federation.server.tensors(), **clients, **slots}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


class Shuffle(pl.Callback):
    """Changes the order in which updates lie at the server."""

    def on_upload(self, trainer: Any, pl_module: Any, context: RoundContext) -> None:
        context.updates.reverse()


NAMES = [name for name in RULES if name != "head"]  # the model has no head


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_arrival_changes_no_bit(name: str) -> None:
    assert same(fit(RULES[name](), pl.Callback()), fit(RULES[name](), Shuffle()))


class Fails(pl.Callback):
    """Client 1 ends its second round with NaN in all it has, or refuses to send."""

    def __init__(self, how: str) -> None:
        self.how, self.failures, self.counts = how, [], []  # type: ignore[var-annotated]

    def on_client_end(self, trainer: Any, pl_module: Any, context: RoundContext) -> None:
        client = context.client
        if client.client_id != 1 or context.round_idx != 1:
            return
        if self.how == "refuses":
            raise ClientFailureError(1, "refused", "does not want to")
        for layer in client.after.layers.values():
            layer.a.fill_(float("nan"))
            layer.b.fill_(float("nan"))

    def on_round_end(self, trainer: Any, pl_module: Any, context: RoundContext) -> None:
        self.failures.append(dict(context.failures))
        self.counts.append(len(context.updates))


@pytest.mark.parametrize("name", NAMES)
def test_a_nan_client_changes_nothing_but_the_count(name: str) -> None:
    """Nor what that client keeps itself: it goes on from its last good state."""
    spoilt, refused = Fails("nan"), Fails("refuses")
    first, second = fit(RULES[name](), spoilt, 3), fit(RULES[name](), refused, 3)
    assert spoilt.failures == [{}, {1: "not_finite"}, {}] and spoilt.counts == [4, 3, 4]
    assert refused.failures == [{}, {1: "refused"}, {}]
    assert same(first, second) and all(torch.isfinite(value).all() for value in first.values())


# ---------------------------------------------------------------- bytes


class Bytes(pl.Callback):
    """Notes each client's bytes by round."""

    def __init__(self) -> None:
        self.up: list[dict[int, int]] = []
        self.down: list[dict[int, int]] = []

    def on_round_end(self, trainer: Any, pl_module: Any, context: RoundContext) -> None:
        self.up.append({client.client_id: client.upload_bytes for client in context.finished})
        self.down.append({client.client_id: client.download_bytes for client in context.finished})


def count(a: bool, b: bool, rank: int) -> int:
    return sum(4 * rank * (a * d_in + b * d_out) for d_out, d_in in LAYERS)


def stack(clients: list[int]) -> int:
    """What the base model of one round lacks: the factors of all clients, or the dense change if smaller; by layer."""
    total = sum(RANKS[k] for k in clients)
    return sum(4 * min(total * (d_out + d_in), d_out * d_in) for d_out, d_in in LAYERS)


DENSE = sum(4 * d_out * d_in for d_out, d_in in LAYERS)
Formula = Callable[[int, int], int]  # of (round, rank)
FORMULAS: dict[str, tuple[Formula, Formula]] = {  # of a client that is in every round: up, down
    "fedit": (lambda t, r: count(True, True, r), lambda t, r: count(True, True, r)),
    "ffa": (lambda t, r: count(False, True, r), lambda t, r: count(t == 0, True, r)),
    "flex": (lambda t, r: count(True, True, r), lambda t, r: count(True, True, r)),
    "fair": (lambda t, r: count(True, True, r), lambda t, r: count(True, True, r)),
    "fedsvd": (lambda t, r: count(False, True, r), lambda t, r: count(True, True, r)),
    "fedsa": (lambda t, r: count(True, False, r), lambda t, r: count(True, False, r)),
    "rolora": (
        lambda t, r: count(t % 2 == 1, t % 2 == 0, r),
        lambda t, r: count(t == 0 or t % 2 == 0, t == 0 or t % 2 == 1, r),
    ),
    "flora": (lambda t, r: count(True, True, r), lambda t, r: 0 if t == 0 else stack([0, 1, 2, 3])),
    "fedex": (
        lambda t, r: count(True, True, r),
        lambda t, r: count(True, True, r) + (0 if t == 0 else stack([0, 1, 2, 3])),
    ),
    # a slot's id has two bytes, in each of the two layers
    "aflora": (lambda t, r: count(False, True, r) + 4 * r, lambda t, r: count(t == 0, True, r) + 4 * r),
    "aflora-refactor": (lambda t, r: count(False, True, r) + 4 * r, lambda t, r: count(True, True, r) + 4 * r),
    "local": (lambda t, r: 0, lambda t, r: 0),
}


@pytest.mark.parametrize("name", list(FORMULAS))
def test_bytes_of_clients_in_every_round(name: str) -> None:
    seen, (up, down) = Bytes(), FORMULAS[name]
    fit(RULES[name](), seen, 4)
    for t in range(4):
        assert seen.up[t] == {k: up(t, RANKS[k]) for k in range(4)}, f"up in round {t}"
        assert seen.down[t] == {k: down(t, RANKS[k]) for k in range(4)}, f"down in round {t}"


def test_bytes_of_hetlora_follow_its_pruning() -> None:
    """It downloads the slots that it uploaded in its last round."""
    seen = Bytes()
    rule = RULES["hetlora"]()
    rule.gamma, rule.penalty = 0.5, 2.0  # type: ignore[attr-defined]
    fit(rule, seen, 4)
    assert seen.down[0] == {k: count(True, True, r) for k, r in enumerate(RANKS)}
    assert [seen.down[t] for t in range(1, 4)] == [seen.up[t] for t in range(3)]
    assert seen.up[3][0] < seen.up[0][0]


@pytest.mark.parametrize(("name", "own"), [("flora", 0), ("fedex", 1)])
def test_a_client_that_was_away_gets_what_it_missed(name: str, own: int) -> None:
    """The stacks of all rounds since its last one; together never more than the dense change."""
    seen = Bytes()
    fit(RULES[name](), seen, 6, cohort=CohortConfig(clients=1), seed=1)
    cohorts = [next(iter(down)) for down in seen.down]
    assert len(set(cohorts)) > 1
    for t, client in enumerate(cohorts):
        last = max((i for i in range(t) if cohorts[i] == client), default=0)
        missed = sum(stack([cohorts[i]]) for i in range(last, t))
        assert seen.down[t][client] == own * count(True, True, RANKS[client]) + min(missed, DENSE)
    assert any(down[k] - own * count(True, True, RANKS[k]) == DENSE for down in seen.down for k in down), "never capped"


def test_rolora_sends_a_client_that_was_away_what_changed() -> None:
    """Both factors after two rounds, one after one."""
    seen = Bytes()
    fit(RULES["rolora"](), seen, 8, cohort=CohortConfig(clients=1), seed=1)
    cohorts = [next(iter(down)) for down in seen.down]
    for t, client in enumerate(cohorts):
        last = max((i for i in range(t) if cohorts[i] == client), default=None)
        trained = set() if last is None else {"ab"[(i + 1) % 2] for i in range(last, t)}
        sides = {"a", "b"} if last is None else trained
        assert seen.down[t][client] == count("a" in sides, "b" in sides, RANKS[client])


@pytest.mark.parametrize("make", [FedIT, FFALoRA, lambda: AFLoRA(train_diagonal=False)])
def test_scaffold_doubles_the_bytes(make: Callable[[], Rule]) -> None:
    """Of what is trained: an A that is sent once has no variate."""
    plain, doubled = Bytes(), Bytes()
    fit(make(), plain, 3)
    fit(make(), doubled, 3, local=LocalTraining(epochs=1, correction=Scaffold()))
    for t in range(3):
        once = {k: 0 if t or isinstance(make(), FedIT) else count(True, False, r) for k, r in enumerate(RANKS)}
        assert doubled.up[t] == {k: 2 * value for k, value in plain.up[t].items()}
        assert doubled.down[t] == {k: 2 * value - once[k] for k, value in plain.down[t].items()}


@pytest.mark.parametrize(
    ("rule", "up", "down", "per_value"),
    [
        (FedSALoRA(), 4 * 16, 4 * 16, 0),  # A; B and the head stay
        (FedSALoRA(keep_head=False), 4 * 16, 4 * 16, 4),
        (RoLoRA(), 4 * 48, 4 * 64, 4),  # B is the larger of the two that go in turn
        (LocalOnly(), 0, 0, 0),
    ],
)
def test_client_cost_of_what_does_not_travel(rule: Any, up: int, down: int, per_value: int) -> None:
    """Of the 16 weights of A and 48 of B that a slot of TinyLM has; control variates double them."""
    module = TinyLM()
    size, adapter = NetworkSize.of(module), Adapter(module)
    for controls in (False, True):
        cost = client_cost(size, adapter, rule, 1, 1, controls=controls)
        found = (cost.upload_bytes_per_rank, cost.download_bytes_per_rank, cost.upload_bytes_per_value)
        assert found == tuple((1 + controls) * value for value in (up, down, per_value))


def test_a_merged_base_costs_nothing_more_under_another_rule() -> None:
    """FedIT goes on from FLoRA's model, base and all; what is merged was sent before and does not change."""
    module, loader = TinyRegression(), RoundLoader(Points(11), SHARDS, batch_size=2)
    make_trainer(make_strategy(FLoRA(), clients=ClientsConfig(ranks=RANKS)), max_epochs=1).fit(module, loader)
    merged = {name: value.clone() for name, value in module.named_buffers()}
    seen = Bytes()
    strategy = make_strategy(FedIT(), clients=ClientsConfig(ranks=RANKS))
    make_trainer(strategy, max_epochs=3, callbacks=[seen]).fit(module, loader)
    assert len(merged) == 2 and all(value.any() for value in merged.values())
    assert all(torch.equal(value, merged[name]) for name, value in module.named_buffers())
    assert all(down[k] == count(True, True, RANKS[k]) for down in seen.down for k in down)
