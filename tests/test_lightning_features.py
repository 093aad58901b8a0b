"""Lightning's features keep their meaning when an epoch is a round."""

import csv
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    RichProgressBar,
    Timer,
    TQDMProgressBar,
)
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from pl_fed.context import RoundContext
from tests.helpers.tiny import TinyLM, Tokens, adapter_tensors, eval_loader, make_strategy, make_trainer, round_loader


class Journal(pl.Callback):
    """Writes down the federated hooks in the order in which they come."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int, int | None]] = []

    def __getattr__(self, name: str) -> Any:
        hooks = {"on_round_start", "on_client_start", "on_broadcast", "on_client_end", "on_upload", "on_aggregate"}
        if name not in hooks | {"on_round_end"}:
            raise AttributeError(name)

        def note(trainer: Any, pl_module: Any, context: RoundContext) -> None:
            self.events.append((name, context.round_idx, context.client.client_id if context.client else None))

        return note

    def names(self, hook: str) -> list[tuple[int, int | None]]:
        return [(round_idx, client) for name, round_idx, client in self.events if name == hook]


def fit(**kwargs: Any) -> tuple[pl.Trainer, TinyLM, Journal]:
    journal, module = Journal(), TinyLM()
    callbacks = [*kwargs.pop("callbacks", []), journal]
    trainer = make_trainer(make_strategy(), callbacks=callbacks, **kwargs)
    trainer.fit(module, round_loader(), eval_loader())
    return trainer, module, journal


def test_hooks_come_in_order_and_every_epoch_is_a_round() -> None:
    trainer, _, journal = fit(max_epochs=3)
    schedule = [round_loader_schedule(trainer, r) for r in range(3)]
    assert journal.names("on_client_end") == [(r, client) for r, clients in enumerate(schedule) for client in clients]
    first = [name for name, round_idx, _ in journal.events if round_idx == 0]
    per_client = ["on_client_start", "on_broadcast", "on_client_end", "on_upload"]
    assert first == ["on_round_start", *per_client * 3, "on_aggregate", "on_round_end"]
    assert trainer.current_epoch == 3
    assert int(trainer.callback_metrics["round"]) == 2


def round_loader_schedule(trainer: pl.Trainer, round_idx: int) -> list[int]:
    return [work.client_id for work in trainer.strategy.loop.plan.schedule(round_idx).work]  # type: ignore[attr-defined]


def test_unequal_rounds_train_every_batch() -> None:
    """Global steps are the sum of the rounds' batches (Lightning computes an epoch's length once)."""
    trainer, _, _ = fit(max_epochs=4)
    plan = trainer.strategy.loop.plan  # type: ignore[attr-defined]
    lengths = [plan.schedule(r).num_batches for r in range(4)]
    assert len(set(lengths)) > 1
    assert trainer.global_step == sum(lengths)


def test_validation_sees_the_server_and_disturbs_nothing() -> None:
    """`val_check_interval` inside rounds: the server is validated; training is unchanged."""

    class Check(pl.Callback):
        seen = 0

        def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            server = trainer.strategy.loop.federation.server.tensors()
            live = trainer.strategy.loop.federation.adapter.read().tensors()
            assert all(torch.equal(server[name], live[name]) for name in server)
            self.seen += 1

    check = Check()
    _, module, _ = fit(max_epochs=2, val_check_interval=2, callbacks=[check])
    _, plain, _ = fit(max_epochs=2)
    assert check.seen >= 8
    assert all(torch.equal(v, adapter_tensors(plain)[n]) for n, v in adapter_tensors(module).items())


def test_early_stopping_counts_rounds() -> None:
    stop = EarlyStopping("val/loss", patience=1, min_delta=10.0)
    trainer, _, journal = fit(max_epochs=9, callbacks=[stop])
    assert trainer.current_epoch == 2
    assert len(journal.names("on_round_end")) == 2


def test_model_checkpoint_monitors_rounds(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path, "{epoch}", monitor="val/loss", save_last=True)
    steps = ModelCheckpoint(tmp_path / "steps", every_n_train_steps=5, save_top_k=-1)
    trainer, module, _ = fit(max_epochs=3, callbacks=[best, steps])
    assert best.best_model_path and best.best_model_score == pytest.approx(float(best.best_model_score))
    assert len(list((tmp_path / "steps").iterdir())) == trainer.global_step // 5
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, last[name]) for name, value in adapter_tensors(module).items())


def test_learning_rate_monitor_and_csv_logger(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    module = TinyLM(schedule="step")
    trainer = make_trainer(make_strategy(), logger=logger, callbacks=[LearningRateMonitor()], log_every_n_steps=1)
    trainer.fit(module, round_loader(), eval_loader())
    with open(Path(logger.log_dir) / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    rates = [float(row["lr-AdamW"]) for row in rows if row["lr-AdamW"]]
    starts = [row["server/clients"] for row in rows if row["server/clients"]]
    assert max(rates) == pytest.approx(2e-2) and min(rates) < 2e-2, "the schedule runs within a client"
    assert rates.count(max(rates)) == 6, "and starts anew for each of 2 x 3 clients"
    assert [float(value) for value in starts] == [3.0, 3.0]


@pytest.mark.parametrize("bar", [TQDMProgressBar, RichProgressBar])
def test_progress_bars(bar: Any, capsys: pytest.CaptureFixture[str]) -> None:
    fit(max_epochs=1, callbacks=[bar()], enable_progress_bar=True)
    assert "Epoch 0" in "".join(capsys.readouterr())


def test_timer_stops_between_rounds_with_the_servers_model() -> None:
    timer = Timer(duration={"seconds": 0}, interval="epoch")
    trainer, _, journal = fit(max_epochs=50, callbacks=[timer])
    assert trainer.current_epoch <= 1 and len(journal.names("on_round_end")) <= 1


def test_fast_dev_run_trains_one_batch() -> None:
    trainer, _module, journal = fit(fast_dev_run=True)
    assert trainer.global_step == 1
    assert len(journal.names("on_round_end")) == 1


def test_limit_train_batches_cuts_the_round() -> None:
    """Clients beyond the limit do not count."""
    trainer, _, journal = fit(max_epochs=2, limit_train_batches=4, limit_val_batches=1)
    assert trainer.global_step == 8
    plan = trainer.strategy.loop.plan  # type: ignore[attr-defined]
    for round_idx in range(2):
        done, trained = 0, []
        for work in plan.schedule(round_idx).work:
            if done < 4:
                trained.append((round_idx, work.client_id))
            done += len(work.batches)
        assert [e for e in journal.names("on_upload") if e[0] == round_idx] == trained
    assert trainer.callback_metrics["server/failed_limited"] == 3 - len(trained)


def test_max_steps_inside_a_round_leaves_the_servers_model() -> None:
    _, one_round, _ = fit(max_epochs=1)
    trainer, module, journal = fit(max_epochs=-1, max_steps=10)
    assert trainer.global_step == 10
    assert len(journal.names("on_round_end")) == 1
    assert all(torch.equal(v, adapter_tensors(module)[n]) for n, v in adapter_tensors(one_round).items())


def test_overfit_batches() -> None:
    trainer, _, journal = fit(max_epochs=2, overfit_batches=3)
    assert trainer.global_step == 6
    assert len(journal.names("on_round_end")) == 2


def test_validate_test_and_predict_use_the_server() -> None:
    trainer, module, _ = fit(max_epochs=1)
    loss = trainer.validate(module, eval_loader(), verbose=False)[0]["val/loss"]
    assert trainer.test(module, eval_loader(), verbose=False)[0]["test/loss"] == pytest.approx(loss)
    predicted = torch.cat(trainer.predict(module, eval_loader()))
    module.eval()
    expected = module.model(input_ids=Tokens(6).ids).logits.argmax(-1)
    assert torch.equal(predicted, expected)


def test_two_fits_on_one_trainer_go_on() -> None:
    trainer, module, journal = fit(max_epochs=1)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, round_loader(), eval_loader())
    _, whole, _ = fit(max_epochs=2)
    assert trainer.current_epoch == 2 and len(journal.names("on_round_end")) == 2
    assert sum(type(c).__name__ == "FederatedLoop" for c in trainer.callbacks) == 1
    assert all(torch.equal(v, adapter_tensors(module)[n]) for n, v in adapter_tensors(whole).items())


def test_a_second_run_gives_the_same_bits() -> None:
    results = [adapter_tensors(fit(max_epochs=2)[1]) for _ in range(2)]
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


def test_registered_name_and_ordinary_loaders() -> None:
    """`strategy="federated"` exists; with an ordinary loader it trains as Lightning's own strategy does."""

    class Linear(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = torch.nn.Linear(4, 2)

        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            return self.layer(batch).square().sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    data, results = torch.randn(12, 4), []
    for strategy in ("federated", "auto"):
        module = Linear()
        make_trainer(strategy, max_epochs=2).fit(module, DataLoader(data, batch_size=3))
        results.append(module.state_dict())
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


def test_round_loader_without_the_strategy_is_centralised() -> None:
    module = TinyLM()
    trainer = make_trainer("auto", max_epochs=1)
    trainer.fit(module, round_loader(), eval_loader())
    assert trainer.global_step == 10  # 30 examples in batches of 3


@pytest.mark.parametrize(
    ("rounds", "expected"),
    [(False, ["ModelCheckpoint"]), (True, ["FederatedLoop", "ModelCheckpoint"])],
)
def test_ordinary_loaders_leave_the_callbacks_alone(rounds: bool, expected: list[str], tmp_path: Path) -> None:
    """The driver is inserted when the training loader is one of rounds, before the checkpoint callback."""
    trainer = make_trainer(make_strategy(), max_epochs=1, callbacks=[ModelCheckpoint(tmp_path)])
    trainer.fit(TinyLM(), round_loader() if rounds else DataLoader(Tokens(4)), eval_loader())
    names = [type(c).__name__ for c in trainer.callbacks]
    ours = {"PersonalisedEvaluation", "FederatedLoop", "ModelCheckpoint"}
    assert [name for name in names if name in ours] == expected
