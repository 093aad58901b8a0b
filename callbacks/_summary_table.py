"""A run's summary as a table in the terminal."""

import math
from collections.abc import Mapping
from typing import Any

from rich import get_console
from rich.table import Table

MAX_CLIENTS = 12  # rows of ranks; the rest is counted


def print_summary(summary: dict[str, Any]) -> None:
    """Print a run's summary to rich's console, which keeps progress bars whole."""
    get_console().print(summary_table(summary))


def print_figures(title: str, figures: Mapping[str, float]) -> None:
    """Print an evaluation's figures to rich's console, each name once and whole."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(overflow="fold")
    table.add_column(justify="right")
    for name in sorted(figures):
        table.add_row(name, figure_text(name, figures[name]))
    get_console().print(table)


def is_id(name: str) -> bool:
    """Tell whether a figure is the number of a client, which is no amount."""
    return name.endswith("_id")


def figure_text(name: str, value: float | None) -> str:
    """Write a figure, an id as an integer.

    Example:
        >>> figure_text("val/worst_client_id", 3.0), figure_text("val/loss", 3.0), figure_text("val/loss", None)
        ('3', '3.0000', '')
    """
    if value is None:
        return ""
    return str(int(value)) if is_id(name) and math.isfinite(value) else f"{value:.4f}"


def summary_table(summary: dict[str, Any]) -> Table:
    """Return metrics and ranks before and after training, then what it cost."""
    missing = summary["end_not_measured"]
    table = Table(title="Run summary", title_justify="left", caption=missing and f"End not measured: {missing}.")
    table.add_column(overflow="fold")
    table.add_column("start", justify="right")
    table.add_column("end", justify="right")
    before, after = summary["before_training"], summary["metrics"]
    for name in sorted(before.keys() | {name for name in after if name.startswith("val")}):
        end = "-" if missing else figure_text(name, after.get(name))
        table.add_row(name, figure_text(name, before.get(name)), end)
    table.add_section()
    ranks = [(k, rank) for k, rank in summary["first_ranks"].items() if rank]  # none without low-rank layers
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
