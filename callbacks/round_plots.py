"""Draws how a run went: validation metrics against rounds, bytes and simulated time, and clients' ranks."""

from collections.abc import Sequence
from typing import Any

from pl_fed._lightning import Callback, LightningModule, Trainer
from pl_fed.callbacks._figures import metric_figure, rank_figure
from pl_fed.callbacks._find import find_callback
from pl_fed.callbacks._run_folder import run_folder, writes_files
from pl_fed.callbacks._summary_table import is_id
from pl_fed.callbacks.communication_monitor import CommunicationMonitor, CommunicationTotals
from pl_fed.callbacks.run_summary import RunSummary, scalars
from pl_fed.context import RoundContext

Point = dict[str, float]  # "round", "upload_bytes", "simulated_seconds", and the metrics


class RoundPlots(Callback):
    """Writes PNG pictures into the run's folder when training ends.

    One picture per validation metric (``val-loss.png`` for ``val/loss``): against rounds and, with a
    `CommunicationMonitor`, against bytes sent by clients and against simulated time. ``ranks.png`` shows each client's
    rank over the rounds. With a `RunSummary`, the curves begin before training.

    Args:
        metrics: Metrics to draw; None draws all whose name begins with ``val``, but no client ids.
        folder: Folder for the pictures inside the run's folder.

    Example:
        >>> callback = RoundPlots(metrics=["val/loss"])
    """

    def __init__(self, metrics: Sequence[str] | None = None, folder: str = "plots") -> None:
        self.metrics, self.folder = metrics, folder
        self._points: list[Point] = []
        self._ranks: dict[int, list[tuple[int, float]]] = {}  # (round, rank) by client
        self._rounds: int | None = None  # rounds that ended; None in a run without rounds

    def on_round_end(self, trainer: Trainer, pl_module: LightningModule, context: RoundContext) -> None:
        """Note the clients' ranks."""
        self._rounds = context.round_idx + 1
        for client in context.finished:
            if client.slots:
                self._ranks.setdefault(client.client_id, []).append((context.round_idx, client.mean_rank))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the metrics; the last validation of a round counts."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        metrics = scalars(trainer.callback_metrics)
        chosen = {name: value for name, value in metrics.items() if self._wanted(name)}
        done = trainer.current_epoch + 1 if self._rounds is None else self._rounds
        monitor = find_callback(trainer, CommunicationMonitor)
        totals = CommunicationTotals() if monitor is None else monitor.totals
        cost = {"upload_bytes": float(totals.upload_bytes), "simulated_seconds": totals.simulated_seconds}
        self._points = [point for point in self._points if point["round"] < done]
        self._points.append({"round": float(done), **cost, **chosen})

    def _wanted(self, name: str) -> bool:
        return name.startswith("val") and not is_id(name) if self.metrics is None else name in self.metrics

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw."""
        if not self._points or not writes_files(trainer):
            return
        summary = find_callback(trainer, RunSummary)
        before: Point = {} if summary is None else summary.before
        points: list[Point] = [{"round": 0.0, "upload_bytes": 0.0, "simulated_seconds": 0.0, **before}, *self._points]
        folder = run_folder(trainer) / self.folder
        folder.mkdir(parents=True, exist_ok=True)
        unit = "epochs" if self._rounds is None else "rounds"
        for name in sorted({name for point in self._points for name in point if self._wanted(name)}):
            drawn = [point for point in points if name in point]
            metric_figure(name, drawn, unit).savefig(folder / f"{name.replace('/', '-')}.png")
        if self._ranks:
            rank_figure(self._ranks).savefig(folder / "ranks.png")

    def state_dict(self) -> dict[str, Any]:
        """Return everything noted so far."""
        ranks = {client_id: list(history) for client_id, history in self._ranks.items()}
        return {"points": [dict(point) for point in self._points], "ranks": ranks, "rounds": self._rounds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the curves."""
        self._points, self._ranks = list(state_dict["points"]), dict(state_dict["ranks"])
        self._rounds = state_dict["rounds"]
