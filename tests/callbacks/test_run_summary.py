import json
import math
import pickle
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from pl_fed import __version__
from pl_fed.callbacks import CommunicationMonitor, RunSummary
from pl_fed.callbacks._environment import cpu_name, git_state, hardware
from pl_fed.callbacks.run_summary import scalars, to_json
from pl_fed.clients import ClientsConfig
from pl_fed.rounds import CohortConfig
from pl_fed.rules import FedIT
from tests.helpers.tiny import SHARDS, TinyLM, adapter_tensors, eval_loader, make_strategy, make_trainer, round_loader


def fit(folder: Path, *callbacks: Callback, module: TinyLM | None = None, **options: Any) -> Trainer:
    """Train two rounds of three clients with ranks 4, 2 and 1."""
    strategy = make_strategy(FedIT(), cohort=CohortConfig(), clients=ClientsConfig(ranks=[4, 2, 1]))
    ckpt = options.pop("ckpt", None)
    options.setdefault("logger", CSVLogger(folder, name=None, version="run"))
    trainer = make_trainer(strategy, callbacks=list(callbacks), **options)
    trainer.fit(module or TinyLM(), round_loader(SHARDS[:3]), eval_loader(), ckpt_path=ckpt)
    return trainer


def read(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "run" / "summary.json").read_text()))


def val_loss(module: TinyLM) -> float:
    """Validate by hand: the mean over all six examples, in batches of three."""
    module.eval()
    with torch.no_grad():
        losses = [module.loss(batch) for batch in eval_loader()]
    return float(sum(losses) / len(losses))


