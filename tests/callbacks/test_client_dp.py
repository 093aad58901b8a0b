"""Client-level differential privacy: clipping by hand, the noise's size, the accountant, the budget, resume."""

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from opacus.accountants import RDPAccountant
from torch import Tensor

from pl_fed.callbacks import ClientDP
from pl_fed.callbacks.client_dp import _noised
from pl_fed.context import RoundContext
from pl_fed.errors import FederatedConfigError
from pl_fed.rules import AFLoRA, FedIT, FlexLoRA, Median
from pl_fed.updates import AdapterState, LayerSlots, LayerState, Update
from tests.helpers.tiny import TinyLM, adapter_tensors, eval_loader, make_strategy, make_trainer, round_loader
from tests.test_resume import SaveEveryBatch

pytestmark = pytest.mark.filterwarnings("ignore:Optimal order is the (largest|smallest) alpha")  # of a few rounds


class Uploads(pl.Callback):
    """Notes updates before the clipping, and the server's tensors around each aggregation."""

    def __init__(self) -> None:
        self.before: list[Update] = []
        self.moves: list[dict[str, Tensor]] = []
        self.metrics: list[dict[str, float]] = []

    def on_upload(self, trainer: Any, pl_module: Any, context: RoundContext) -> None:
        self.before.append(context.client.update)

    def on_round_end(self, trainer: Any, pl_module: Any, context: RoundContext) -> None:
        old, new = context.previous.tensors(), context.server.tensors()
        self.moves.append({name: new[name] - old[name] for name in old})
        self.metrics.append(context.metrics)  # ClientDP comes after, and adds to it


def fit(dp: ClientDP | None, rounds: int = 1, rule: Any = None, **kwargs: Any) -> tuple[Uploads, TinyLM, pl.Trainer]:
    module, uploads = TinyLM(), Uploads()
    callbacks = [uploads, *([dp] if dp else []), *kwargs.pop("callbacks", [])]
    strategy = make_strategy(rule or FedIT(), **kwargs.pop("strategy", {}))
    trainer = make_trainer(strategy, max_epochs=rounds, callbacks=callbacks, **kwargs.pop("trainer", {}))
    trainer.fit(module, round_loader(), eval_loader(), **kwargs)
    return uploads, module, trainer


def norm(update: Update) -> float:
    return math.sqrt(sum(float(value.square().sum()) for value in update.values()))


def test_the_server_moves_by_the_mean_of_the_clipped_updates() -> None:
    """With next to no noise: every update is cut to the norm .01, and every client counts a third."""
    uploads, _, _ = fit(ClientDP(clip=0.01, noise_multiplier=1e-6))
    assert all(norm(update) > 0.01 for update in uploads.before), "all are clipped"
    for name in uploads.before[0].layers:
        expected = torch.zeros_like(uploads.moves[0][f"{name}/a"])
        for update in uploads.before:
            part = update.layers[name]
            expected[part.slots] += part.a * 0.01 / norm(update) / 3
        assert torch.allclose(uploads.moves[0][f"{name}/a"], expected, atol=1e-7)
    assert uploads.metrics[0]["server/clipped_clients"] == 3


def test_small_updates_are_not_enlarged() -> None:
    update = Update(
        0, 5, {"x": LayerSlots(torch.tensor([1]), torch.ones(1, 2), torch.ones(3, 1))}, {"h": torch.ones(1)}
    )
    server = AdapterState({"x": LayerState(torch.zeros(2, 2), torch.zeros(3, 2))}, {"h": torch.zeros(1)})
    found = _noised(update, server, 1.0, 0.0, 0)
    assert found.num_examples == 1 and found.dense["h"] == 1.0
    assert torch.equal(found.layers["x"].a, torch.tensor([[0.0, 0.0], [1.0, 1.0]])), "on every slot of the server"
    assert torch.equal(found.layers["x"].b, torch.tensor([[0.0, 1.0]] * 3))


def test_size_of_the_noise() -> None:
    """On a million values the standard deviation is within 1 %: std of a client's share, z C / sqrt(n)."""
    update = Update(3, 5, {}, {"h": torch.zeros(1_000_000)})
    server = AdapterState({}, {"h": torch.zeros(1_000_000)})
    noise = _noised(update, server, 1.0, 2.0 * 0.5 / math.sqrt(4), 1).dense["h"]
    assert float(noise.std()) == pytest.approx(0.5, rel=0.01) and abs(float(noise.mean())) < 0.003
    assert torch.equal(noise, _noised(update, server, 1.0, 0.5, 1).dense["h"])
    assert not torch.equal(noise, _noised(update, server, 1.0, 0.5, 2).dense["h"])


def test_epsilon_is_the_accountants() -> None:
    """Three of four clients a round, noise 1.5; without failures the whole noise counts."""
    uploads, _, trainer = fit(ClientDP(noise_multiplier=1.5), rounds=3)
    accountant, expected = RDPAccountant(), []
    for _ in range(3):
        accountant.step(noise_multiplier=1.5, sample_rate=0.75)
        expected.append(accountant.get_epsilon(delta=1e-5))
    assert [metrics["server/epsilon"] for metrics in uploads.metrics] == pytest.approx(expected)
    assert float(trainer.callback_metrics["server/epsilon"]) == pytest.approx(expected[-1], rel=1e-6)


