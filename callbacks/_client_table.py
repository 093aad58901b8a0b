"""One row per client and round: as CSV in the run's folder, and as a table in loggers that have tables."""

import csv
import io
from pathlib import Path
from typing import Any

from pl_fed._lightning import Trainer
from pl_fed.callbacks._run_folder import replace_text
from pl_fed.context import RoundContext

FILE_NAME = "clients.csv"
COLUMNS = [
    "round",
    "client",
    "rank",
    "examples",
    "tokens",
    "download_bytes",
    "upload_bytes",
    "flops",
    "seconds",
    "failure",
]
Row = list[Any]


def client_rows(context: RoundContext) -> list[Row]:
    """Return the rows of a round in training order, then those of clients that never started, which cost nothing."""
    rows: list[Row] = []
    for client in context.finished:
        cost = [client.num_tokens, client.download_bytes, client.upload_bytes, client.flops, client.seconds]
        failure = context.failures.get(client.client_id, "")
        rows.append([context.round_idx, client.client_id, client.mean_rank, client.num_examples, *cost, failure])
    started = {client.client_id for client in context.finished}
    for client_id, failure in context.failures.items():
        if client_id not in started:
            rows.append([context.round_idx, client_id, None, None, 0, 0, 0, 0.0, 0.0, failure])
    return rows


def start_csv(trainer: Trainer, path: Path, round_idx: int) -> None:
    """Keep only the rows before `round_idx`; a resumed run trains that round and later ones again.

    When the resumed run has a folder of its own, the rows come from the folder of its checkpoint.
    """
    folders = [path.parent]
    if trainer.ckpt_path is not None:
        folders += list(Path(trainer.ckpt_path).absolute().parents)[:2]
    source = next((file for folder in folders if (file := folder / FILE_NAME).is_file()), None)
    kept: list[Row] = []
    if source is not None and round_idx > 0:
        with source.open(newline="", encoding="utf-8") as text:
            rows = [row for row in csv.reader(text) if len(row) == len(COLUMNS) and row[0].isdecimal()]
        kept = [row for row in rows if int(row[0]) < round_idx]
    replace_text(path, _format([COLUMNS, *kept]))


def append_csv(path: Path, rows: list[Row]) -> None:
    """Add the rows of a round."""
    with path.open("a", newline="", encoding="utf-8") as file:
        file.write(_format(rows))


def _format(rows: list[Row]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def log_table(trainer: Trainer, rows: list[Row]) -> None:
    """Send the rows to every logger that has tables."""
    for logger in trainer.loggers:
        log = getattr(logger, "log_table", None)
        if callable(log):
            log("clients", columns=COLUMNS, data=rows)
