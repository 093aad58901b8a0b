"""Whether the adapters agree, and the table and the picture of what was measured."""

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from runners import RUNNERS

TOLERANCE = 1e-3
"""Largest difference of two adapters, as a share of how far training moved them: float32, sums in another order."""


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Return the largest difference of any number of two adapters."""
    if set(one) != set(other) or any(value.shape != other[name].shape for name, value in one.items()):
        return float("inf")
    return max(float((value.double() - other[name].double()).abs().max()) for name, value in one.items())


def median_seconds(run: dict[str, Any], key: str = "seconds") -> float:
    """Return the median of the rounds after the first."""
    return float(statistics.median(run[key][1:]))


def summaries(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each runner from its runs of one batch size, in the order of `RUNNERS`."""
    done = [run for run in runs if "error" not in run]
    rows = []
    for name in RUNNERS:
        own = [run for run in runs if run["runner"] == name]
        if own:
            row = {"runner": name, "batch_size": own[0]["batch_size"]}
            errors = [run["error"] for run in own if "error" in run]
            rows.append(row | ({"error": errors[0]} if errors else summary(own, done)))
    return rows


def summary(own: Sequence[dict[str, Any]], done: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what is known of one runner.

    Args:
        own: Its runs.
        done: Those of all; the first, which is the plain loop's unless it was left out, has the reference adapter.
    """
    reference = min(done, key=lambda run: list(RUNNERS).index(run["runner"]))
    largest = max(distance(run["adapter"], reference["adapter"]) for run in own)
    moved = distance(reference["start"], reference["adapter"])
    seconds = [median_seconds(run) for run in own]
    alone = RUNNERS[own[0]["runner"]].one_process  # its own clock is finer than samples of all processes
    cpu = [median_seconds(run, "cpu_seconds") if alone else run["all_cpu_seconds"] for run in own]
    row = {
        "seconds": spread(seconds),
        "cpu_seconds": spread(cpu),
        "first_seconds": spread([run["seconds"][0] for run in own]),
        "peak_megabytes": round(max(run["peak_bytes"] for run in own) / 2**20),
        "processes": max(run["processes"] for run in own),
        "sum": own[0]["sum"],
        "norm": own[0]["norm"],
        "largest_move": moved,
        "largest_difference": largest,
        "differs": not largest <= TOLERANCE * moved,  # also if either is not a number
        "version": own[0]["version"],
        "torch": own[0]["torch"],
        "all_rounds_seconds": [run["seconds"] for run in own],
        "all_rounds_cpu_seconds": [run["cpu_seconds"] for run in own],
    }
    for other in ("packed", "packed-2"):  # both of one repeat, so that what else the machine does matters less
        pairs = [(run, peer) for run in own for peer in done if peer["runner"] == other]
        ratios = [median_seconds(a) / median_seconds(b) for a, b in pairs if a["repeat"] == b["repeat"]]
        row[f"over_{other}"] = spread(ratios) if ratios else None
    return row


def spread(values: Iterable[float]) -> list[float]:
    """Return median, smallest and largest."""
    found = list(values)
    return [round(value, 4) for value in (statistics.median(found), min(found), max(found))]


def _words(values: Sequence[float] | None) -> str:
    return "" if values is None else f"{values[0]:.2f} ({values[1]:.2f} to {values[2]:.2f})"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table of the rows."""
    lines = [
        "| runner | batch | s a round, median (min to max) | first | CPU s | / packed | / packed on 2 | MB | adapter |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        start = f"| {RUNNERS[row['runner']].title} | {row['batch_size']} |"
        if "error" in row:
            lines.append(f"{start} {row['error'].replace('|', '/')} | | | | | | |")
            continue
        ratios = f"{_words(row['over_packed'])} | {_words(row['over_packed-2'])}"
        adapter = f"{'DIFFERS' if row['differs'] else 'same'} ({row['largest_difference']:.0e})"
        times = f"{_words(row['seconds'])} | {row['first_seconds'][0]:.2f} | {row['cpu_seconds'][0]:.2f}"
        lines.append(f"{start} {times} | {ratios} | {row['peak_megabytes']} | {adapter} |")
    return "\n".join(lines)


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the seconds of a round as bars, one picture beside the other for each batch size."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    sizes = sorted({row["batch_size"] for row in rows})
    figure, axes = pyplot.subplots(1, len(sizes), figsize=(6 * len(sizes), 3.5), squeeze=False, layout="constrained")
    for axis, size in zip(axes[0], sizes, strict=True):
        shown = [row for row in reversed(rows) if row["batch_size"] == size and "error" not in row]
        medians = [row["seconds"][0] for row in shown]
        below = [row["seconds"][0] - row["seconds"][1] for row in shown]
        above = [row["seconds"][2] - row["seconds"][0] for row in shown]
        colours = ["tab:orange" if RUNNERS[row["runner"]].title.startswith("pl_fed") else "tab:gray" for row in shown]
        titles = [RUNNERS[row["runner"]].title for row in shown]
        axis.barh(titles, medians, xerr=[below, above], color=colours, ecolor="black", capsize=3)
        axis.set(xlabel="seconds a round", title=f"batch size {size}")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
