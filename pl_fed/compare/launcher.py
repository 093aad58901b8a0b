"""Starts a run as a process of its own, with all that it needs in its own folder."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import yaml

from pl_fed.callbacks._run_folder import replace_text
from pl_fed.compare.config import Comparison
from pl_fed.compare.merge import Nested, lookup, merged
from pl_fed.compare.plan import Run
from pl_fed.compare.results import FAILURE

GRACE_SECONDS = 10.0  # for an interrupted process, before it is killed
LOG = "log.txt"


@runtime_checkable
class Process(Protocol):
    """A run in progress."""

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        ...

    def ask(self) -> None:
        """Ask it to end."""
        ...

    def stop(self) -> None:
        """Return when it has ended."""
        ...


Launch = Callable[[Run, Path], Process]


@dataclass
class Child:
    """A subprocess with its descendants.

    Args:
        process: The subprocess, the first of its session.
    """

    process: "subprocess.Popen[bytes]"

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        return self.process.poll()

    def ask(self) -> None:
        """Ask it to end."""
        self._send(signal.SIGTERM)

    def stop(self) -> None:
        """Give it a little time, then kill what is left of it."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE_SECONDS)
        self._send(signal.SIGKILL)  # also what it has started itself
        self.process.wait()

    def _send(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


@dataclass
class Launcher:
    """Starts runs as subprocesses.

    Args:
        comparison: What the runs belong to.
    """

    comparison: Comparison

    def __call__(self, run: Run, folder: Path) -> Child:
        """Start the process; what it prints goes into its folder."""
        command, threads = self.prepare(run, folder), str(self.comparison.threads)
        with (folder / LOG).open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
                start_new_session=True,  # Ctrl-C reaches us alone, and we end the others one by one
            )
        return Child(process)

    def prepare(self, run: Run, folder: Path) -> list[str]:
        """Write what the process needs into its folder and return its command."""
        attempt = 1 + sum(path.is_dir() for path in folder.glob("attempt_*"))
        checkpoints = sorted(folder.glob("attempt_*/checkpoints/last*.ckpt"), key=lambda path: path.stat().st_mtime)
        config = prepared(run, self.comparison.name, folder, f"attempt_{attempt}")
        request = {
            "identity": identity(run),
            "train": run.train,
            "checkpoint": str(checkpoints[-1]) if checkpoints and run.train else None,
            "threads": self.comparison.threads,
            "parent": os.getpid(),
        }
        replace_text(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        replace_text(folder / "request.json", json.dumps(request, indent=1) + "\n")
        (folder / FAILURE).unlink(missing_ok=True)
        return [sys.executable, "-m", "pl_fed.compare.worker", str(folder)]


def identity(run: Run) -> dict[str, Any]:
    """Return what names a run in its result."""
    names = ("fingerprint", "arm", "setting", "seed", "value")
    return {name: getattr(run, name) for name in names}


def prepared(run: Run, group: str, folder: Path, version: str) -> Nested:
    """Return a run's configuration with what changes no figure: where it goes, and personalised tests if there are any.

    Args:
        run: The run.
        group: Its W&B group.
        folder: Its folder.
        version: Folder in that one for this attempt.
    """
    place = {"name": folder.name, "folder": str(folder.parent), "version": version, "group": group}
    config = merged(run.config, {"run": {**place, "export_adapter": False}, "trainer.enable_progress_bar": False})
    if run.train and lookup(config, "trainer.strategy.init_args.clients.keep_adapters"):
        config = merged(config, {"data.init_args.loading.personalised": True})
    elif not run.train and lookup(config, "data.init_args.loading.personalised"):
        config = merged(config, {"data.init_args.loading.personalised": False})
    return config
