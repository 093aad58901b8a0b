"""The table of agreement: on screen, and as CSV or JSON."""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from rich import box
from rich.markup import escape
from rich.table import Table

from pl_fed.errors import FederatedConfigError
from pl_fed.isa.agreement import AgreementRow
from pl_fed.isa.tables import check_writable

SUFFIXES = (".csv", ".json")


def agreement_table(rows: Sequence[AgreementRow], source: str, level: float) -> Table:
    """Return the rows for a terminal.

    Args:
        rows: The figures.
        source: Whose ratings they are.
        level: Share of the resamples inside an interval.
    """
    grouped = any(row.group for row in rows)
    table = Table(title=escape(f"Agreement of raters: {source}"), title_justify="left", box=box.SIMPLE_HEAD)
    for name in [*["group"] * grouped, "score", "measure", "raters"]:
        table.add_column(name, overflow="fold")
    for name in ("images", "value", f"{level:.0%} interval"):
        table.add_column(name, justify="right", no_wrap=True)
    for i, row in enumerate(rows):
        cells = [*[escape(row.group)] * grouped, row.score, row.measure, escape(row.raters), str(row.num_images)]
        ends = "" if math.isnan(row.low) else f"{row.low:.3f} to {row.high:.3f}"
        value = "not defined" if math.isnan(row.value) else f"{row.value:.3f}"
        last = i + 1 < len(rows) and (rows[i + 1].group, rows[i + 1].score) != (row.group, row.score)
        table.add_row(*cells, value, ends, end_section=last)
    return table


def check_output(path: str | Path) -> Path:
    """Return the path of a report.

    Raises:
        FederatedConfigError: If its ending says neither CSV nor JSON, or it cannot be written.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() not in SUFFIXES:
        raise FederatedConfigError(f"Expected `output` to end in {' or '.join(SUFFIXES)} but got '{path.name}'.")
    check_writable(path)
    return path


def write_agreement(rows: Sequence[AgreementRow], path: str | Path) -> None:
    """Write the rows as CSV or JSON, by the ending; what is not defined is an empty cell or null.

    Args:
        rows: The figures.
        path: The file; its folder is made.

    Raises:
        FederatedConfigError: If its ending says neither.
    """
    path = check_output(path)
    cells = [{name: None if value != value else value for name, value in asdict(row).items()} for row in rows]
    text = json.dumps(cells, indent=2, ensure_ascii=False) + "\n"
    if path.suffix.lower() == ".csv":
        sink = io.StringIO()
        writer = csv.DictWriter(sink, [field.name for field in fields(AgreementRow)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(cells)
        text = sink.getvalue()
    path.write_text(text, "utf-8")
