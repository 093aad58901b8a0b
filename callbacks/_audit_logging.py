"""What an audit tells the loggers: its figures, what was recovered of each client, and the page."""

import importlib
import io
from typing import Any

from pl_fed._lightning import Trainer
from pl_fed.attacks.report import AuditReport, counts_text
from pl_fed.callbacks.wandb_rounds import wandb_runs

CLIENT_COLUMNS = ["client", "true", "recovered", "exact", "label accuracy", "guess", "margin"]


def log_table(trainer: Trainer, key: str, columns: list[str], rows: list[list[Any]]) -> None:
    """Send a table to every logger that has tables, such as W&B's."""
    for logger in trainer.loggers:
        log = getattr(logger, "log_table", None)
        if callable(log):
            log(key, columns=columns, data=rows)


def log_clients(trainer: Trainer, report: AuditReport) -> None:
    """Send true and recovered label counts of every client, as in the report."""
    rows: list[list[Any]] = []
    for row in report.rows:
        found = "not separated" if row.recovered is None else counts_text(row.recovered)
        figures = [row.exact, row.accuracy, row.guess, row.margin]
        rows.append([row.client, counts_text(row.true), found, *figures])
    log_table(trainer, "audit_clients", CLIENT_COLUMNS, rows)


def log_page(trainer: Trainer, html: str) -> None:
    """Show the page in every W&B run."""
    for run in wandb_runs(trainer):
        wandb = importlib.import_module("wandb")
        run.log({"audit/page": wandb.Html(io.StringIO(html), inject=False)})
