"""A table and a picture of who holds what."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pl_fed.datamodules.partition import Partition

MAX_GROUPS = 20  # colours that a reader can tell apart; the rest is one group
OTHER = "other"
# tab20, the strong colours first; its two greys, which would look like the rest, are replaced.
_TAB20 = [colormaps["tab20"](j) for j in range(14)] + [colormaps["tab20b"](j) for j in (0, 4)]
_TAB20 += [colormaps["tab20"](j) for j in range(16, 20)]
COLOURS = _TAB20[::2] + _TAB20[1::2]
Row = dict[str, int | float | str]


def count_groups(
    shards: Sequence[Sequence[int]], groups: Sequence[str], order: Sequence[str] = ()
) -> tuple[list[str], np.ndarray]:
    """Count each client's examples by group; the smallest groups beyond `MAX_GROUPS` are counted as one.

    Args:
        shards: Example indices by client.
        groups: Group of every example.
        order: Names of the groups in the wanted order; None of them means by size.

    Returns:
        The names of the groups, and the counts (clients, groups).
    """
    totals = Counter(groups[i] for shard in shards for i in shard)
    largest = [name for name, _ in sorted(totals.items(), key=lambda item: (-item[1], item[0]))]
    kept = set(largest if len(largest) <= MAX_GROUPS else largest[: MAX_GROUPS - 1])
    names = [name for name in (order or largest) if name in kept]
    if len(kept) < len(largest):
        names.append(OTHER)
    place = {name: j for j, name in enumerate(names)}
    counts = np.zeros((len(shards), len(names)), np.int64)
    for k, shard in enumerate(shards):
        for i in shard:
            counts[k, place.get(groups[i], len(names) - 1)] += 1
    return names, counts


def entropy_bits(counts: Sequence[int] | np.ndarray) -> float:
    r"""Return the entropy of a client's groups, in bits.

    .. math:: H = -\sum_g p_g \log_2 p_g

    Example:
        >>> entropy_bits([5, 5, 0])
        1.0
    """
    shares = np.asarray(counts, np.float64)
    shares = shares[shares > 0] / shares.sum()
    return float(abs((shares * np.log2(shares)).sum()))


def partition_rows(partition: Partition, groups: Sequence[str], order: Sequence[str] = ()) -> list[Row]:
    """Return one row for each client: sizes, entropy of its groups, the largest three, and the count of each.

    Args:
        partition: Who holds what.
        groups: Group of every training example.
        order: Names of the groups in the wanted order.
    """
    names, counts = count_groups(partition.shards, groups, order)
    rows = []
    for k, client in enumerate(partition.names):
        own = Counter(groups[i] for i in partition.shards[k])
        top = sorted(own.items(), key=lambda item: (-item[1], item[0]))[:3]
        row: Row = {
            "client_id": k,
            "name": client,
            "num_train": len(partition.train[k]),
            "num_validation": len(partition.validation[k]),
            "num_test": len(partition.test[k]),
            "entropy_bits": round(entropy_bits(list(own.values())), 4),
            "top_groups": ", ".join(f"{name} ({count})" for name, count in top),
        }
        rows.append(row | {f"num {name}": int(count) for name, count in zip(names, counts[k], strict=True)})
    return rows


def draw_partition(
    partition: Partition, groups: Sequence[str], title: str, path: Path, order: Sequence[str] = ()
) -> None:
    """Draw a bar for each client, stacked by group, into a PNG.

    Args:
        partition: Who holds what.
        groups: Group of every training example.
        title: First line above the picture.
        path: The file to write.
        order: Names of the groups in the wanted order.
    """
    names, counts = count_groups(partition.shards, groups, order)
    num_clients = len(partition.names)
    legend = len(names) > 1
    figure = Figure(
        figsize=(min(18.0, max(7.0, 0.14 * num_clients + 5.0)) + 2.0 * legend, 4.8), dpi=120, layout="constrained"
    )
    axes = figure.add_subplot()
    _stack(axes, names, counts)
    _name_clients(axes, partition.names)
    axes.set_ylabel("examples (training, validation and test)")
    axes.set_title(f"{title}\n{_summary(partition, groups)}", loc="left", fontsize=9)
    if legend:
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], loc="outside right upper", fontsize=8, frameon=False)
    figure.savefig(path)


def _stack(axes: Axes, names: Sequence[str], counts: np.ndarray) -> None:
    positions, bottom = np.arange(len(counts)), np.zeros(len(counts))
    edge = 0.4 if len(counts) <= 40 else 0.0
    for j, name in enumerate(names):
        colour = "0.85" if name == OTHER else COLOURS[j]
        has = counts[:, j] > 0
        axes.bar(
            positions[has],
            counts[has, j],
            0.85,
            bottom[has],
            color=colour,
            edgecolor="white",
            linewidth=edge,
            label=name,
        )
        bottom += counts[:, j]
    axes.set_xlim(-0.7, len(counts) - 0.3)
    axes.set_ylim(0.0, 1.03 * bottom.max())
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color="0.9")


def _name_clients(axes: Axes, names: Sequence[str]) -> None:
    """Label the bars with the clients' names, or numbers where the names say no more or find no room."""
    numbered = all(name == f"client {k}" for k, name in enumerate(names))
    if numbered or len(names) > 60:
        step = max(1, -(-len(names) // 40))
        axes.set_xticks(range(0, len(names), step), [str(k) for k in range(0, len(names), step)], fontsize=8)
        axes.set_xlabel("client")
        return
    shown = [name if len(name) <= 24 else f"{name[:23]}…" for name in names]
    upright = len(names) <= 10 and max(map(len, shown)) <= 8
    axes.set_xticks(range(len(names)), shown, rotation=0 if upright else 90, fontsize=8)


def _summary(partition: Partition, groups: Sequence[str]) -> str:
    sizes = [len(shard) for shard in partition.shards]
    entropies = [entropy_bits(list(Counter(groups[i] for i in shard).values())) for shard in partition.shards]
    pooled = entropy_bits(list(Counter(groups[i] for shard in partition.shards for i in shard).values()))
    public = f", and {len(partition.public):,} public" if partition.public else ""
    parts = [f"{len(sizes)} clients with {min(sizes):,} to {max(sizes):,} of {sum(sizes):,} examples{public}"]
    if pooled > 0:
        parts.append(f"median entropy of a client {np.median(entropies):.2f} bits, of all together {pooled:.2f}")
    return "\n".join(parts)
