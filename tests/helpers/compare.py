"""A comparison whose processes are fake: what a run gives is a function of its arm, value and seed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pl_fed.compare.config import Arm, Comparison, Overlay, Tune
from pl_fed.compare.launcher import identity
from pl_fed.compare.plan import Run
from pl_fed.compare.results import Result, write

LR = "model.init_args.optimizer.init_args.lr"
Figures = Callable[[Run], dict[str, float]]


def make_comparison(**changes: Any) -> Comparison:
    """Two methods and an untrained control, two seeds, a grid of three values on seed 0."""
    arms = {
        "A": Arm(),
        "B": Arm(config=Overlay({"trainer.strategy": "federated_b"})),
        "base": Arm(config=Overlay({"trainer.strategy": "none"}), kind="control", train=False),
    }
    defaults: dict[str, Any] = {"name": "n", "arms": arms, "seeds": (0, 1), "tune": Tune(LR, (0.1, 0.2, 0.3))}
    return Comparison(**{**defaults, **changes})


class Fake:
    """A process that needs some polls to end.

    Args:
        end: Called when it ends; returns the exit code.
        polls: Polls until it ends.
    """

    def __init__(self, end: Callable[[], int], polls: int = 2) -> None:
        self.end, self.polls = end, polls
        self.asked = self.stopped = False

    def poll(self) -> int | None:
        self.polls -= 1
        return self.end() if self.polls <= 0 else None

    def ask(self) -> None:
        self.asked = True

    def stop(self) -> None:
        assert self.asked
        self.stopped = True


class FakeLauncher:
    """Writes the results that real processes would.

    Args:
        figures: What a run gives; raises for a run that fails.
    """

    def __init__(self, figures: Figures) -> None:
        self.figures = figures
        self.started: list[Run] = []
        self.processes: list[Fake] = []
        self.most = 0  # processes at the same time

    def __call__(self, run: Run, folder: Path) -> Fake:
        self.started.append(run)
        process = Fake(lambda: self._end(run, folder))
        self.processes.append(process)
        self.most = max(self.most, sum(p.polls > 0 for p in self.processes))
        return process

    def _end(self, run: Run, folder: Path) -> int:
        try:
            figures = self.figures(run)
        except RuntimeError as error:
            (folder / "log.txt").write_text(f"Traceback\n  somewhere\nRuntimeError: {error}\n\n")
            return 1
        write(folder, make_result(run, figures))
        return 0


def make_result(run: Run, figures: dict[str, float], **more: Any) -> Result:
    """Return the result of a run."""
    return Result(**identity(run), figures=figures, **more)
