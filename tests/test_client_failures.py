"""Clients that fail are left out, counted and logged; too few survivors stop the run with a checkpoint."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from pl_fed.callbacks import CommunicationMonitor
from pl_fed.clients import ClientsConfig, DeviceProfile
from pl_fed.context import RoundContext
from pl_fed.errors import ClientFailureError, TooFewClientsError
from pl_fed.rounds import CohortConfig, drops_out
from pl_fed.updates import LayerSlots
from tests.helpers.tiny import TinyLM, adapter_tensors, eval_loader, make_strategy, make_trainer, round_loader

EVERYBODY = CohortConfig()


class Break(pl.Callback):
    """Spoils one client's update."""

    def __init__(self, client_id: int, how: str) -> None:
        self.client_id, self.how = client_id, how
        self.contexts: list[RoundContext] = []

    def on_upload(self, trainer: Any, pl_module: Any, context: RoundContext) -> None:
        client = context.client
        assert client is not None and client.update is not None
        if client.client_id != self.client_id:
            return
        if self.how == "refuses":
            raise ClientFailureError(client.client_id, "refused", "does not want to")
        for name, part in client.update.layers.items():
            assert part.b is not None
            spoiled = part.b * float("nan") if self.how == "nan" else part.b[:-1]
            client.update.layers[name] = LayerSlots(part.slots, part.a, spoiled)

    def on_round_end(self, trainer: Any, pl_module: Any, context: RoundContext) -> None:
        self.contexts.append(context)


def fit(strategy: Any, callbacks: list[Any], **kwargs: Any) -> tuple[pl.Trainer, TinyLM]:
    module = TinyLM()
    trainer = make_trainer(strategy, callbacks=callbacks, max_epochs=1, **kwargs)
    trainer.fit(module, round_loader(), eval_loader())
    return trainer, module


@pytest.mark.parametrize(("how", "reason"), [("nan", "not_finite"), ("shape", "wrong_shape"), ("refuses", "refused")])
def test_a_spoiled_update_changes_nothing_but_the_count(how: str, reason: str) -> None:
    """The server ends as if the client had not been in the cohort: the mean of the other three."""
    spoil, refuse = Break(1, how), Break(1, "refuses")
    trainer, module = fit(make_strategy(cohort=EVERYBODY), [spoil])
    _, without = fit(make_strategy(cohort=EVERYBODY), [refuse])
    assert spoil.contexts[0].failures == {1: reason}
    assert sorted(update.client_id for update in spoil.contexts[0].updates) == [0, 2, 3]
    assert trainer.callback_metrics["server/failed_clients"] == 1
    assert trainer.callback_metrics[f"server/failed_{reason}"] == 1
    assert all(torch.isfinite(value).all() for value in adapter_tensors(module).values())
    assert all(torch.equal(v, adapter_tensors(without)[n]) for n, v in adapter_tensors(module).items())


def test_dropouts_are_a_function_of_seed_and_round() -> None:
    cohort = CohortConfig(dropout=0.5)
    watch = Break(-1, "nan")
    fit(make_strategy(cohort=cohort, seed=7), [watch])
    expected = {k for k in range(4) if drops_out(0.5, 7, 0, k)}
    assert 0 < len(expected) < 4, "choose another seed"
    assert watch.contexts[0].failures == dict.fromkeys(expected, "dropout")


def test_slow_clients_are_left_out() -> None:
    """Odd clients have a device that needs far more than the budget's seconds."""
    devices = [
        DeviceProfile("fast", gflops=1e6, uplink_mbps=1e4, downlink_mbps=1e4),
        DeviceProfile("slow", gflops=1e-4),
    ]
    clients = ClientsConfig(ranks=[4], devices=devices, round_seconds=1.0)
    watch = Break(-1, "nan")
    fit(make_strategy(clients=clients, cohort=EVERYBODY), [watch])
    assert watch.contexts[0].failures == {1: "timeout", 3: "timeout"}
    assert all(client.seconds > 1 for client in watch.contexts[0].finished if client.client_id in (1, 3))


def test_too_few_survivors_stop_with_a_checkpoint(tmp_path: Path) -> None:
    """After training (a NaN client) and before it (dropouts): the server is unchanged and the checkpoint resumes."""
    cohort = CohortConfig(min_survivors=4)
    module, start = TinyLM(), adapter_tensors(TinyLM())
    watch, monitor = Break(1, "nan"), CommunicationMonitor(client_table=False)
    trainer = make_trainer(make_strategy(cohort=cohort), callbacks=[watch, monitor], default_root_dir=tmp_path)
    with pytest.raises(
        TooFewClientsError,
        match=r"at least 4 usable clients .* round 0 but got 3 .client 1: not_fin.*is at '.*/too-few-clients-round-0",
    ):
        trainer.fit(module, round_loader(), eval_loader())
    assert all(torch.equal(value, start[name]) for name, value in adapter_tensors(module).items())
    saved = tmp_path / "too-few-clients-round-0.ckpt"
    sent = monitor.totals.upload_bytes
    assert sent > 0 and monitor.totals.rounds == 1
    monitor = CommunicationMonitor(client_table=False)
    resumed, again = make_trainer(make_strategy(cohort=cohort), max_epochs=2, callbacks=[monitor]), TinyLM()
    resumed.fit(again, round_loader(), eval_loader(), ckpt_path=saved)
    assert resumed.current_epoch == 2 and monitor.totals.rounds == 2, "the failed round was paid for too"
    assert monitor.totals.upload_bytes == 2 * sent
    assert any(not torch.equal(value, start[name]) for name, value in adapter_tensors(again).items())


def test_too_few_reporting_stop_before_training(tmp_path: Path) -> None:
    cohort = CohortConfig(dropout=0.9, min_survivors=3)
    trainer = make_trainer(make_strategy(cohort=cohort), default_root_dir=tmp_path)
    with pytest.raises(TooFewClientsError, match="dropout"):
        trainer.fit(TinyLM(), round_loader(), eval_loader())
    assert torch.load(tmp_path / "too-few-clients-round-0.ckpt", weights_only=True)["state_dict"]
