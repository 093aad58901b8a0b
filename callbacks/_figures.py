"""The figures of a run, made with matplotlib's objects; there is no global state and no window."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK, QUIET, LINE = "#22252a", "#8a9099", "#2a6fbb"
RAMP = LinearSegmentedColormap.from_list("ranks", ["#dbe8f5", "#2a6fbb", "#0d2c54"])
MAX_CLIENTS = 40  # rows that stay legible
MAX_MARKERS = 40  # points that stay apart
MAX_LABELS = 16  # rounds that leave room for a number in each cell
UNITS = [(1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "bytes")]
TIMES = [(86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds")]
Point = Mapping[str, float]


def metric_figure(name: str, points: Sequence[Point], unit: str) -> Figure:
    """Return a metric against rounds and, where they were counted, against bytes and simulated time.

    Args:
        name: The metric.
        points: Its values with ``round``, ``upload_bytes`` and ``simulated_seconds``.
        unit: What ``round`` counts: ``rounds`` or ``epochs``.
    """
    axes = [(f"{unit.capitalize()} of training", [point["round"] for point in points])]
    for key, label, scales in (
        ("upload_bytes", "Sent by clients", UNITS),
        ("simulated_seconds", "Simulated time", TIMES),
    ):
        values = [point[key] for point in points]
        if any(values):
            factor, scale = next((s for s in scales if max(values) >= s[0]), scales[-1])
            axes.append((f"{label} ({scale})", [value / factor for value in values]))
    figure = Figure(figsize=(0.6 + 3.6 * len(axes), 3.2), dpi=150, layout="constrained")
    plots = figure.subplots(1, len(axes), sharey=True, squeeze=False)[0]
    for plot, (label, x) in zip(plots, axes, strict=True):
        marker = "o" if len(points) <= MAX_MARKERS else ""
        plot.plot(x, [point[name] for point in points], color=LINE, linewidth=1.8, marker=marker, markersize=3.5)
        plot.set_xlabel(label, color=INK)
        _quiet(plot)
    plots[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    plots[0].set_ylabel(name, color=INK)
    return figure


def rank_figure(ranks: Mapping[int, Sequence[tuple[int, float]]]) -> Figure:
    """Return each client's rank over the rounds, one row per client; empty where it did not take part.

    Args:
        ranks: Pairs (round, rank) by client.
    """
    clients = sorted(ranks)[:MAX_CLIENTS]
    num_rounds = 1 + max(round_idx for client_id in clients for round_idx, _ in ranks[client_id])
    grid = np.full((len(clients), num_rounds), np.nan)  # (clients, rounds)
    for row, client_id in enumerate(clients):
        for round_idx, rank in ranks[client_id]:
            grid[row, round_idx] = rank
    top = max(1.0, float(np.nanmax(grid)))
    figure = Figure(figsize=(6.4, 1.4 + 0.22 * max(4, len(clients))), dpi=150, layout="constrained")
    plot = figure.subplots()
    norm = PowerNorm(0.5, 0.0, top)  # small ranks differ as visibly as large ones
    image = plot.imshow(grid, aspect="auto", interpolation="nearest", cmap=RAMP, norm=norm)
    ticks = [0.0, *(2.0**k for k in range(math.floor(math.log2(top)) + 1))]
    figure.colorbar(image, ax=plot, label="Rank (mean over layers)", ticks=ticks, format="{x:g}").outline.set_visible(
        False
    )
    if num_rounds <= MAX_LABELS:
        _label_cells(plot, grid, norm)
    plot.set_yticks(range(len(clients)), [str(client_id) for client_id in clients], fontsize=7)
    plot.xaxis.set_major_locator(MaxNLocator(integer=True))
    plot.set_xlabel("Round", color=INK)
    plot.set_ylabel("Client" if len(ranks) == len(clients) else f"Client (first of {len(ranks)})", color=INK)
    _quiet(plot, grid=False)
    return figure


def _label_cells(plot: Axes, grid: np.ndarray, norm: PowerNorm) -> None:
    for row, column in np.argwhere(~np.isnan(grid)):
        rank = float(grid[row, column])
        color = INK if norm(rank) < 0.45 else "white"
        plot.text(column, row, f"{rank:.3g}", color=color, fontsize=7, ha="center", va="center")


def _quiet(plot: Axes, grid: bool = True) -> None:
    plot.tick_params(colors=QUIET, labelcolor=INK, length=3)
    plot.spines[["top", "right"]].set_visible(False)
    plot.spines[["left", "bottom"]].set_color(QUIET)
    if grid:
        plot.grid(True, color=QUIET, alpha=0.25, linewidth=0.6)
        plot.set_axisbelow(True)