def test_failed_clients_take_their_noise_with_them() -> None:
    """Of three clients one fails: two thirds of the variance are left, and that is what is accounted for."""

    class Fail(pl.Callback):
        def on_client_end(self, trainer: Any, pl_module: Any, context: RoundContext) -> None:
            if context.client.position == 0:
                context.failures[context.client.client_id] = "test"

    dp = ClientDP(noise_multiplier=1.5)
    fit(dp, callbacks=[Fail()])
    assert dp.history == [(pytest.approx(1.5 * math.sqrt(2 / 3)), 0.75)]


def test_the_run_stops_before_the_budget_is_exceeded() -> None:
    free = ClientDP(noise_multiplier=1.0)
    uploads, _, _ = fit(free, rounds=4)
    epsilons = [metrics["server/epsilon"] for metrics in uploads.metrics]
    limit = (epsilons[1] + epsilons[2]) / 2  # two rounds fit, three do not
    limited = ClientDP(noise_multiplier=1.0, max_epsilon=limit)
    stopped, _, _ = fit(limited, rounds=4)
    assert [metrics["server/epsilon"] for metrics in stopped.metrics] == epsilons[:2]
    assert limited.epsilon() <= limit


def test_a_budget_of_less_than_a_round_is_refused_before_training() -> None:
    uploads, _, _ = fit(ClientDP(noise_multiplier=0.1))
    one = uploads.metrics[0]["server/epsilon"]
    dp = ClientDP(noise_multiplier=0.1, max_epsilon=one * 0.99)
    with pytest.raises(FederatedConfigError, match=rf"at least one round but got .* makes epsilon {one:.3g}: raise it"):
        fit(dp)
    assert not dp.history
    fit(dp := ClientDP(noise_multiplier=0.1, max_epsilon=one * 1.01))
    assert len(dp.history) == 1


@pytest.mark.parametrize("least", ["min_epochs", "min_steps"])
def test_a_trainer_that_would_not_stop_is_refused(least: str) -> None:
    dp = ClientDP(max_epsilon=10.0)
    with pytest.raises(FederatedConfigError, match="no `min_epochs` or `min_steps` .* but got"):
        fit(dp, trainer={least: 3})
    fit(ClientDP(), trainer={least: 2})  # without a budget they mean what they say


def test_a_resume_does_not_spend_another_round(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three of four clients a round: the budget lies between the epsilons of two and of three rounds."""
    accountant = RDPAccountant()
    accountant.history = [(1.0, 0.75, 3)]
    limit = accountant.get_epsilon(delta=1e-5) * 0.99
    dp, path = ClientDP(max_epsilon=limit), tmp_path / "x.ckpt"
    _, module, trainer = fit(dp, rounds=9)
    spent, before = dp.epsilon(), adapter_tensors(module)
    trainer.save_checkpoint(path)
    text = f"ClientDP ends the run after 2 round(s) with epsilon {spent:.3g}: one more"
    assert len(dp.history) == 2 and text in capsys.readouterr().out
    resumed = ClientDP(max_epsilon=limit)
    _, module, _ = fit(resumed, rounds=9, ckpt_path=path)
    assert resumed.epsilon() == spent and text in capsys.readouterr().out
    assert all(torch.equal(value, before[name]) for name, value in adapter_tensors(module).items())


def test_secure_aggregation_sums_clipped_and_noised_updates() -> None:
    options = {"strategy": {"secure_aggregation": "ideal"}}
    (secure, _, _), (plain, _, _) = (fit(ClientDP(0.05, 0.5), **more) for more in (options, {}))
    for name, value in plain.moves[0].items():
        assert torch.allclose(secure.moves[0][name], value, atol=1e-5), name


def test_resume_goes_on_with_the_accountant(tmp_path: Path) -> None:
    _, expected, _ = fit(ClientDP(0.05), rounds=2, callbacks=[SaveEveryBatch(tmp_path)])
    dp = ClientDP(0.05)
    _, found, _ = fit(dp, rounds=2, ckpt_path=sorted(tmp_path.iterdir())[7])
    assert len(dp.history) == 2
    assert all(torch.equal(value, adapter_tensors(found)[name]) for name, value in adapter_tensors(expected).items())


@pytest.mark.parametrize(
    "rule", [FlexLoRA(), AFLoRA(rank_weights=True), AFLoRA(rank_weights=False, aggregation="slot"), FedIT(Median())]
)
def test_rules_that_let_one_client_count_for_more_are_refused(rule: Any) -> None:
    with pytest.raises(
        FederatedConfigError, match=f"plain mean of the updates with ClientDP but got {type(rule).__name__}"
    ):
        fit(ClientDP(), rule=rule)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"clip": 0.0}, "above 0 but got 0.0 and 1.0"),
        ({"noise_multiplier": -1.0}, "above 0 but got 1.0 and -1.0"),
        ({"noise_multiplier": float("nan")}, "finite `clip` and `noise_multiplier` .* got 1.0 and nan"),
        ({"delta": 1.0}, r"`delta` in \(0, 1\)"),
        ({"max_epsilon": 0.0}, "`max_epsilon` above 0"),
    ],
)
def test_bad_values(options: dict[str, float], text: str) -> None:
    with pytest.raises(FederatedConfigError, match=text):
        ClientDP(**options)