def test_summary_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Ranks 4, 2 and 1 send 256 bytes a slot; the adapter has 2 layers of rank 4 with 32 weights a slot."""
    monkeypatch.chdir(tmp_path)
    module = TinyLM()
    start = val_loss(TinyLM())
    checkpoint = ModelCheckpoint(monitor="val/loss", filename="best", mode="max")
    trainer = fit(tmp_path, CommunicationMonitor(), RunSummary(), checkpoint, module=module)
    summary = read(tmp_path)
    assert summary["before_training"] == {"val/loss": pytest.approx(start)}
    assert summary["metrics"]["val/loss"] == pytest.approx(val_loss(module)) != pytest.approx(start)
    assert summary["metrics"] == scalars(trainer.callback_metrics)
    score = summary["best_checkpoint"].pop("score")
    assert summary["best_checkpoint"] == {"path": "checkpoints/best.ckpt", "monitor": "val/loss"}
    assert score == float(checkpoint.best_model_score) >= summary["metrics"]["val/loss"]  # type: ignore[arg-type]
    assert summary["communication"]["upload_bytes"] == 2 * 7 * 256
    assert summary["first_ranks"] == summary["last_ranks"] == {"0": 4, "1": 2, "2": 1}
    assert summary["parameters"]["trainable"] == 2 * 4 * 32
    assert summary["parameters"]["total"] == sum(p.numel() for p in module.parameters())
    assert (summary["rounds"], summary["epochs"], summary["steps"], summary["seed"]) == (2, 2, 18, 5)
    assert summary["simulated_seconds"] == 0.0 < summary["wall_seconds"]
    assert summary["git"] is None
    assert summary["versions"]["torch"] == torch.__version__
    assert summary["versions"]["pl_fed"] == __version__
    assert summary["hardware"]["cores"] >= 1
    printed = capsys.readouterr().out
    for text in ("val/loss", f"{start:.4f}", "rank of client 2", "0.004 MB", "trainable parameters", "wall time"):
        assert text in printed


def test_validation_before_training_disturbs_nothing(tmp_path: Path) -> None:
    """Weights, what is logged, the checkpoint and its progress are those of a run without it."""
    results = []
    for validate_start in (False, True):
        folder, module = tmp_path / str(validate_start), TinyLM()
        summary = RunSummary(validate_start=validate_start, print_table=False)
        trainer = fit(folder, summary, ModelCheckpoint(filename="last"), module=module, num_sanity_val_steps=1)
        saved = torch.load(folder / "run" / "checkpoints" / "last.ckpt", weights_only=True)
        assert trainer.num_sanity_val_steps == 1
        assert set(summary.before) == ({"val/loss"} if validate_start else set())
        driver = saved["callbacks"]["FederatedLoop"]
        results.append((adapter_tensors(module), saved["loops"], driver, (folder / "run" / "metrics.csv").read_text()))
    (weights, loops, driver, logged), (other_weights, other_loops, other_driver, other_logged) = results
    torch.testing.assert_close(weights, other_weights, rtol=0, atol=0)
    assert loops == other_loops
    assert logged == other_logged
    torch.testing.assert_close(driver["clients"], other_driver["clients"], rtol=0, atol=0)


def test_resumed_run_keeps_the_start(tmp_path: Path) -> None:
    """Neither measures it again nor takes it from the resumed model; the clock goes on."""

    class SaveRounds(Checkpoint):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}.ckpt")

    class CountValidations(Callback):
        num = 0

        def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
            self.num += 1

    first = RunSummary(print_table=False)
    fit(tmp_path / "a", first, SaveRounds())
    for sanity in (0, 2):
        again, count = RunSummary(print_table=False), CountValidations()
        ckpt = tmp_path / "0.ckpt"
        fit(tmp_path / f"b{sanity}", again, count, ckpt=ckpt, num_sanity_val_steps=sanity)
        summary = read(tmp_path / f"b{sanity}")
        assert summary["before_training"] == first.before != {}
        assert summary["wall_seconds"] > torch.load(ckpt, weights_only=True)["callbacks"]["RunSummary"]["seconds"] > 0
        assert (summary["rounds"], set(summary["first_ranks"])) == (2, {"0", "1", "2"})
        assert count.num == 1 + (sanity > 0)


def test_written_after_early_stop(tmp_path: Path) -> None:
    stop = EarlyStopping("val/loss", stopping_threshold=100.0)
    fit(tmp_path, RunSummary(print_table=False), stop, max_epochs=5)
    assert read(tmp_path)["rounds"] == 1


@pytest.mark.parametrize(
    ("options", "rounds", "reason"),
    [
        ({"max_steps": 2}, 0, "no round finished"),
        ({"max_epochs": 1, "check_val_every_n_epoch": 2}, 1, "no validation after training"),
        ({"max_epochs": 1}, 1, None),
    ],
)
def test_an_end_that_is_not_known_has_its_reason(
    options: dict[str, int], rounds: int, reason: str | None, tmp_path: Path, capsys: Any
) -> None:
    fit(tmp_path, RunSummary(), **options)
    summary, printed = read(tmp_path), capsys.readouterr().out
    assert (summary["rounds"], summary["end_not_measured"]) == (rounds, reason)
    assert ("val/loss" in summary["metrics"]) == (reason is None)
    assert f"End not measured: {reason}." in " ".join(printed.split()) or (reason is None and "End not" not in printed)
    row = next(line for line in printed.splitlines() if "val/loss" in line).split("│")
    assert row[3].strip() == ("-" if reason else f"{summary['metrics']['val/loss']:.4f}")


def test_not_written_after_an_exception(tmp_path: Path) -> None:
    class Fail(Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fit(tmp_path, RunSummary(), Fail())
    assert not (tmp_path / "run" / "summary.json").exists()


def test_run_with_nothing_left_keeps_its_summary(tmp_path: Path) -> None:
    trainer = fit(tmp_path, RunSummary(print_table=False))
    written = read(tmp_path)
    trainer.fit(TinyLM(), round_loader(SHARDS[:3]), eval_loader())
    assert read(tmp_path) == written


def test_tests_are_added(tmp_path: Path) -> None:
    module = TinyLM()
    trainer = fit(tmp_path, RunSummary(print_table=False), module=module)
    written = read(tmp_path)
    trainer.test(module, eval_loader(), verbose=False)
    assert read(tmp_path) == {**written, "test": {"test/loss": pytest.approx(val_loss(module))}}


def test_test_alone_leaves_a_summary(tmp_path: Path) -> None:
    trainer = make_trainer("auto", callbacks=[RunSummary()], default_root_dir=tmp_path / "run")
    trainer.test(TinyLM(), eval_loader(), verbose=False)
    assert set(read(tmp_path)) == {"date", "versions", "git", "hardware", "test"}


@pytest.mark.filterwarnings("ignore:.*fast_dev_run")
def test_quick_look_writes_nothing(tmp_path: Path) -> None:
    summary = RunSummary()
    fit(tmp_path, summary, fast_dev_run=1, default_root_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert summary.before == {}


def test_numbers_that_are_not_finite_become_null() -> None:
    text = to_json({"a": {"b": [math.nan, 1.5]}, "c": -math.inf, "d": "nan", "e": None})
    assert json.loads(text) == {"a": {"b": [None, 1.5]}, "c": None, "d": "nan", "e": None}


def test_only_numbers_are_scalars() -> None:
    assert scalars({"a": torch.tensor(2), "b": torch.ones(1), "c": torch.ones(2), "d": 3, "e": "x"}) == {
        "a": 2.0,
        "b": 1.0,
        "d": 3.0,
    }


def test_git_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Revision and dirt of a work tree; None before the first commit, outside, and without git."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    try:
        subprocess.run([*git, "init", "-q"], check=True)
    except FileNotFoundError:
        pytest.skip("needs git")
    assert git_state(tmp_path) is None
    (tmp_path / "file").write_text("a")
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    state = git_state(tmp_path)
    assert state is not None
    assert (len(state["revision"]), state["dirty"]) == (40, False)
    (tmp_path / "new").write_text("not tracked")
    assert git_state(tmp_path) == state
    (tmp_path / "file").write_text("b")
    assert git_state(tmp_path) == {**state, "dirty": True}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) is None


def test_hardware(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n")
    assert cpu_name(tmp_path / "cpuinfo") == "Some CPU @ 2 GHz"
    assert cpu_name(tmp_path / "missing") != ""
    assert len(hardware()["cuda"]) == torch.cuda.device_count()


def test_pickles() -> None:
    summary = RunSummary()
    summary.before["val/loss"] = 1.0
    assert pickle.loads(pickle.dumps(summary)).before == summary.before
