"""Checkpoint files are whole or absent, whatever kills the writer, and what cannot be read is one sentence."""

import fcntl
import json
import os
import random
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from pl_fed.checkpoint_io import AtomicCheckpointIO
from pl_fed.errors import CheckpointError
from tests.helpers.tiny import TinyLM, eval_loader, make_strategy, make_trainer, round_loader

ROOT = Path(__file__).parents[1]

# Forks writers (an import takes seconds, a fork none), kills each at a random moment and reads what it left.
KILLER = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
from pl_fed.checkpoint_io import AtomicCheckpointIO

torch.set_num_threads(1)
folder, num_kills = Path(sys.argv[1]), int(sys.argv[2])
target, plugin = folder / "last.ckpt", AtomicCheckpointIO()

def save(number):
    plugin.save_checkpoint({"state_dict": {"x": torch.full((200_000,), float(number))}, "number": number}, target)

start = time.monotonic()
for _ in range(5):
    save(0)
seconds = (time.monotonic() - start) / 5
random.seed(0)
seen = []
for attempt in range(num_kills):
    pid = os.fork()
    if pid == 0:
        for number in range(1_000 * attempt + 1, 10**9):
            save(number)
    time.sleep(random.uniform(1.0, 4.0) * seconds)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    loaded = torch.load(target, weights_only=True)
    whole = torch.equal(loaded["state_dict"]["x"], torch.full((200_000,), float(loaded["number"])))
    seen.append((loaded["number"], whole, len(list(folder.iterdir())) - 1))
save(-1)
print(json.dumps({"seen": seen, "files": sorted(path.name for path in folder.iterdir())}))
"""


def test_a_kill_while_saving_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    """SIGKILL at 25 random moments of a process that saves without a pause to one path, after one to four saves.

    Each time the file loads, is one of those that were written (all its numbers are the same), and never an older one
    than before. At most one file of a killed writer lies beside it, because the next save removes it.
    """
    command = [sys.executable, "-c", KILLER, str(tmp_path), "25"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    numbers, whole, leftovers = zip(*report["seen"], strict=True)
    assert len(numbers) == 25 and all(whole)
    assert list(numbers) == sorted(numbers) and len(set(numbers)) > 5, "nothing was saved between kills"
    assert max(leftovers) == 1, "no kill hit a file in the middle: make the checkpoint larger"
    assert report["files"] == ["last.ckpt"]


def checkpoint(value: float = 1.0) -> dict[str, Any]:
    return {"state_dict": {"x": torch.full((1000,), value)}}


def test_files_in_use_are_not_removed(tmp_path: Path) -> None:
    """Another process is saving into the same folder: its file is locked. One whose writer died is not."""
    (tmp_path / ".dead.ckpt.1234.partial").write_bytes(b"")
    (tmp_path / ".hidden").write_text("the user's")
    with open(tmp_path / ".alive.ckpt.5678.partial", "wb") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        AtomicCheckpointIO().save_checkpoint(checkpoint(), tmp_path / "a.ckpt")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".alive.ckpt.5678.partial", ".hidden", "a.ckpt"]


def test_the_name_may_be_taken_by_a_sweeper_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is removed between its opening and its lock is opened again."""
    lock, removed = fcntl.flock, []

    def steal(file: Any, operation: int) -> None:
        if not removed:
            removed.append(file.name)
            os.unlink(file.name)
        lock(file, operation)

    monkeypatch.setattr("pl_fed.checkpoint_io.fcntl.flock", steal)
    AtomicCheckpointIO().save_checkpoint(checkpoint(2.0), tmp_path / "a.ckpt")
    assert len(removed) == 1 and [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]["x"][0] == 2.0


# ---------------------------------------------------------------- a disk that cannot be written


