"""The figures of an audit, made with matplotlib's objects; there is no global state and no window."""

import base64
import io
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pl_fed.attacks.defences import DefenceRow
from pl_fed.attacks.report import ClientRow
from pl_fed.callbacks._audit_result import AuditResult
from pl_fed.callbacks._figures import INK, LINE, QUIET, _quiet

MAX_CLIENTS = 8  # small pictures that fit on a page
SMALL = 8  # points
COLOURS = (LINE, "#c2552d", "#4d8b57", "#7d5ba6")


def counts_figure(rows: Sequence[ClientRow]) -> Figure:
    """Return each client's label counts: bars are the truth, dots what the server recovered.

    Args:
        rows: The clients; the first `MAX_CLIENTS` are drawn.
    """
    shown = list(rows)[:MAX_CLIENTS]
    columns = min(4, len(shown))
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(2.4 * columns + 0.4, 1.8 * lines + 0.5), dpi=130, layout="constrained")
    plots = list(figure.subplots(lines, columns, squeeze=False, sharex=True).flat)
    for plot, row in zip(plots, shown, strict=False):
        classes = range(len(row.true))
        plot.bar(classes, row.true, color=QUIET, alpha=0.45, width=0.8, label="true")
        if row.recovered is not None:
            plot.plot(classes, row.recovered, "o", color=LINE, markersize=3.2, label="recovered")
        found = "not separated" if row.recovered is None else f"{row.accuracy:.0%} right"
        plot.set_title(f"client {row.client}: {found}", fontsize=8, color=INK)
        plot.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        plot.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        plot.tick_params(labelsize=7)
        _quiet(plot)
    for plot in plots[len(shown) :]:
        plot.set_visible(False)
    figure.supxlabel("Class (bars: true counts, dots: recovered)", fontsize=8, color=INK)
    return figure


def noise_figure(rows: Sequence[DefenceRow]) -> Figure | None:
    """Return label accuracy against the noise multiplier, with the guess as a line; None without noise.

    Args:
        rows: All rows; those of clipping alone stand at 0.
    """
    noisy = [row for row in rows if row.noise_multiplier is not None and row.rank is not None]
    if not any(row.noise_multiplier for row in noisy):
        return None
    figure = Figure(figsize=(5.6, 3.0), dpi=130, layout="constrained")
    plot = figure.subplots()
    levels = sorted({row.noise_multiplier for row in noisy if row.noise_multiplier is not None})
    for colour, attack in zip(COLOURS, dict.fromkeys(row.attack for row in noisy), strict=False):
        points = {row.noise_multiplier: row.label_accuracy for row in noisy if row.attack == attack}
        places = [levels.index(level) for level in sorted(k for k in points if k is not None)]
        heights = [points[levels[place]] for place in places]
        plot.plot(places, heights, "o-", color=colour, linewidth=1.6, markersize=4, label=attack)
    plot.axhline(noisy[0].guess, color=INK, linestyle="--", linewidth=1.0, label="guess")
    plot.set_xticks(range(len(levels)), [f"{level:g}" for level in levels])
    plot.set_xlabel("Noise multiplier (0: clipping alone)", color=INK, fontsize=SMALL)
    plot.set_ylabel("Label accuracy", color=INK, fontsize=SMALL)
    plot.set_ylim(0.0, 1.03)
    plot.tick_params(labelsize=SMALL)
    plot.legend(frameon=False, fontsize=SMALL)
    _quiet(plot)
    return figure


def cost_figure(result: AuditResult) -> Figure | None:
    """Return what training under each defence reaches (bars) and what still leaks (dots); None if it was not measured.

    Args:
        result: The audit; defences whose cost was not measured are left out.
    """
    names = list(result.costs)
    if not names:
        return None
    figure = Figure(figsize=(7.2, 0.34 * len(names) + 0.9), dpi=130, layout="constrained")
    plot, places = figure.subplots(), range(len(names))
    costs = list(result.costs.values())
    spreads = [cost.spread or 0.0 for cost in costs]
    bar: dict[str, Any] = {"color": QUIET, "alpha": 0.45, "height": 0.7, "error_kw": {"ecolor": INK, "elinewidth": 1.0}}
    plot.barh(places, [cost.mean for cost in costs], xerr=spreads, label=result.figure, **bar)
    leaks = [row.label_accuracy if (row := result.leak(name)) else float("nan") for name in names]
    plot.plot(leaks, places, "o", color=COLOURS[1], markersize=5, label="label accuracy of the best attack")
    plot.axvline(result.rows[0].guess, color=INK, linestyle="--", linewidth=1.0, label="guess")
    plot.set_yticks(places, names)
    plot.invert_yaxis()
    plot.set_xlim(0.0, 1.03)
    plot.tick_params(labelsize=SMALL)
    figure.legend(frameon=False, fontsize=SMALL, loc="outside lower center", ncols=3)
    _quiet(plot)
    return figure


def data_uri(figure: Figure) -> str:
    """Return a figure as a PNG inside a URI; the same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
