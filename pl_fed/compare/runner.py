"""Runs what is due, some processes at a time; each writes into a folder of its own, so none can hurt another."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pl_fed.compare.config import Sitting
from pl_fed.compare.launcher import LOG, Launch, Process, identity
from pl_fed.compare.plan import Plan, Run
from pl_fed.compare.results import Result, Store


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
            for _, process, _ in self._running.values():
                process.ask()
            for _, process, _ in self._running.values():
                process.stop()
            for run, _, _ in self._running.values():
                self.say(f"stopped  {run}")

    def _start(self) -> bool:
        """Fill free places; return whether one was filled."""
        jobs, limit = self.plan.comparison.jobs, self.sitting.max_minutes
        if len(self._running) >= jobs:  # most of the time; what is due takes its time to find out
            return False
        ended, filled = {**self._failed, **self.store.done}, False
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
