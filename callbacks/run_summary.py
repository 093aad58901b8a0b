"""Leaves ``summary.json`` in the run's folder and prints the run as a table."""

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pl_fed._lightning import Callback, LightningModule, Trainer
from pl_fed.callbacks._environment import environment
from pl_fed.callbacks._find import find_callback
from pl_fed.callbacks._run_folder import read_json, replace_text, run_folder, writes_files
from pl_fed.callbacks._summary_table import print_summary
from pl_fed.callbacks.communication_monitor import CommunicationMonitor, CommunicationTotals
from pl_fed.context import RoundContext

FILE_NAME = "summary.json"


class RunSummary(Callback):
    """Writes ``summary.json`` when training ends, also early; not after an exception.

    It holds the metrics before and after training, the best checkpoint (its path from this folder on), the totals of a
    `CommunicationMonitor`, clients' first and last ranks, parameter counts, times, versions, seed, git revision and
    hardware. A later `test` adds its metrics to the same file. A value that is not finite is null.

    Args:
        validate_start: Validate the untouched model on the whole validation set before training, in place of
            Lightning's sanity check on the first batches. Random numbers, checkpoints, loggers and counters do not
            notice; a resumed run takes the values from its checkpoint.
        print_table: Print a table of the run when training ends.

    Example:
        >>> RunSummary(validate_start=False).before
        {}
    """

    def __init__(self, validate_start: bool = True, print_table: bool = True) -> None:
        self.validate_start, self.print_table = validate_start, print_table
        self.before: dict[str, float] = {}  # validation metrics before training
        self._ranks: dict[int, list[float]] = {}  # first and last rank by client
        self._rounds, self._begun = 0, False  # rounds that ended; whether one began
        self._seed: int | None = None
        self._parameters: dict[str, int] = {}
        self._seconds = 0.0  # of this run before the present session
        self._started: float | None = None
        self._sanity_steps: int | float | None = None  # what the user asked for
        self._trained = False

    # ------------------------------------------------------------------ before training

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, and let Lightning's sanity check see the whole validation set.

        Lightning runs it isolated from random state, progress, loggers and checkpoints. Parameters are counted now,
        before a rule freezes what the first round does not train.
        """
        self._trained, self._started = False, time.monotonic()
        self._parameters = count_parameters(pl_module)
        quick = trainer.fast_dev_run or trainer.barebones  # type: ignore[attr-defined]  # set at run time
        if self.validate_start and not quick and is_untouched(trainer):
            self._sanity_steps, trainer.num_sanity_val_steps = trainer.num_sanity_val_steps, math.inf

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the metrics of the untouched model, if all of the validation set was seen."""
        if trainer.num_sanity_val_steps == math.inf and is_untouched(trainer):
            self.before = scalars(trainer.callback_metrics)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the sanity check its length back."""
        self._trained = True
        if self._sanity_steps is not None:
            trainer.num_sanity_val_steps, self._sanity_steps = self._sanity_steps, None

    # ------------------------------------------------------------------ rounds

    def on_round_start(self, trainer: Trainer, pl_module: LightningModule, context: RoundContext) -> None:
        """Note that the run has rounds."""
        self._begun = True

    def on_round_end(self, trainer: Trainer, pl_module: LightningModule, context: RoundContext) -> None:
        """Note the clients' ranks."""
        self._rounds, self._seed = context.round_idx + 1, context.seed
        for client in context.finished:
            self._ranks.setdefault(client.client_id, [client.mean_rank, 0.0])[1] = client.mean_rank

    # ------------------------------------------------------------------ after training

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the summary and print it; a run that had nothing left to train keeps its summary."""
        if not self._trained or not writes_files(trainer):
            return
        summary = self.summary(trainer)
        replace_text(run_folder(trainer) / FILE_NAME, to_json(summary))
        if self.print_table:
            print_summary(summary)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the test metrics to the run's summary."""
        if not writes_files(trainer):
            return
        path = run_folder(trainer) / FILE_NAME
        summary = read_json(path) or {"date": now(), **environment()}
        summary["test"] = {**summary.get("test", {}), **scalars(trainer.callback_metrics)}
        replace_text(path, to_json(summary))

    def summary(self, trainer: Trainer) -> dict[str, Any]:
        """Return the summary of the run so far."""
        monitor = find_callback(trainer, CommunicationMonitor)
        totals = CommunicationTotals() if monitor is None else monitor.totals
        environment_seed, metrics = os.environ.get("PL_GLOBAL_SEED"), scalars(trainer.callback_metrics)
        return {
            "date": now(),
            "metrics": metrics,
            "before_training": self.before,
            "end_not_measured": self._reason(metrics),
            "best_checkpoint": best_checkpoint(trainer, run_folder(trainer)),
            "rounds": self._rounds,
            "epochs": trainer.current_epoch,
            "steps": trainer.global_step,
            "communication": asdict(totals) if totals.rounds else None,
            "simulated_seconds": totals.simulated_seconds,
            "wall_seconds": self._wall_seconds(),
            "first_ranks": {str(client_id): ranks[0] for client_id, ranks in sorted(self._ranks.items())},
            "last_ranks": {str(client_id): ranks[1] for client_id, ranks in sorted(self._ranks.items())},
            "parameters": self._parameters,
            "seed": int(environment_seed) if self._seed is None and environment_seed else self._seed,
            **environment(),
        }

    def _reason(self, metrics: Mapping[str, float]) -> str | None:
        """Say why there are no validation metrics of the end, or None if there are, or none were to be expected."""
        if any(name in self.before or name.startswith("val") for name in metrics):
            return None
        if self._begun and not self._rounds:
            return "no round finished"
        return "no validation after training" if self.before else None

    def _wall_seconds(self) -> float:
        return self._seconds + (0.0 if self._started is None else time.monotonic() - self._started)

    # ------------------------------------------------------------------ checkpoint

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run cannot measure again."""
        return {
            "before": dict(self.before),
            "ranks": {client_id: list(ranks) for client_id, ranks in self._ranks.items()},
            "rounds": self._rounds,
            "seconds": self._wall_seconds(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the run."""
        self.before, self._ranks = dict(state_dict["before"]), dict(state_dict["ranks"])
        self._rounds, self._seconds = state_dict["rounds"], state_dict["seconds"]


