"""Server optimizers against formulas written out by hand, and a federated run against its recomputation."""

import inspect
import math
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from pl_fed.context import RoundContext
from pl_fed.errors import CheckpointMismatchError, FederatedConfigError
from pl_fed.rules import FedIT
from pl_fed.server_optimizer import ServerOptimizer
from pl_fed.updates import AdapterState, LayerState
from tests.helpers.tiny import TinyLM, adapter_tensors, eval_loader, make_strategy, make_trainer, round_loader

CPU = torch.device("cpu")


def state(value: float) -> AdapterState:
    """One number in A, its double in B, its triple in a dense tensor."""
    layer = LayerState(
        torch.full((1, 2), value, dtype=torch.float64), torch.full((3, 1), 2 * value, dtype=torch.float64)
    )
    return AdapterState({"x": layer}, {"head": torch.full((2,), 3 * value, dtype=torch.float64)})


def numbers(found: AdapterState) -> list[float]:
    """Return the three numbers of `state`, each checked to be the same all over its tensor."""
    values = [found.layers["x"].a, found.layers["x"].b, found.dense["head"]]
    assert all((value == value.view(-1)[0]).all() for value in values)
    return [value.view(-1)[0].item() for value in values]


def test_plain_returns_the_aggregate_bit_for_bit() -> None:
    """Also where before + (aggregate - before) would round: 1e8 + (0.1 - 1e8) is not 0.1 in float32."""
    before = AdapterState({}, {"head": torch.full((3,), 1e8)})
    aggregate = AdapterState({}, {"head": torch.full((3,), 0.1)})
    assert not torch.equal(
        before.dense["head"] + (aggregate.dense["head"] - before.dense["head"]), torch.full((3,), 0.1)
    )
    optimizer = ServerOptimizer()
    assert torch.equal(optimizer.apply(before, aggregate).dense["head"], torch.full((3,), 0.1))
    assert optimizer.state_dict() == {"name": "sgd", "kind": "sgd", "first": {}, "second": {}}


UPDATES = [1.0, -0.5, 0.25, 0.0, 2.0]  # of A; those of B are the double, of the head the triple


def by_hand(name: str, lr: float, momentum: float, beta1: float, beta2: float, tau: float, factor: float) -> float:
    """Return x after `UPDATES`, from x = 10 * factor, with Algorithm 2 of Reddi et al. written out.

    m <- b1 m + (1 - b1) u;  Adam: v <- b2 v + (1 - b2) u^2;  Yogi: v <- v - (1 - b2) u^2 sign(v - u^2);
    x <- x + lr m / (sqrt v + tau);  v starts at tau^2, m at 0. FedAvgM: m <- momentum m + u, x <- x + lr m.
    """
    x, m, v = 10.0 * factor, 0.0, tau**2
    for update in UPDATES:
        u = update * factor
        if name == "sgd":
            m = momentum * m + u
            x += lr * m
            continue
        m = beta1 * m + (1 - beta1) * u
        v = beta2 * v + (1 - beta2) * u * u if name == "adam" else v - (1 - beta2) * u * u * _sign(v - u * u)
        x += lr * m / (math.sqrt(v) + tau)
    return x


def _sign(value: float) -> float:
    return float(value > 0) - float(value < 0)


