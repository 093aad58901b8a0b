"""Real W&B runs, offline: what reached W&B is read back from the run's transaction log."""

import json
import pickle
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from torch.utils.data import DataLoader
from wandb.proto import wandb_internal_pb2

from pl_fed.callbacks import CommunicationMonitor, RunSummary, WandbRounds
from pl_fed.callbacks.wandb_rounds import is_disabled, wandb_runs
from pl_fed.errors import FederatedConfigError
from tests.helpers.tiny import TinyLM, Tokens, eval_loader, make_strategy, make_trainer, round_loader


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing listens: any use of the network fails
    yield
    wandb.finish()


def offline(save_dir: Path, **options: Any) -> WandbLogger:
    """Return a logger that is offline whatever the environment says."""
    return WandbLogger(save_dir=save_dir, mode="offline", **options)


class Save(Checkpoint):
    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.save_checkpoint(self.path)


def fit(logger: Any, *callbacks: Callback, ckpt: Path | None = None, strategy: Any = None, max_epochs: int = 2) -> Any:
    federated = strategy is None
    trainer = make_trainer(
        make_strategy() if federated else strategy, logger=logger, callbacks=list(callbacks), max_epochs=max_epochs
    )
    loader = round_loader() if federated else DataLoader(Tokens(), batch_size=15)
    trainer.fit(TinyLM(), loader, eval_loader(), ckpt_path=ckpt)
    return trainer


def records(folder: Path) -> Iterator[Any]:
    """Read a transaction log: a 7-byte head, then blocks of 32 KiB with LevelDB records (checksum, length, kind)."""
    data, at, parts = next(folder.glob("wandb/offline-run-*/*.wandb")).read_bytes(), 7, b""
    while at + 7 < len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if at + 7 + length > len(data):
            return  # being written
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record: Any = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
            record.ParseFromString(parts)
            parts = b""
            yield record


def read(folder: Path) -> tuple[list[dict[str, Any]], dict[str, str], dict[str, Any], set[str]]:
    """Return the history's rows, the step metric of every name or pattern, the config, and the files."""
    rows, steps, config, files = [], {}, {}, set()
    deadline = time.monotonic() + 20
    while not (log := list(records(folder))) or log[-1].WhichOneof("record_type") != "exit":
        assert time.monotonic() < deadline, "W&B writes in the background but never wrote the end"
        time.sleep(0.02)
    for record in log:
        kind = record.WhichOneof("record_type")
        if kind == "history":
            rows.append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item})
        elif kind == "metric":
            steps[record.metric.name or record.metric.glob_name] = record.metric.step_metric
        elif kind == "config":
            config.update({i.key: json.loads(i.value_json) for i in record.config.update})
        elif kind == "files":
            files |= {file.path for file in record.files.files}
    return rows, steps, config, files


def test_offline_run(tmp_path: Path) -> None:
    """Every row of a round, of a validation and of the test holds the round that was meant."""
    logger, monitor = offline(save_dir=tmp_path, project="p", id="abc"), CommunicationMonitor()
    started = time.monotonic()
    trainer = fit(logger, monitor, RunSummary(print_table=False), WandbRounds(config={"model": {"lr": 0.1}}))
    trainer.test(TinyLM(), eval_loader(), verbose=False)
    wandb.finish()
    assert time.monotonic() - started < 30, "waited for the network"
    rows, steps, config, files = read(tmp_path)
    assert [row["round"] for row in rows if "server/upload_bytes" in row] == [0, 1]
    assert [row["round"] for row in rows if "val/loss" in row] == [0, 1]
    assert [row["round"] for row in rows if "test/loss" in row] == [1]
    assert [row["server/total_upload_bytes"] for row in rows if "server/upload_bytes" in row][-1] == (
        monitor.totals.upload_bytes
    )
    assert not any("round" in row for row in rows if "train/loss" in row), "keeps Lightning's count of steps"
    named = ("server/upload_bytes", "server/clients", "val/loss", "val/clients", "test/loss", "test/clients")
    for name in ("server/*", "val/*", "test*", *named):
        assert steps[name] == "round", name
    assert steps["*"] == "trainer/global_step"
    assert config["model"] == {"lr": 0.1}
    assert {"summary.json", "clients.csv"} <= files
    tables = sorted(
        tmp_path.glob("wandb/offline-run-*/files/media/table/*.json"), key=lambda p: int(p.stem.split("_")[1])
    )
    data = [json.loads(path.read_text())["data"] for path in tables]
    assert [[row[0] for row in table] for table in data] == [[0, 0, 0], [1, 1, 1]]
    assert sum(row[6] for table in data for row in table) == monitor.totals.upload_bytes


