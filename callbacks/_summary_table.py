"""A run's summary as a table in the terminal."""

from typing import Any

from rich import get_console
from rich.table import Table

MAX_CLIENTS = 12  # rows of ranks; the rest is counted


def print_summary(summary: dict[str, Any]) -> None:
    """Print a run's summary to rich's console, which keeps progress bars whole."""
    get_console().print(summary_table(summary))


def summary_table(summary: dict[str, Any]) -> Table:
    """Return metrics and ranks before and after training, then what it cost."""
    table = Table(title="Run summary", title_justify="left")
    table.add_column()
    table.add_column("start", justify="right")
    table.add_column("end", justify="right")
    before, after = summary["before_training"], summary["metrics"]
    for name in sorted(before.keys() | {name for name in after if name.startswith("val")}):
        table.add_row(name, _number(before.get(name)), _number(after.get(name)))
    table.add_section()
    ranks = list(summary["first_ranks"].items())
    for client_id, first in ranks[:MAX_CLIENTS]:
        table.add_row(f"rank of client {client_id}", f"{first:.3g}", f"{summary['last_ranks'][client_id]:.3g}")
    if len(ranks) > MAX_CLIENTS:
        table.add_row(f"... and {len(ranks) - MAX_CLIENTS} more clients")
    table.add_section()
    for name, value in _costs(summary):
        table.add_row(name, "", value)
    return table


def _costs(summary: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    if summary["communication"]:
        rows += [
            ("rounds", str(summary["rounds"])),
            ("sent by clients", f"{summary['communication']['upload_bytes'] / 1e6:,.3f} MB"),
            ("sent to clients", f"{summary['communication']['download_bytes'] / 1e6:,.3f} MB"),
        ]
    rows.append(("trainable parameters", f"{summary['parameters']['trainable']:,}"))
    if summary["simulated_seconds"]:
        rows.append(("simulated time", f"{summary['simulated_seconds']:,.1f} s"))
    return [*rows, ("wall time", f"{summary['wall_seconds']:,.1f} s")]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
