"""Tables of a comparison, as Markdown and as CSV."""

import csv
import io
import math
from collections.abc import Mapping, Sequence

from pl_fed.compare.names import Names, Results
from pl_fed.compare.rows import Row, fronts

ABSENT = "—"
COSTS = (
    ("upload_bytes", "upload MB", 1e-6),
    ("download_bytes", "download MB", 1e-6),
    ("flops", "TFLOPs", 1e-12),
    ("simulated_seconds", "simulated min", 1 / 60),
)


def figures(names: Names, results: Results) -> list[tuple[str, str]]:
    """Return the figures of quality that the tables show, with the titles of their columns."""
    shared = names.personalised.replace("test_personalised/", "test_clients/")  # the same examples, the global model
    columns = [(names.test, f"global {names.test}")]
    if shared not in (names.test, names.personalised) and any(shared in r.figures for r in results.values()):
        columns.append((shared, f"global {shared}"))
    columns.append((names.personalised, f"personalised {names.personalised}"))
    columns.append((names.worst_client, f"worst client {names.worst_client}"))
    if any(names.second in result.figures for result in results.values()):
        columns.append((names.second, names.second))
    return columns


def markdown(rows: Sequence[Row], names: Names, results: Results, value_name: str = "lr") -> str:
    """Return the table of a setting; a figure is the mean over seeds ± its standard deviation.

    Args:
        rows: The arms.
        names: The figures.
        results: All results; what none of them has gets no column.
        value_name: Title of the column of tuned values.
    """
    shown, front = figures(names, results), fronts(rows, names)
    tuned = any(row.choice is not None for row in rows)
    head = ["arm", "kind", "seeds", *(title for _, title in shown), *(title for _, title, _ in COSTS), value_name]
    head += [*(["tuning runs"] if tuned else []), "Pareto front", "notes"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        seeds = f"{len(row.results)}" if len(row.results) == row.wanted else f"{len(row.results)} of {row.wanted}"
        cells = [row.arm, row.spec.kind, f"{seeds} seeds" if "of" in seeds else seeds]
        cells += [_spread(row.mean(figure), row.deviation(figure)) for figure, _ in shown]
        cells += [_number(row.mean(figure), scale) for figure, _, scale in COSTS]
        cells.append(_value(row))
        cells += [str(row.choice.done if row.choice else 0)] if tuned else []
        cells += [", ".join(name for name, arms in front.items() if row.arm in arms), "; ".join(row.notes)]
        lines.append(cells)
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _value(row: Row) -> str:
    if row.value is None:
        return ABSENT
    return f"{row.value:g}" + (" (edge)" if row.choice is not None and row.choice.at_edge else "")


def _spread(mean: float | None, deviation: float | None) -> str:
    if mean is None:
        return ABSENT
    if not math.isfinite(mean):
        return str(mean)
    return f"{mean:.3f}" + ("" if deviation is None else f" ± {deviation:.3f}")


def _number(mean: float | None, scale: float) -> str:
    return ABSENT if mean is None else f"{mean * scale:.4g}"


def csv_text(tables: Mapping[str, Sequence[Row]], names: Names, results: Results) -> str:
    """Return all tables as one, with the setting as a column; costs are in bytes, operations and seconds."""
    columns = [figure for figure, _ in figures(names, results)] + [figure for figure, _, _ in COSTS]
    text = io.StringIO()
    head = ["setting", "arm", "kind", "seeds_done", "seeds_wanted", "value", "tuning_runs", "value_at_edge"]
    head += [f"{figure} {what}" for figure in columns for what in ("mean", "sd")]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*head, "front_upload", "front_time", "notes"])
    for setting, rows in tables.items():
        front = fronts(rows, names)
        for row in rows:
            choice = row.choice
            cells = [setting, row.arm, row.spec.kind, len(row.results), row.wanted, row.value]
            cells += [choice.done if choice else 0, bool(choice and choice.at_edge)]
            cells += [number for figure in columns for number in (row.mean(figure), row.deviation(figure))]
            writer.writerow([*cells, *(row.arm in front[name] for name in ("upload", "time")), "; ".join(row.notes)])
    return text.getvalue()