def test_plain_run_keeps_its_axis(tmp_path: Path) -> None:
    fit(offline(save_dir=tmp_path, project="p"), WandbRounds(), strategy="auto")
    wandb.finish()
    rows, steps, _, _ = read(tmp_path)
    assert "round" not in steps and not any("round" in row for row in rows)


def test_without_wandb_nothing_happens(tmp_path: Path) -> None:
    fit(CSVLogger(tmp_path), WandbRounds(), max_epochs=1)
    assert wandb.run is None


def test_disabled_run(tmp_path: Path) -> None:
    logger = WandbLogger(save_dir=tmp_path, id="abc", mode="disabled")
    trainer = fit(logger, CommunicationMonitor(), WandbRounds(config={"a": 1}), max_epochs=1)
    assert all(is_disabled(run) for run in wandb_runs(trainer))
    assert not (tmp_path / "wandb").exists()


@pytest.mark.parametrize("source", ["dict", "text", "path", "folder"])
def test_config_is_found(source: str, tmp_path: Path) -> None:
    """From the Trainer's attribute, or from `config.yaml` in the run's folder."""
    text = "model:\n  lr: 0.1\n"
    (tmp_path / "config.yaml").write_text(text)
    trainer = make_trainer("auto", default_root_dir=tmp_path if source == "folder" else tmp_path / "none")
    if source != "folder":
        found = {"dict": {"model": {"lr": 0.1}}, "text": text, "path": tmp_path / "config.yaml"}[source]
        trainer.resolved_config = found  # type: ignore[attr-defined]
    assert WandbRounds()._resolved_config(trainer) == {"model": {"lr": 0.1}}
    assert WandbRounds(config={"b": 2})._resolved_config(trainer) == {"b": 2}


def test_hyperparameters_do_not_replace_the_config(tmp_path: Path) -> None:
    """Lightning adds those of the module after the callbacks' `on_fit_start`."""
    logger, callback = offline(save_dir=tmp_path, project="p"), WandbRounds(config={"model": {"lr": 0.1}})
    trainer = make_trainer(make_strategy(), logger=logger, callbacks=[callback], max_epochs=1)
    module = TinyLM()
    module.save_hyperparameters({"model": "tiny", "rank": 4})
    trainer.fit(module, round_loader(), eval_loader())
    wandb.finish()
    _, _, config, _ = read(tmp_path)
    assert config["model"] == {"lr": 0.1} and config["rank"] == 4


def test_no_config_is_no_error(tmp_path: Path) -> None:
    assert WandbRounds()._resolved_config(make_trainer("auto", default_root_dir=tmp_path)) == {}


def test_resumed_run_is_a_new_one_of_the_same_group(tmp_path: Path) -> None:
    first, second = (offline(save_dir=tmp_path / name, project="p", group="g") for name in "ab")
    fit(first, WandbRounds(), Save(tmp_path / "last.ckpt"), max_epochs=1)
    first_id = first.version
    wandb.finish()
    fit(second, WandbRounds(), ckpt=tmp_path / "last.ckpt")
    assert second.version != first_id
    wandb.finish()
    rows, _, config, _ = read(tmp_path / "b")
    assert config["resumed_from"] == first_id
    assert [row["round"] for row in rows if "val/loss" in row] == [1]


def test_resuming_an_offline_id_is_refused(tmp_path: Path) -> None:
    fit(offline(save_dir=tmp_path, id="abc"), WandbRounds(), Save(tmp_path / "last.ckpt"), max_epochs=1)
    wandb.finish()
    with pytest.raises(FederatedConfigError, match="Expected a new W&B run .* but got the id `abc` again"):
        fit(offline(save_dir=tmp_path, id="abc"), WandbRounds(), ckpt=tmp_path / "last.ckpt")


def test_other_group_is_said(tmp_path: Path) -> None:
    fit(offline(save_dir=tmp_path, group="g"), WandbRounds(), Save(tmp_path / "last.ckpt"), max_epochs=1)
    wandb.finish()
    with pytest.warns(UserWarning, match="Expected the group `g` of the run .* but got ``"):
        fit(offline(save_dir=tmp_path), WandbRounds(), ckpt=tmp_path / "last.ckpt")


def test_run_that_is_still_open_goes_on(tmp_path: Path) -> None:
    logger, callback = offline(save_dir=tmp_path, id="abc"), WandbRounds()
    fit(logger, callback, Save(tmp_path / "last.ckpt"), max_epochs=1)
    fit(logger, callback, ckpt=tmp_path / "last.ckpt")
    wandb.finish()
    rows, _, config, _ = read(tmp_path)
    assert [row["round"] for row in rows if "val/loss" in row] == [0, 1]
    assert "resumed_from" not in config


def test_pickles() -> None:
    assert pickle.loads(pickle.dumps(WandbRounds({"a": 1}))).config == {"a": 1}
