"""Runs what is due, some processes at a time; each writes into a folder of its own, so none can hurt another."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import yaml

from pl_fed.callbacks._run_folder import replace_text
from pl_fed.compare.config import Comparison, Sitting
from pl_fed.compare.merge import Nested, lookup, merged
from pl_fed.compare.plan import Plan, Run
from pl_fed.compare.results import FAILURE, Result, Store

GRACE_SECONDS = 10.0  # for an interrupted process, before it is killed
LOG = "log.txt"


class Process(Protocol):
    """A run in progress."""

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        ...

    def stop(self) -> None:
        """End it."""
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

    def stop(self) -> None:
        """Ask it to end, then kill what is left of it."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(GRACE_SECONDS)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


@dataclass
class Launcher:
    """Starts runs as subprocesses.

    Args:
        comparison: What the runs belong to.
    """

    comparison: Comparison

    def __call__(self, run: Run, folder: Path) -> Child:
        """Write what the process needs into its folder and start it."""
        attempt = 1 + sum(path.is_dir() for path in folder.glob("attempt_*"))
        checkpoints = sorted(folder.glob("attempt_*/checkpoints/last*.ckpt"), key=lambda path: path.stat().st_mtime)
        config = prepared(run, self.comparison.name, folder, f"attempt_{attempt}")
        request = {
            "identity": identity(run),
            "train": run.train,
            "checkpoint": str(checkpoints[-1]) if checkpoints and run.train else None,
            "threads": self.comparison.threads,
        }
        replace_text(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        replace_text(folder / "request.json", json.dumps(request, indent=1) + "\n")
        (folder / FAILURE).unlink(missing_ok=True)
        threads = str(self.comparison.threads)
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        command = [sys.executable, "-m", "pl_fed.compare.worker", str(folder)]
        with (folder / LOG).open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches us alone, and we end the others one by one
            )
        return Child(process)


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


@dataclass
class Runner:
    """Starts what is due until nothing is, or the time is over.

    Args:
        plan: The runs.
        store: Their results.
        sitting: Which of them, and for how long.
        launch: How a process is started.
        say: Where lines about the progress go.
        pause_seconds: How long to wait before looking again.
    """

    plan: Plan
    store: Store
    sitting: Sitting
    launch: Launch
    say: Callable[[str], None] = print
    pause_seconds: float = 0.2
    _running: dict[str, tuple[Run, Process, float]] = field(default_factory=dict)
    _failed: dict[str, Result] = field(default_factory=dict)
    _durations: list[float] = field(default_factory=list)
    _started: float = field(default_factory=time.monotonic)

    def run(self) -> None:
        """Run; what is in progress is ended if this is interrupted."""
        try:
            while self._start() or self._running:
                time.sleep(self.pause_seconds)
                self._collect()
        finally:
            for run, process, _ in self._running.values():
                self.say(f"stopped  {run}")
                process.stop()
            self._running.clear()

    def _start(self) -> bool:
        """Fill free places; return whether one was filled."""
        ended, filled = {**self._failed, **self.store.done}, False
        jobs, limit = self.plan.comparison.jobs, self.sitting.max_minutes
        for run in self.plan.due(ended, self.sitting.only, self.sitting.setting):
            over = limit is not None and time.monotonic() - self._started >= 60.0 * limit
            if len(self._running) >= jobs or over:
                break
            if run.fingerprint in self._running:
                continue
            folder = self.store.folder / run.slug
            folder.mkdir(parents=True, exist_ok=True)
            self._running[run.fingerprint] = run, self.launch(run, folder), time.monotonic()
            self.say(f"started  {run}")
            filled = True
        return filled

    def _collect(self) -> None:
        for key, (run, process, started) in list(self._running.items()):
            code = process.poll()
            if code is None:
                continue
            del self._running[key]
            seconds = time.monotonic() - started
            self._durations.append(seconds)
            result = self._result(run, code)
            if result.error:
                self._failed[key] = result
            verb = f"FAILED   {run}: {result.error}" if result.error else f"finished {run}"
            self.say(f"{verb} ({clock(seconds)}; {self._left()})")

    def _result(self, run: Run, code: int) -> Result:
        folder = self.store.folder / run.slug
        result = self.store.read(folder)
        if result is None:
            told = log_tail(folder / LOG) if code >= 0 else f"killed by signal {-code}"
            result = Result(**identity(run), error=told or f"exit code {code}")
            self.store.fail(folder, result)
        return result

    def _left(self) -> str:
        """Say how much time is over and how much is left, by the mean of this sitting's runs."""
        ended = {**self._failed, **self.store.done}
        remaining = self.plan.remaining(ended, self.sitting.only, self.sitting.setting)
        mean = sum(self._durations) / len(self._durations)
        left = mean * remaining / min(self.plan.comparison.jobs, max(remaining, 1))
        return f"{clock(time.monotonic() - self._started)} so far, {remaining} runs left, about {clock(left)}"


def clock(seconds: float) -> str:
    """Return a time in words.

    Example:
        >>> clock(42.3), clock(125), clock(7300)
        ('42 s', '2 min', '2 h 1 min')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def log_tail(path: Path) -> str:
    """Return the last line of a log that says something."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