@contextmanager
def limited_file_size(num_bytes: int) -> Iterator[None]:
    """Let writes beyond a size fail as they do on a full disk (the signal is ignored by Python)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def one_sentence(error: pytest.ExceptionInfo[CheckpointError]) -> bool:
    return "\n" not in str(error.value) and len(str(error.value)) < 600


def test_a_full_disk_leaves_the_previous_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some bytes are written, then none: one sentence, the old content, and no temporary file."""
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(checkpoint(), path)
    before = path.read_bytes()

    def partly(value: Any, file: Any) -> None:
        file.write(b"PK" * 50)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pl_fed.checkpoint_io.torch.save", partly)
    message = (
        "Expected to write the checkpoint '.*last.ckpt' but could not .*No space left on device.*: free disk space"
    )
    with pytest.raises(CheckpointError, match=message) as error:
        AtomicCheckpointIO().save_checkpoint(checkpoint(2.0), path)
    assert one_sentence(error) and path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_really_fails_leaves_the_previous_file(tmp_path: Path) -> None:
    """The operating system refuses more than 10 kB in a file, in the middle of torch's own writing."""
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(checkpoint(), path)
    before = path.read_bytes()
    with limited_file_size(10_000), pytest.raises(CheckpointError, match="could not .* previous file is un") as error:
        AtomicCheckpointIO().save_checkpoint({"state_dict": {"x": torch.zeros(100_000)}}, path)
    assert one_sentence(error) and path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_save_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of a save."""

    def interrupt(value: Any, file: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pl_fed.checkpoint_io.torch.save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        AtomicCheckpointIO().save_checkpoint(checkpoint(), tmp_path / "new" / "a.ckpt")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_folder_that_is_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("not a folder")
    with pytest.raises(CheckpointError, match="runs/a.ckpt' but could not") as error:
        AtomicCheckpointIO().save_checkpoint(checkpoint(), tmp_path / "runs" / "a.ckpt")
    assert one_sentence(error)


def test_other_ways_are_lightnings(tmp_path: Path) -> None:
    """Remote paths go through fsspec; options that Lightning refuses are refused here too."""
    plugin = AtomicCheckpointIO()
    plugin.save_checkpoint(checkpoint(3.0), "memory://folder/a.ckpt")
    assert plugin.load_checkpoint("memory://folder/a.ckpt")["state_dict"]["x"][0] == 3.0
    with pytest.raises(TypeError, match="storage_options"):
        plugin.save_checkpoint(checkpoint(), tmp_path / "a.ckpt", storage_options={"x": 1})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")
def test_a_run_with_a_full_disk_stops_with_the_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saves: list[Any] = []
    real = torch.save

    def full_at_the_second(value: Any, file: Any) -> None:
        saves.append(value)
        if len(saves) > 1:
            raise OSError(28, "No space left on device")
        real(value, file)

    monkeypatch.setattr("pl_fed.checkpoint_io.torch.save", full_at_the_second)
    every_round = ModelCheckpoint(tmp_path, "model", save_last=False, enable_version_counter=False)
    module = TinyLM()
    with pytest.raises(CheckpointError, match="No space left on device"):
        make_trainer(make_strategy(), callbacks=[every_round]).fit(module, round_loader(), eval_loader())
    monkeypatch.undo()
    make_trainer(make_strategy()).fit(TinyLM(), round_loader(), eval_loader(), ckpt_path=tmp_path / "model.ckpt")


# ---------------------------------------------------------------- files that are no checkpoint


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda whole: b"",
    "half": lambda whole: whole[: len(whole) // 2],
    "last byte gone": lambda whole: whole[:-1],
    "text": lambda whole: b"epoch 3, loss 1.2\n",
    "a newline": lambda whole: b"\n",
    "a pickle opcode": lambda whole: b"\x94.",  # an IndexError inside torch
    "random": lambda whole: random.Random(7).randbytes(5000),
    "zip of nothing": lambda whole: b"PK\x05\x06" + bytes(18),
}


@pytest.mark.parametrize("kind", list(BROKEN))
@pytest.mark.parametrize("weights_only", [None, True, False])
def test_broken_files_are_one_sentence(kind: str, weights_only: bool | None, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(checkpoint(), path)
    path.write_bytes(BROKEN[kind](path.read_bytes()))
    with pytest.raises(CheckpointError, match="Expected a whole checkpoint but '.*last.ckpt' cannot be read") as error:
        AtomicCheckpointIO().load_checkpoint(path, weights_only=weights_only)
    assert one_sentence(error)


def test_missing_and_foreign_files_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="Expected a checkpoint at '.*none.ckpt' but there is no such") as error:
        AtomicCheckpointIO().load_checkpoint(tmp_path / "none.ckpt")
    assert one_sentence(error)
    with pytest.raises(CheckpointError, match=f"Expected a checkpoint at '{tmp_path}' but that is a folder") as error:
        AtomicCheckpointIO().load_checkpoint(tmp_path)
    assert one_sentence(error)
    for content, kind in ((torch.zeros(3), "Tensor"), ({"lora": torch.zeros(3)}, "dict")):
        torch.save(content, tmp_path / "other.ckpt")
        with pytest.raises(CheckpointError, match=rf"other.ckpt' but it holds something else .{kind} without") as error:
            AtomicCheckpointIO().load_checkpoint(tmp_path / "other.ckpt")
        assert one_sentence(error)


def test_fit_and_test_say_it_too(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").write_bytes(b"garbage")
    for path in (tmp_path / "last.ckpt", tmp_path / "none.ckpt"):
        with pytest.raises(CheckpointError, match=path.name):
            make_trainer(make_strategy()).fit(TinyLM(), round_loader(), eval_loader(), ckpt_path=path)
        with pytest.raises(CheckpointError, match=path.name):
            make_trainer(make_strategy()).test(TinyLM(), eval_loader(), ckpt_path=path)
