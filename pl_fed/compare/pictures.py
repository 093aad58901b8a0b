"""The pictures of a comparison, made with matplotlib's objects; there is no global state and no window."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pl_fed.callbacks._figures import INK, QUIET, TIMES, UNITS, _quiet, rank_figure
from pl_fed.compare.names import Names
from pl_fed.compare.rows import FRONTS, Row, fronts

AXES = (
    ("round", "Rounds", [(1.0, "")]),
    ("upload_bytes", "Sent by clients", UNITS),
    ("flops", "Operations of clients", [(1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1.0, "FLOP")]),
    ("simulated_seconds", "Simulated time", TIMES),
)
Curve = list[tuple[float, float, float]]  # (x, mean, standard deviation)


def curve(row: Row, x: str, figure: str) -> Curve:
    """Return a figure against rounds or a cost: mean and standard deviation over seeds, round by round."""
    if x.startswith(row.spec.omit) or figure.startswith(row.spec.omit):
        return []
    points: dict[int, list[tuple[float, float]]] = {}
    for result in row.results:
        for point in result.rounds:
            if point.get(figure) is not None and point.get(x) is not None:
                points.setdefault(point["round"], []).append((point[x], point[figure]))
    return [
        (fmean(a for a, _ in found), fmean(b for _, b in found), stdev(b for _, b in found) if len(found) > 1 else 0.0)
        for _, found in sorted(points.items())
    ]


def curves_figure(rows: Sequence[Row], names: Names) -> Figure | None:
    """Return the validation figure against rounds and costs, one line an arm; None without any curve.

    Rings mark the final points of the methods on the Pareto front of this figure and the cost.
    """
    drawn = [
        (x, label, scales) for x, label, scales in AXES if any(_moves(curve(r, x, names.validation)) for r in rows)
    ]
    if not drawn:
        return None
    figure = Figure(figsize=(1.0 + 3.6 * len(drawn), 4.2 + 0.1 * len(rows)), dpi=150, layout="constrained")
    plots = figure.subplots(1, len(drawn), sharey=True, squeeze=False)[0]
    for plot, (x, label, scales) in zip(plots, drawn, strict=True):
        lines = {row.arm: curve(row, x, names.validation) for row in rows}
        top = max(px for line in lines.values() for px, _, _ in line)
        factor, unit = next((scale for scale in scales if top >= scale[0]), scales[-1])
        for i, row in enumerate(rows):
            _line(plot, row, names, lines[row.arm], factor, _colour(i))
        if x in FRONTS.values():
            _rings(plot, rows, names, x, factor)
        plot.set_xlabel(f"{label} ({unit})" if unit else label, color=INK)
        _quiet(plot)
    plots[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    plots[0].set_ylabel(names.validation, color=INK)
    handles, labels = plots[0].get_legend_handles_labels()  # against rounds, every arm with a curve is drawn
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def _moves(line: Curve) -> bool:
    return any(x > 0 for x, _, _ in line)


def _line(plot: Axes, row: Row, names: Names, line: Curve, factor: float, colour: str) -> None:
    x, mean, spread = (np.array([point[i] for point in line]) for i in range(3))
    style = "-" if row.spec.kind == "method" else "--"
    level = row.mean(names.validation)
    if not line and not row.spec.train and level is not None:
        plot.axhline(level, linestyle=style, color=colour, linewidth=1.2, label=row.arm)  # it costs nothing anywhere
    if not line:
        return
    plot.plot(x / factor, mean, style, color=colour, linewidth=1.6, label=row.arm)
    plot.fill_between(x / factor, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)


def _rings(plot: Axes, rows: Sequence[Row], names: Names, x: str, factor: float) -> None:
    """Mark the front that the table states: the arms are those of test quality, the points the last of the curves."""
    name = next(name for name, cost in FRONTS.items() if cost == x)
    for row in rows:
        line = curve(row, x, names.validation)
        if line and row.arm in fronts(rows, names)[name]:
            plot.plot(line[-1][0] / factor, line[-1][1], "o", mfc="none", mec=INK, markersize=9, mew=1.2)


def _colour(index: int) -> str:
    order = [*range(0, 20, 2), *range(1, 20, 2)]  # the strong colours first
    return to_hex(matplotlib.colormaps["tab20"](order[index % len(order)]))


def clients_figure(rows: Sequence[Row], names: Names) -> Figure | None:
    """Return every client's test figure by arm, a dot for each client (mean over seeds); None without any.

    Full dots are the global model, rings the client's own adapter.
    """
    prefixes = ("test_clients", "test_personalised")
    kept = [row for row in rows if any(client_means(row, prefix) for prefix in prefixes)]
    if not kept:
        return None
    figure = Figure(figsize=(7.2, 1.4 + 0.36 * len(kept)), dpi=150, layout="constrained")
    plot = figure.subplots()
    for y, row in enumerate(kept):
        for prefix, shift, fill in ((prefixes[0], -0.12, True), (prefixes[1], 0.12, False)):
            values = list(client_means(row, prefix).values())
            colour = _colour(list(rows).index(row))
            heights = [y + shift] * len(values)
            plot.scatter(
                values, heights, s=22, alpha=0.75, edgecolors=[colour], facecolors=[colour] if fill else "none"
            )
            if values:
                plot.plot([fmean(values)] * 2, [y + shift - 0.1, y + shift + 0.1], color=INK, linewidth=1.4)
    plot.set_yticks(range(len(kept)), [row.arm for row in kept], fontsize=8)
    plot.invert_yaxis()
    figure_name = names.worst_client.rpartition("worst_client_")[2]
    plot.set_xlabel(f"{figure_name} of each client (full: global model, ring: its own)", color=INK)
    _quiet(plot)
    return figure


def client_means(row: Row, prefix: str) -> dict[str, float]:
    """Return the mean over seeds of each client's figure on one loader."""
    if f"{prefix}/".startswith(row.spec.omit):
        return {}
    found: dict[str, list[float]] = {}
    for result in row.results:
        for client, value in result.clients.get(prefix, {}).items():
            if value is not None and math.isfinite(value):
                found.setdefault(client, []).append(value)
    return {client: fmean(values) for client, values in found.items()}


def ranks_figure(row: Row) -> Figure | None:
    """Return the clients' ranks over the rounds of an arm's first seed; None if no rank changes."""
    ranks: dict[int, list[tuple[int, float]]] = {}
    for point in row.results[0].rounds if row.results else []:
        for client, rank in (point.get("ranks") or {}).items():
            ranks.setdefault(int(client), []).append((point["round"] - 1, rank))
    if all(len({rank for _, rank in history}) < 2 for history in ranks.values()):
        return None
    figure = rank_figure(ranks)
    figure.suptitle(f"{row.arm}, seed {row.results[0].seed}", color=QUIET, fontsize=9)
    return figure