CASES: list[dict[str, Any]] = [
    {"name": "sgd", "momentum": 0.9},
    {"name": "sgd", "lr": 0.5},
    {"name": "sgd", "lr": 0.1, "momentum": 0.5},
    {"name": "adam", "lr": 0.3},
    {"name": "adam", "lr": 0.01, "betas": (0.0, 0.999), "tau": 0.1},
    {"name": "yogi", "lr": 0.3},
    {"name": "yogi", "lr": 1.0, "betas": (0.5, 0.5), "tau": 1.0},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rounds_follow_the_formulas(case: dict[str, Any]) -> None:
    optimizer, server = ServerOptimizer(**case), state(10.0)
    for update in UPDATES:
        server = optimizer.apply(server, _plus(server, state(update)))
    beta1, beta2 = case.get("betas", (0.9, 0.99))
    hyper = (case["name"], case.get("lr", 1.0), case.get("momentum", 0.0), beta1, beta2, case.get("tau", 1e-3))
    assert numbers(server) == pytest.approx([by_hand(*hyper, factor) for factor in (1.0, 2.0, 3.0)], rel=1e-12)


def _plus(first: AdapterState, second: AdapterState) -> AdapterState:
    other = second.tensors()
    return AdapterState.from_tensors({name: value + other[name] for name, value in first.tensors().items()})


def test_the_first_steps_by_hand() -> None:
    """u = 1, 1 with momentum 0.5: moments 1 and 1.5, so 10 -> 11 -> 12.5.

    Adam, tau = 1, betas (0.5, 0.5): m = 0.5; v = 0.5 * 1 + 0.5 * 1 = 1; step 0.5 / (1 + 1) = 0.25.
    Yogi the same but u = 2: m = 1; v = 1 - 0.5 * 4 * sign(1 - 4) = 3; step 1 / (sqrt 3 + 1) = 0.366.
    """
    momentum, server = ServerOptimizer(momentum=0.5), state(10.0)
    for expected in (11.0, 12.5):
        server = momentum.apply(server, _plus(server, state(1.0)))
        assert numbers(server)[0] == pytest.approx(expected, rel=1e-14)
    adam = ServerOptimizer("adam", betas=(0.5, 0.5), tau=1.0).apply(state(0.0), state(1.0))
    assert numbers(adam)[0] == pytest.approx(0.25, rel=1e-14)
    yogi = ServerOptimizer("yogi", betas=(0.5, 0.5), tau=1.0).apply(state(0.0), state(2.0))
    assert numbers(yogi)[0] == pytest.approx(1 / (math.sqrt(3) + 1), rel=1e-14)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_no_client_moved_does_not_move(case: dict[str, Any]) -> None:
    """A of a rule that never trains it stays bit for bit, so that clients need not download it again."""
    optimizer, server = ServerOptimizer(**case), state(0.1)
    for _ in range(3):
        moved = _plus(server, state(1.0))
        moved.layers["x"].a = server.layers["x"].a.clone()
        new = optimizer.apply(server, moved)
        assert torch.equal(new.layers["x"].a, server.layers["x"].a)
        assert not torch.equal(new.layers["x"].b, server.layers["x"].b)
        server = new


@pytest.mark.parametrize("case", CASES, ids=str)
def test_state_dict_round_trip(case: dict[str, Any]) -> None:
    """The optimizer that goes on from a saved state ends where the uninterrupted one ends; the inputs are not moved."""
    whole, first = ServerOptimizer(**case), ServerOptimizer(**case)
    server, half = state(10.0), state(10.0)
    for update in UPDATES[:2]:
        server = whole.apply(server, _plus(server, state(update)))
        half = first.apply(half, _plus(half, state(update)))
    saved = first.state_dict()
    second = ServerOptimizer(**case)
    second.load_state_dict(saved, CPU)
    for update in UPDATES[2:]:
        kept = {name: value.clone() for name, value in server.tensors().items()}
        after = whole.apply(server, _plus(server, state(update)))
        assert all(torch.equal(value, kept[name]) for name, value in server.tensors().items())
        server = after
        half = second.apply(half, _plus(half, state(update)))
    assert numbers(half) == numbers(server)
    untouched = ServerOptimizer(**case)
    untouched.load_state_dict(saved, CPU)
    assert numbers(untouched.apply(state(0.0), state(1.0))) == numbers(first.apply(state(0.0), state(1.0)))


@pytest.mark.parametrize("here", [ServerOptimizer("adam"), ServerOptimizer("yogi"), ServerOptimizer()])
def test_another_kind_is_refused(here: ServerOptimizer) -> None:
    """Momentum's sum of updates is no mean of them; also before there are moments."""
    momentum = ServerOptimizer(momentum=0.9)
    expected = f"with the server optimizer `{here.name}` but got one with `sgd with momentum`: resume with the same"
    for _ in range(2):
        with pytest.raises(CheckpointMismatchError, match=expected):
            here.load_state_dict(momentum.state_dict(), CPU)
        momentum.apply(state(0.0), state(1.0))


def test_moments_without_a_kind_are_known_by_name() -> None:
    """Those of earlier versions; without moments there is nothing to mix up."""
    momentum = ServerOptimizer(momentum=0.9)

    def old() -> dict[str, Any]:
        return {key: value for key, value in momentum.state_dict().items() if key != "kind"}

    ServerOptimizer("adam").load_state_dict(old(), CPU)
    momentum.apply(state(0.0), state(1.0))
    ServerOptimizer().load_state_dict(old(), CPU)
    with pytest.raises(CheckpointMismatchError, match="with the server optimizer `adam` but got one with `sgd`"):
        ServerOptimizer("adam").load_state_dict(old(), CPU)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": float("nan")}, "`server_optimizer.lr` above 0 but got nan"),
        ({"lr": 0.0}, "Expected `server_optimizer.lr` above 0 but got 0.0"),
        ({"momentum": 1.0}, r"`server_optimizer.momentum` in \[0, 1\) but got 1.0"),
        ({"momentum": -0.1}, r"`server_optimizer.momentum` in \[0, 1\) but got -0.1"),
        ({"name": "adam", "momentum": 0.9}, "no `server_optimizer.momentum` with `adam` but got 0.9: .* `betas`"),
        ({"name": "yogi", "betas": (1.0, 0.9)}, r"`server_optimizer.betas` in \[0, 1\) but got \(1.0, 0.9\)"),
        ({"name": "yogi", "betas": (0.9, -1.0)}, r"`server_optimizer.betas` in \[0, 1\) but got \(0.9, -1.0\)"),
        ({"name": "adam", "tau": 0.0}, "`server_optimizer.tau` above 0 but got 0.0"),
        ({"name": "adagrad"}, "`server_optimizer.name` out of sgd, adam and yogi but got `adagrad`"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(FederatedConfigError, match=message):  # without the type checker, as for users
        inspect.unwrap(ServerOptimizer.__init__)(object.__new__(ServerOptimizer), **arguments)


class Record(pl.Callback):
    """Notes what went into and came out of every aggregation."""

    def __init__(self) -> None:
        self.rounds: list[tuple[AdapterState, list[Any], AdapterState]] = []

    def on_aggregate(self, trainer: Any, pl_module: Any, context: RoundContext) -> None:
        assert context.previous is not None
        self.rounds.append((context.previous.clone(), list(context.updates), context.server.clone()))


def test_a_run_with_momentum_equals_its_recomputation() -> None:
    """Two rounds of FedIT with FedAvgM: x_1 = x_0 + u_1, x_2 = x_1 + 0.5 u_1 + u_2.

    u is the example-weighted mean of what the clients sent, put back to their slots by hand; the server's start in
    round 1 is the end of round 0.
    """
    record, module = Record(), TinyLM()
    start = adapter_tensors(module)
    strategy = make_strategy(FedIT(), server_optimizer=ServerOptimizer(momentum=0.5))
    make_trainer(strategy, callbacks=[record]).fit(module, round_loader(), eval_loader())
    assert len(record.rounds) == 2
    moment: dict[str, torch.Tensor] = {}
    x = dict(record.rounds[0][0].tensors())
    assert sorted(float(v.sum()) for v in x.values()) == sorted(float(v.sum()) for v in start.values())
    for previous, updates, server in record.rounds:
        assert all(torch.equal(x[name], value) for name, value in previous.tensors().items())
        total = sum(update.num_examples for update in updates)
        for name, layer in previous.layers.items():
            mean_a, mean_b = torch.zeros_like(layer.a), torch.zeros_like(layer.b)
            for update in updates:
                for row, slot in enumerate(update.layers[name].slots.tolist()):
                    mean_a[slot] += update.num_examples / total * update.layers[name].a[row]
                    mean_b[:, slot] += update.num_examples / total * update.layers[name].b[:, row]
            for key, mean in ((f"{name}/a", mean_a), (f"{name}/b", mean_b)):
                moment[key] = 0.5 * moment.get(key, torch.zeros_like(mean)) + mean
                torch.testing.assert_close(server.tensors()[key], x[key] + moment[key], rtol=1e-5, atol=1e-7)
        x = dict(server.tensors())
    assert not torch.equal(moment[key], mean), "the second round has a moment"
    final = sorted(adapter_tensors(module).items())
    flat = {f"{n.removesuffix('/a').removesuffix('/b')}.lora_{n[-1].upper()}.default.weight": v for n, v in x.items()}
    assert [n for n, _ in final] == sorted(flat) and all(torch.equal(v, flat[n]) for n, v in final)


def test_moments_do_not_go_over_to_another_network() -> None:
    """One optimizer used for two runs, one after the other: the second ends as with an optimizer of its own."""
    shared, results = ServerOptimizer(momentum=0.9), []
    for optimizer in (shared, shared, ServerOptimizer(momentum=0.9)):
        module = TinyLM()
        make_trainer(make_strategy(server_optimizer=optimizer)).fit(module, round_loader(), eval_loader())
        results.append(adapter_tensors(module))
    for name, value in results[2].items():
        assert torch.equal(value, results[0][name]) and torch.equal(value, results[1][name]), name
