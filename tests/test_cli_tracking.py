"""W&B online, against a server on this machine: what arrives there, and what happens when it does not answer."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml

from pl_fed import cli_tracking
from pl_fed.cli import main
from pl_fed.cli_tracking import FallbackWandbLogger, finish_tracking
from tests.helpers.wandb_server import WandbServer, serving

ROOT = Path(__file__).parents[1]
KEY = "0123456789" * 4
pytestmark = pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
SMOKE = ["fit", "--config", "configs/smoke.yaml", "--run.wandb=true", "--trainer.enable_progress_bar=false"]


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with serving() as server:
        yield server


@pytest.fixture(autouse=True)
def online(server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make W&B online at the server; nothing of the user's settings is read or written."""
    (tmp_path / "home").mkdir()
    given = {"BASE_URL": server.url, "API_KEY": KEY, "MODE": "online", "SILENT": "true"}
    for name, value in (given | {"CONFIG_DIR": str(tmp_path / "home")}).items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))
    wandb.teardown()
    yield
    finish_tracking()
    wandb.teardown()


def logger(folder: Path) -> FallbackWandbLogger:
    return FallbackWandbLogger(save_dir=folder, project="p")


def without_empty(config: dict[str, Any]) -> dict[str, Any]:
    """Leave out empty mappings, which W&B does not keep."""
    kept = {name: without_empty(value) if isinstance(value, dict) else value for name, value in config.items()}
    return {name: value for name, value in kept.items() if value != {}}


def test_online_run(server: WandbServer, tmp_path: Path) -> None:
    """The server has the figures of the run's own files, by round, its config and its files, and saw it finish."""
    command = [sys.executable, "cli.py", *SMOKE, f"--run.folder={tmp_path}", "--trainer.max_epochs=2"]
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert server.exit_code == 0 and not server.unknown
    run = tmp_path / "smoke" / "version_0"
    rows = [server.history[number] for number in sorted(server.history)]
    assert [row["round"] for row in rows if "server/upload_bytes" in row] == [0, 1]
    assert [row["round"] for row in rows if "val/loss" in row] == [0, 1]
    with (run / "metrics.csv").open(newline="") as file:
        figures = [
            (int(row["epoch"]), name, float(value))
            for row in csv.DictReader(file)
            for name, value in row.items()
            if value and name.startswith(("server/", "val/"))
        ]
    assert {name for _, name, _ in figures} >= {"server/upload_bytes", "server/public_loss", "val/perplexity"}
    for round_idx, name, value in figures:
        (arrived,) = [row[name] for row in rows if row.get("round") == round_idx and name in row]
        assert arrived == pytest.approx(value, rel=1e-6), (round_idx, name)
    summary = json.loads((run / "summary.json").read_text())
    for name, value in summary["metrics"].items():
        if name.startswith(("server/", "val/")):
            assert server.summary[name] == pytest.approx(value, rel=1e-6), name
    axes = server.step_metrics()
    assert {axes[name] for _, name, _ in figures} == {"round"}
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["trainer"]["max_epochs"] == 2
    assert {name: server.config[name] for name in config} == without_empty(config)
    for name in ("summary.json", "clients.csv", "partition.png"):
        assert server.files[name] == (run / name).read_bytes(), name
    tables = [json.loads(content) for name, content in server.files.items() if name.startswith("media/table/clients")]
    assert sorted({row[0] for table in tables for row in table["data"]}) == [0, 1]


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (500, "answered with status 500"),
        (401, "refused the API key"),
        (0, "does not answer (timed out)"),
    ],
)
def test_server_of_no_use(
    status: int,
    sentence: str,
    server: WandbServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cli_tracking, "ANSWER_SECONDS", 0.3)
    server.status = status
    tracked = logger(tmp_path)
    assert tracked.experiment.offline
    tracked.log_table("t", columns=["a"], data=[[1]])
    finish_tracking()
    (told,) = [record.message for record in caplog.records if record.name == "pl_fed.cli_tracking"]
    assert told.startswith(f"W&B goes on offline: the server at {server.url} ") and sentence in told
    assert len(list(tmp_path.glob("wandb/offline-run-*/*.wandb"))) == 1


def test_refused_run(server: WandbServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An account that may not write into the project: W&B itself says no."""
    server.refuses_runs = True
    assert logger(tmp_path).experiment.offline
    assert f"the server at {server.url} refused the run" in caplog.text


def test_run_without_a_server(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The port is closed: the run is done and tracked offline."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["cli.py"])
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    main([*SMOKE, f"--run.folder={tmp_path}", "--trainer.max_epochs=1"])
    assert "W&B goes on offline: the server at http://127.0.0.1:9 does not answer" in caplog.text
    assert json.loads((tmp_path / "smoke" / "version_0" / "summary.json").read_text())["rounds"] == 1
    assert len(list(tmp_path.glob("smoke/wandb/offline-run-*/*.wandb"))) == 1
    assert wandb.run is None


def test_no_key_and_no_question(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where W&B could ask somebody."""
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("WANDB_SILENT", "false")
    monkeypatch.setattr("wandb.errors.term.can_use_terminput", lambda: True)
    monkeypatch.setattr("wandb.errors.term.terminput", lambda *args, **kwargs: pytest.fail("asked for a key"))
    assert logger(tmp_path).experiment.offline
    assert "W&B goes on offline: no API key is set" in caplog.text


def test_server_that_goes(
    server: WandbServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of the run: tables are left out, told once, and the end is not waited for without a limit."""
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "0.5")
    tracked = logger(tmp_path)
    folder = Path(tracked.experiment.dir).parent
    assert not tracked.experiment.offline
    server.status = 503
    for step in range(2):
        tracked.log_metrics({"a": 1.0}, step=step)
        tracked.log_table("t", columns=["a"], data=[[1]])
    assert caplog.text.count("W&B gets no more tables of this run") == 1
    assert f"the server at {server.url} answered with status 503" in caplog.text
    finish_tracking()
    assert f"`wandb sync {folder}` uploads it." in caplog.text and list(folder.glob("*.wandb"))


def test_account_that_goes(server: WandbServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """W&B asks for the account before the first table, and raises without one."""
    tracked = logger(tmp_path)
    assert not tracked.experiment.offline
    server.viewer = None
    tracked.log_table("t", columns=["a"], data=[[1]])
    assert "W&B gets no more tables of this run" in caplog.text and "invalid credentials" in caplog.text
    tracked.log_metrics({"a": 1.0}, step=0)
    finish_tracking()
    assert server.exit_code == 0 and server.history[0]["a"] == 1.0


def test_nothing_to_finish() -> None:
    finish_tracking()
    assert wandb.run is None
