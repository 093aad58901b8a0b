"""A callback that notes what the report needs after each round, also across interruptions."""

from typing import Any

from pl_fed._lightning import Callback, LightningModule, Trainer
from pl_fed.callbacks._find import find_callback
from pl_fed.callbacks.communication_monitor import CommunicationMonitor
from pl_fed.callbacks.run_summary import RunSummary, scalars
from pl_fed.compare.results import Point
from pl_fed.context import RoundContext

COSTS = ("upload_bytes", "download_bytes", "flops", "simulated_seconds")


class RoundRecord(Callback):
    """Notes validation metrics, costs so far and clients' ranks by round; its state is part of every checkpoint.

    Without federated rounds an epoch counts as a round, and there are no costs.

    Example:
        >>> RoundRecord().points
        {}
    """

    def __init__(self) -> None:
        self.points: dict[int, Point] = {}
        self._round: int | None = None  # rounds that ended; None in a run without rounds

    def on_round_end(self, trainer: Trainer, pl_module: LightningModule, context: RoundContext) -> None:
        """Note costs and ranks."""
        self._round = context.round_idx + 1
        ranks = {str(client.client_id): client.mean_rank for client in context.finished if client.slots}
        monitor = find_callback(trainer, CommunicationMonitor)
        costs = {} if monitor is None else {name: float(getattr(monitor.totals, name)) for name in COSTS}
        self._put(self._round, {**costs, "ranks": ranks})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the metrics; the last validation of a round counts."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            done = trainer.current_epoch + 1 if self._round is None else self._round
            self._put(done, validation(trainer))

    def _put(self, done: int, figures: dict[str, Any]) -> None:
        self.points = {number: point for number, point in self.points.items() if number <= done}
        self.points[done] = {**self.points.get(done, {}), "round": done, **figures}

    def curve(self, trainer: Trainer) -> list[Point]:
        """Return the points in order, the untouched model first if it was validated."""
        summary = find_callback(trainer, RunSummary)
        before = {} if summary is None else summary.before
        costs = dict.fromkeys(COSTS, 0.0) if self._round is not None else {}
        start: list[Point] = [{"round": 0, **costs, **before}] if before else []
        return start + [self.points[number] for number in sorted(self.points)]

    def state_dict(self) -> dict[str, Any]:
        """Return everything noted so far."""
        return {"points": dict(self.points), "round": self._round}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the record."""
        self.points, self._round = dict(state_dict["points"]), state_dict["round"]


def validation(trainer: Trainer) -> dict[str, float]:
    """Return the validation metrics that the Trainer has now."""
    return {name: value for name, value in scalars(trainer.callback_metrics).items() if name.startswith("val")}