def is_untouched(trainer: Trainer) -> bool:
    """Tell whether the model comes from no checkpoint and has not been trained."""
    return trainer.ckpt_path is None and trainer.global_step == 0


def scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics that are one number."""
    numbers = {k: v.item() if isinstance(v, Tensor) and v.numel() == 1 else v for k, v in metrics.items()}
    return {name: float(value) for name, value in numbers.items() if isinstance(value, (int, float))}


def count_parameters(network: nn.Module) -> dict[str, int]:
    """Return the number of trainable and of all parameters."""
    parameters = list(network.parameters())
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return {"trainable": trainable, "total": sum(parameter.numel() for parameter in parameters)}


def best_checkpoint(trainer: Trainer, folder: Path) -> dict[str, Any] | None:
    """Return the path, metric and score of the best checkpoint; the path is relative if it lies in `folder`."""
    saved = [callback for callback in trainer.checkpoint_callbacks if getattr(callback, "best_model_path", "")]
    saved.sort(key=lambda callback: getattr(callback, "monitor", None) is None)  # the monitored ones first
    if not saved:
        return None
    best: Any = saved[0]
    path, score = Path(best.best_model_path).absolute(), getattr(best, "best_model_score", None)
    relative = path.relative_to(folder.absolute()) if path.is_relative_to(folder.absolute()) else path
    return {
        "path": str(relative),
        "monitor": getattr(best, "monitor", None),
        "score": None if score is None else float(score),
    }


def now() -> str:
    """Return the date and time, with the time zone."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def to_json(value: dict[str, Any]) -> str:
    """Return strict JSON; a number that is not finite becomes null."""
    return json.dumps(_finite(value), indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
