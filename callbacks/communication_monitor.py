"""Counts what a federation costs: bytes sent, trained parameters, operations and simulated time."""

import math
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from torch import nn

from pl_fed._lightning import Callback, LightningModule, Trainer
from pl_fed.accounting import trained_parameters
from pl_fed.adapters import Adapter
from pl_fed.callbacks._client_table import FILE_NAME, append_csv, client_rows, log_table, start_csv
from pl_fed.callbacks._run_folder import run_folder, writes_files
from pl_fed.context import RoundContext
from pl_fed.updates import Slots

TRAINED = "trained_parameters"  # among a client's figures


@dataclass
class CommunicationTotals:
    """What all rounds so far cost together, exactly.

    Args:
        rounds: Number of rounds.
        upload_bytes: Bytes that clients sent.
        download_bytes: Bytes that clients received.
        flops: Floating-point operations of all local training (estimate).
        simulated_seconds: Time on the simulated devices; 0 without any.
    """

    rounds: int = 0
    upload_bytes: int = 0
    download_bytes: int = 0
    flops: float = 0.0
    simulated_seconds: float = 0.0


class CommunicationMonitor(Callback):
    """Logs what every round costs and leaves a table of what it cost each client.

    Bytes are those really sent, also by and to clients whose update was late or unusable. A client that drops out
    before it starts costs nothing. Logged with each round: ``server/upload_bytes``, ``server/download_bytes``,
    ``server/flops``, ``server/simulated_seconds``, each also as ``server/total_...`` over all rounds, and
    ``server/mean_rank`` and ``server/trained_parameters``, means over the clients that trained. Logged figures are
    float32; the exact ones are in `totals`, which resumed runs continue.

    Args:
        client_table: Write one row per client and round to ``clients.csv`` in the run's folder and, as one table per
            round, to loggers that have tables.

    Example:
        >>> CommunicationMonitor().totals.upload_bytes
        0
    """

    def __init__(self, client_table: bool = True) -> None:
        self.client_table = client_table
        self.totals = CommunicationTotals()
        self._stage = "fit"
        self._table_started = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Note what the Trainer does; a new `fit` continues or replaces the table."""
        self._stage, self._table_started = stage, False

    def on_broadcast(self, trainer: Trainer, pl_module: LightningModule, context: RoundContext) -> None:
        """Count what the client is going to train, now that its slots are settled."""
        assert context.client is not None
        context.client.figures[TRAINED] = float(count_trained(pl_module, context.client.slots))

    def on_round_failed(self, trainer: Trainer, pl_module: LightningModule, context: RoundContext) -> None:
        """Count a round without an aggregate: what was sent was sent."""
        self.on_round_end(trainer, pl_module, context)

    def on_round_end(self, trainer: Trainer, pl_module: LightningModule, context: RoundContext) -> None:
        """Add the round to the totals and to the table."""
        clients, totals = context.finished, self.totals
        cost = {
            "upload_bytes": sum(client.upload_bytes for client in clients),
            "download_bytes": sum(client.download_bytes for client in clients),
            "flops": math.fsum(client.flops for client in clients),
            "simulated_seconds": round_seconds(context),
        }
        totals.rounds += 1
        for name, value in cost.items():
            setattr(totals, name, getattr(totals, name) + value)
            context.metrics[f"server/{name}"] = float(value)
            context.metrics[f"server/total_{name}"] = float(getattr(totals, name))
        trained = [client.figures[TRAINED] for client in clients if TRAINED in client.figures]
        context.metrics["server/mean_rank"] = fmean(client.mean_rank for client in clients) if clients else 0.0
        context.metrics["server/trained_parameters"] = fmean(trained) if trained else 0.0
        if self.client_table and writes_files(trainer):
            self._write_table(trainer, context)

    def _write_table(self, trainer: Trainer, context: RoundContext) -> None:
        path, rows = run_folder(trainer) / FILE_NAME, client_rows(context)
        if not self._table_started:
            start_csv(trainer, path, context.round_idx)
            self._table_started = True
        append_csv(path, rows)
        log_table(trainer, rows)

    def state_dict(self) -> dict[str, Any]:
        """Return the totals."""
        return asdict(self.totals)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the totals; testing a checkpoint leaves those of this run alone."""
        if self._stage == "fit":
            self.totals = CommunicationTotals(**state_dict)


def count_trained(network: nn.Module, slots: Slots) -> int:
    """Return the number of parameters that a client trains in this round on its slots."""
    adapter = Adapter(network)
    sides = set()
    for layer in adapter.layers.values():
        parts = {"a": layer.a, "b": layer.b, "diagonal": layer.diagonal}
        sides |= {side for side, part in parts.items() if part is not None and part.requires_grad}
    return trained_parameters(adapter, slots, frozenset(sides))


def round_seconds(context: RoundContext) -> float:
    """Return how long a synchronous round lasts: the server waits for its slowest client, at most for the budget."""
    budget = math.inf if context.time_budget is None else context.time_budget
    return max((min(client.seconds, budget) for client in context.finished), default=0.0)
