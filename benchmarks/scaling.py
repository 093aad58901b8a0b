"""How a round's time and memory grow with the cohort, the rank and the batch: a table, JSON and a plot.

Every point is a process of its own, which runs `engines.py` with one engine, so that its peak memory is that of the
point alone. The population has a script of its own (`population.py`), and so have several processes (`processes.py`).

    python benchmarks/scaling.py [--work toy] [--cohorts 4 16 64] [--ranks 1 8 64] [--output scaling.json]
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
from tqdm import tqdm

matplotlib.use("agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
ENGINES = ("sequential", "packed")
AXES = {"cohort": "--clients", "rank": "--rank", "batch size": "--batch-sizes"}


def point(work: str, engine: str, axis: str, value: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds of a round and the peak memory of its process."""
    size = ["--steps", str(options.steps), "--repeats", str(options.repeats), AXES[axis], str(value)]
    size += [] if axis == "batch size" else ["--batch-sizes", "1"]
    command = [sys.executable, str(HERE / "engines.py"), "--work", work, "--engines", engine, *size]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    row = json.loads(done.stdout[done.stdout.index("{") :])["rows"][0]
    seconds, peak = row[f"seconds_{engine}"], row["peak_megabytes"]
    return {"work": work, "engine": engine, "axis": axis, "value": value, "seconds": seconds, "megabytes": peak}


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw seconds and memory against each axis."""
    axes = list(dict.fromkeys(row["axis"] for row in rows))
    figure, places = plt.subplots(2, len(axes), figsize=(4 * len(axes), 6), squeeze=False, layout="constrained")
    for column, axis in enumerate(axes):
        for line, key in enumerate(("seconds", "megabytes")):
            place = places[line][column]
            for engine in ENGINES:
                points = [(row["value"], row[key]) for row in rows if (row["axis"], row["engine"]) == (axis, engine)]
                place.plot(*zip(*points, strict=True), marker="o", label=engine)
            place.set(xlabel=axis, ylabel=f"{key} a round" if line == 0 else "MB, peak", ylim=(0, None))
            place.set_xscale("log", base=2)
    places[0][0].legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", default="toy", help="one of those of `engines.py`")
    parser.add_argument("--cohorts", type=int, nargs="*", default=[4, 8, 16, 32, 64])
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 4, 16, 64])
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("scaling.json"), help="the plot lies beside it, as PNG")
    options = parser.parse_args()
    values = {"cohort": options.cohorts, "rank": options.ranks, "batch size": options.batch_sizes}
    points = [(axis, value, engine) for axis in AXES for value in values[axis] for engine in ENGINES]
    rows = [point(options.work, engine, axis, value, options) for axis, value, engine in tqdm(points)]
    print("| axis | value | s sequential | s packed | MB sequential | MB packed |\n|---|---|---|---|---|---|")
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        seconds, memory = (f"{first[key]} | {second[key]}" for key in ("seconds", "megabytes"))
        print(f"| {first['axis']} | {first['value']} | {seconds} | {memory} |")
    options.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if rows:
        draw(rows, options.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
