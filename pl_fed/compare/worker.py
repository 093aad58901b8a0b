"""One run of a comparison, a process of its own: ``python -m pl_fed.compare.worker <folder>``.

The folder has ``config.yaml``, the whole configuration, and ``request.json``. The process trains, tests the final model
and leaves ``result.json``, or ``failure.json`` with the error.
"""

import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from lightning.pytorch import Trainer

from pl_fed.callbacks._environment import environment
from pl_fed.callbacks.run_summary import now, scalars
from pl_fed.cli import USER_ERRORS, FederatedCLI
from pl_fed.compare.record import COSTS, RoundRecord, validation
from pl_fed.compare.results import RESULT, Result, write

LOCK = ".lock"
PR_SET_PDEATHSIG = 1  # of Linux' <sys/prctl.h>


def main(folder: Path) -> None:
    """Run, and leave how it ended; an interrupted run leaves nothing but its checkpoint.

    A process that is still at work on this run, as one whose comparison was killed may be, is waited for.
    """
    with FileLock(folder / LOCK):
        if not (folder / RESULT).is_file():  # else that process has finished it
            _work(folder)


def end_with(parent: int) -> None:
    """Let this process get SIGTERM when the one that started it is gone, however that ended (on Linux).

    Args:
        parent: Process id of the one that started it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended before it could be watched
            sys.exit("The comparison that started this run is gone.")


def _work(folder: Path) -> None:
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    torch.set_num_threads(request["threads"])
    started = time.monotonic()
    try:
        found = run(folder / "config.yaml", request["train"], request["checkpoint"])
    except Exception as error:
        failure = Result(**request["identity"], error=last_line(error), date=now(), environment=environment())
        write(folder, failure)
        raise
    seconds = time.monotonic() - started
    write(folder, Result(**request["identity"], **found, seconds=seconds, date=now(), environment=environment()))


def run(config: Path, train: bool, checkpoint: str | None) -> dict[str, Any]:
    """Train (or only validate) and test.

    Args:
        config: The whole configuration.
        train: False evaluates the model before training.
        checkpoint: Checkpoint of this run to go on from.

    Returns:
        The fields `figures`, `clients` and `rounds` of a `Result`.
    """
    record = RoundRecord()
    options = [f"--ckpt_path={checkpoint}"] if checkpoint else []
    command = "fit" if train else "validate"
    cli = FederatedCLI([command, f"--config={config}", *options], trainer_defaults={"callbacks": [record]})
    trainer: Trainer = cli.trainer
    figures, curve = validation(trainer), record.curve(trainer)
    if curve and train:
        last = curve[-1]
        figures |= {name: last[name] for name in last if name in COSTS or name.startswith("val")}
    trainer.test(cli.model, datamodule=cli.datamodule)
    figures |= {name: value for name, value in scalars(trainer.callback_metrics).items() if name.startswith("test")}
    tables = {k: table for k, table in getattr(cli.model, "client_metrics", {}).items() if k.startswith("test")}
    named = {prefix: {str(client): value for client, value in table.items()} for prefix, table in tables.items()}
    return {"figures": figures, "clients": named, "rounds": curve}


def last_line(error: BaseException) -> str:
    r"""Return an error in one line; a user's error needs no name.

    Example:
        >>> last_line(RuntimeError("first\n\nsecond\n"))
        'RuntimeError: second'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if lines else "no message"
    return text if isinstance(error, USER_ERRORS) else f"{type(error).__name__}: {text}"


if __name__ == "__main__":
    folder = Path(sys.argv.pop())  # LightningCLI warns of arguments that are not its own
    end_with(json.loads((folder / "request.json").read_text(encoding="utf-8"))["parent"])
    main(folder)
