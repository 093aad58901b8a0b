"""Checkpoints of resumed runs, at borders that Lightning misreads, and after exceptions are as good as any other."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, OnExceptionCheckpoint
from torch.nn import functional as F

from pl_fed.chunks import Packing
from pl_fed.errors import CheckpointError
from pl_fed.packing import TokenRows
from pl_fed.rounds import LocalTraining
from tests.helpers.resume import SaveEveryBatch, run
from tests.helpers.tiny import TinyLM

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{text}")  # what Lightning says of callbacks that the resumed run lacks
    for text in (
        "The dirpath has changed",
        "Be aware that when using `ckpt_path`",
        ".*was called without a model",
        ".*but there is no last checkpoint",
    )
]
Case = dict[str, Any]
KEPT: Case = {"strategy": {"local": LocalTraining(epochs=1, optimizer="kept")}}
SHARDS = [list(range(0, 12)), list(range(12, 15)), list(range(15, 24)), list(range(24, 30))]  # 4, 1, 3, 2 batches


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())


def every_step(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, save_top_k=-1, every_n_train_steps=1, filename="{step:03d}")


def test_checkpoints_of_a_resumed_run(tmp_path: Path) -> None:
    """From the end of a round on its last batch, from its middle, and from the end of the run that went on there."""
    expected = run(KEPT, callbacks=[every_step(tmp_path / "first")])
    checkpoints = sorted((tmp_path / "first").iterdir())
    for number, checkpoint in enumerate(checkpoints[2::4] + checkpoints[7:8]):
        folder = tmp_path / str(number)
        assert equal(run(KEPT, checkpoint, callbacks=[every_step(folder)]), expected)
        for later in sorted(folder.iterdir())[::3]:
            assert equal(run(KEPT, later), expected), (checkpoint.name, later.name)


@pytest.mark.parametrize(
    ("trainer", "every"),
    [
        ({"check_val_every_n_epoch": 2}, None),  # the next round is shorter
        ({"val_check_interval": 0.5}, None),
        ({"limit_train_batches": 5}, 1),
        ({"limit_train_batches": 0.5}, 1),
        ({"overfit_batches": 4}, 2),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:You requested to overfit", "ignore:.*does not have many workers")
def test_borders_of_rounds_of_unequal_length(trainer: dict[str, Any], every: int | None, tmp_path: Path) -> None:
    case = {**KEPT, "trainer": {**trainer, "max_epochs": 4}, "shards": SHARDS}
    settings = {"save_top_k": -1, "filename": "{epoch}-{step}", "every_n_train_steps": every}
    expected = run(case, callbacks=[ModelCheckpoint(tmp_path, **settings)])
    checkpoints = sorted(tmp_path.iterdir())
    assert len(checkpoints) >= 2
    assert [checkpoint.name for checkpoint in checkpoints if not equal(run(case, checkpoint), expected)] == []


class SaveEarly(Callback):
    """No `Checkpoint`: its turn comes before that of the driver, which has not counted the batch yet."""

    def __init__(self, folder: Path) -> None:
        self.saver = SaveEveryBatch(folder)

    def on_train_batch_end(self, *args: Any) -> None:
        self.saver.on_train_batch_end(*args)


class PackedLM(TinyLM):
    def packed_losses(self, rows: TokenRows) -> torch.Tensor:
        labelled = TokenRows(
            [{**batch, "labels": batch["input_ids"]} for batch in rows.batches], rows.segments, rows.masks
        )
        targets = labelled.next_tokens()
        chosen = (targets != -100).nonzero().flatten()
        logits = self.model(input_ids=rows.pick("input_ids"), position_ids=rows.positions).logits[0, chosen]
        return rows.token_means(F.cross_entropy(logits, targets[chosen], reduction="none"), chosen)


@pytest.mark.parametrize("engine", ["sequential", Packing(2)], ids=["sequential", "packed"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_callback_saves_before_the_batch_is_counted(engine: Any, accumulate: int, tmp_path: Path) -> None:
    strategy = {"local": LocalTraining(epochs=1, remainder="pad"), "engine": engine}
    case = {"network": PackedLM, "strategy": strategy, "trainer": {"accumulate_grad_batches": accumulate}}
    expected = run(case, callbacks=[SaveEarly(tmp_path)])
    checkpoints = sorted(tmp_path.iterdir())
    assert len(checkpoints) >= 9
    assert [checkpoint.name for checkpoint in checkpoints if not equal(run(case, checkpoint), expected)] == []


class FailOnce(Exception):
    pass


def failing(hook: str, at_call: int) -> Callback:
    calls = []

    def fail(*args: Any, **kwargs: Any) -> None:
        calls.append(hook)
        if len(calls) == at_call:
            raise FailOnce

    callback = Callback()
    vars(callback)[hook] = fail
    return callback


def stopped(hook: str, at_call: int, folder: Path) -> Path:
    """Return the checkpoint of a run that an exception in a hook ended."""
    with pytest.raises(FailOnce):
        run(KEPT, callbacks=[failing(hook, at_call), OnExceptionCheckpoint(folder, "broken")])
    return folder / "broken.ckpt"


@pytest.mark.parametrize("at_call", [1, 3])
@pytest.mark.parametrize(
    "hook",
    [
        "on_train_batch_end",
        "on_validation_batch_start",
        "on_validation_end",
        "on_train_epoch_start",
        "on_train_epoch_end",
    ],
)
def test_an_exception_of_a_callback(hook: str, at_call: int, tmp_path: Path) -> None:
    assert equal(run(KEPT, stopped(hook, at_call, tmp_path)), run(KEPT))


@pytest.mark.parametrize(
    ("hook", "at_call", "where"),
    [
        ("on_round_start", 2, "at the start of round 1"),
        ("on_client_start", 2, "between two clients of round 0"),
        ("on_aggregate", 1, "between two clients of round 0"),
    ],
)
def test_an_exception_between_clients_leaves_no_whole_state(
    hook: str, at_call: int, where: str, tmp_path: Path
) -> None:
    checkpoint = stopped(hook, at_call, tmp_path)
    with pytest.raises(CheckpointError, match=f"an exception ended the run {where}: resume from an earlier one"):
        run(KEPT, checkpoint)
