"""Several processes end where one ends, to the last bit; what cannot be done in several is refused."""

import csv
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint, Timer

from pl_fed.errors import FederatedConfigError
from pl_fed.processes import check_rounds, check_trainer, share_out
from pl_fed.rounds import ClientWork
from tests.helpers.tiny import make_trainer
from tests.processes.federation import ALL, INSIDE_ROUNDS, NUM_ROUNDS, run

ROOT = Path(__file__).parents[2]
NAMES = [name for name in ALL if name not in INSIDE_ROUNDS]


def environment(rank: int, port: int) -> dict[str, str]:
    """Return what torchrun sets."""
    own = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "tests"}
    return {**os.environ, **address, **{key: str(value) for key, value in own.items()}, "OMP_NUM_THREADS": "1"}


def start_two(folder: Path, *names: str) -> list[subprocess.Popen[str]]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "tests.processes.federation", str(folder), *names]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": ROOT}
    return [subprocess.Popen(command, env=environment(rank, port), **pipes) for rank in (0, 1)]


@pytest.fixture(scope="module")
def in_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run every case in two processes, once."""
    folder = tmp_path_factory.mktemp("two")
    processes = start_two(folder, *NAMES)
    outputs = [process.communicate(timeout=500)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output[-4000:]
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_end_where_one_ends(name: str, in_two: Path) -> None:
    expected = run(ALL[name])
    for rank in (0, 1):
        found = torch.load(in_two / f"{name}-{rank}.pt", weights_only=True)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(value, found[key]), f"process {rank}: {key}"


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")
@pytest.mark.parametrize("name", ["plain", "pruning-refinement", "fedit-scaffold", "ffa-kept-optimizer"])
def test_one_process_goes_on_where_two_ended(name: str, in_two: Path, tmp_path: Path) -> None:
    expected = run(ALL[name], rounds=NUM_ROUNDS + 2)
    found = run(ALL[name], rounds=NUM_ROUNDS + 2, ckpt=in_two / name / "end.ckpt")
    for key, value in expected.items():
        assert torch.equal(value, found[key]), key


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")
def test_a_dead_process_ends_the_run_with_a_whole_checkpoint(tmp_path: Path) -> None:
    """The first process does not wait for ever, and the last round's checkpoint can be resumed."""
    first, second = start_two(tmp_path, *["plain"] * 200)
    saved = tmp_path / "plain" / "end.ckpt"
    deadline = time.monotonic() + 120
    while not saved.exists():
        assert time.monotonic() < deadline and first.poll() is None, first.communicate(timeout=5)[0][-3000:]
        time.sleep(0.05)
    second.send_signal(signal.SIGKILL)
    first.communicate(timeout=120)
    second.communicate(timeout=10)
    assert first.returncode != 0
    done = int(torch.load(saved, weights_only=True)["epoch"]) + 1
    found, expected = run(ALL["plain"], rounds=4, ckpt=saved), run(ALL["plain"], rounds=4)
    assert 1 <= done <= NUM_ROUNDS
    assert all(torch.equal(value, found[key]) for key, value in expected.items())


def test_the_longest_clients_first() -> None:
    """Seven, five, four, three and two batches: 7 + 3 and 5 + 4 + 2, each share in the order of the round."""
    work = [ClientWork(k, 9, [[0]] * n) for k, n in enumerate([3, 7, 4, 5, 2])]
    shares = [[client.client_id for client in share] for share in share_out(work, 2)]
    assert shares == [[0, 1], [2, 3, 4]]


def test_more_processes_than_clients() -> None:
    """No process is without a batch; who is trained twice is trained to the same end."""
    shares = share_out([ClientWork(k, 1, [[0]]) for k in range(2)], 5)
    assert [[work.client_id for work in share] for share in shares] == [[0], [1], [0], [1], [0]]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"max_steps": 7}, "`trainer.max_steps` of 7"),
        ({"limit_train_batches": 3}, "`trainer.limit_train_batches` of 3"),
        ({"val_check_interval": 2}, "`trainer.val_check_interval` of 2"),
        ({"callbacks": [ModelCheckpoint(every_n_train_steps=2)]}, "`ModelCheckpoint` with `every_n_train_steps`"),
        ({"callbacks": [OnExceptionCheckpoint(".")]}, "`OnExceptionCheckpoint`"),
        ({"callbacks": [Timer({"hours": 1}, interval="step")]}, "`Timer`"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_nothing_happens_inside_rounds(options: dict[str, Any], what: str) -> None:
    trainer = make_trainer("auto", **options)
    with pytest.raises(FederatedConfigError, match="2 processes") as error:
        check_trainer(trainer, trainer.callbacks, 2)
    assert what in str(error.value)
    check_trainer(trainer, trainer.callbacks, 1)


def test_ordinary_loaders_want_one_process() -> None:
    with pytest.raises(FederatedConfigError, match=r"one process for training without rounds but got 2"):
        check_rounds(False, 2)
    check_rounds(False, 1)
    check_rounds(True, 2)


def test_the_command_line_in_two_processes(tmp_path: Path) -> None:
    """Lightning's launcher starts the second process; one of them writes, and the run is that of one process."""
    base = [sys.executable, "cli.py", "fit", "--config=configs/smoke.yaml", "--trainer.enable_progress_bar=false"]
    clean = {key: value for key, value in os.environ.items() if key not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    for devices in (1, 2):
        command = [
            *base,
            "--trainer.max_epochs=2",
            f"--trainer.devices={devices}",
            f"--run.folder={tmp_path / str(devices)}",
        ]
        done = subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-4000:]
    one, two = (tmp_path / name / "smoke" / "version_0" for name in ("1", "2"))
    assert [path.name for path in two.parent.iterdir()] == ["version_0"]
    assert {str(path.relative_to(one)) for path in one.rglob("*")} == {str(p.relative_to(two)) for p in two.rglob("*")}
    for name in ("clients.csv", "clients_val.csv", "partition.csv"):
        assert (one / name).read_text() == (two / name).read_text(), name
    saved = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (one, two)]
    for name, value in saved[0]["state_dict"].items():
        assert torch.equal(value, saved[1]["state_dict"][name]), name
    rows = [list(csv.DictReader((run / "metrics.csv").read_text().splitlines())) for run in (one, two)]
    figures = [[row for row in part if row["val/loss"] or row["server/clients"]] for part in rows]
    assert figures[0] == figures[1] and len(figures[0]) >= 2
