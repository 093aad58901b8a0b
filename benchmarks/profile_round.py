"""Where the CPU time of a round goes, and what fraction of the machine's matrix products it reaches.

The peak is measured first, as the best of several sizes of float32 product on one thread. Operations are counted by
torch's `FlopCounterMode`; 4 per frozen weight and token are expected, since no gradients of the weights are needed.
(It is not called `profile.py`: that would hide Python's own module of this name from everything that is run beside it.)

ABOUT

    python benchmarks/profile_round.py [--work toy minilm] [--batch-sizes 1 4] [--engines sequential packed]
"""

import argparse
import json
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from importlib import import_module
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from engines import one_round
from torch.utils.data.dataloader import _BaseDataLoaderIter
from torch.utils.flop_counter import FlopCounterMode
from works import WORKS, parser_of, settled, without_dropout

from pl_fed import chunk_round
from pl_fed.chunks import Packing
from pl_fed.engines.packed import PackedEngine
from pl_fed.federation import Federation

SIZES = ((1024, 1024, 1024), (384, 384, 384), (512, 384, 1536), (512, 576, 1536), (2048, 768, 768))
REST = "Lightning and the rest"


def peak(seconds: float = 0.3) -> float:
    """Return the most GFLOP/s of a float32 product (rows, in, out)."""
    found = []
    for rows, width, out in SIZES:
        x, weight = torch.randn(rows, width), torch.randn(out, width)
        torch.nn.functional.linear(x, weight)
        start, number = time.process_time(), 0
        while time.process_time() - start < seconds:
            torch.nn.functional.linear(x, weight)
            number += 1
        found.append(2 * rows * width * out * number / (time.process_time() - start) / 1e9)
    return max(found)


class Parts:
    """CPU seconds by part of a round; a part inside another counts for itself alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[list[float]] = []

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, which adds its own time to a part."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._open.append([0.0])
            start = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent = time.process_time() - start
                inner = self._open.pop()[0]
                self.seconds[name] += spent - inner
                if self._open:
                    self._open[-1][0] += spent

        return timed

    @contextmanager
    def watching(self, module: Any) -> Iterator[None]:
        """Time the parts of a round within a `with` block."""
        places = [
            (type(module), "training_step", "forward, backward"),
            (torch.Tensor, "backward", "forward, backward"),
            (PackedEngine, "training_step", "forward, backward"),
            (import_module("torch.optim.adam"), "adam", "optimizer"),
            (_BaseDataLoaderIter, "__next__", "batches"),
            (chunk_round, "start_chunk", "clients in and out"),
            (chunk_round, "finish_chunk", "clients in and out"),
            (Federation, "start_round", "clients in and out"),
            (Federation, "finish_round", "aggregation"),
        ]
        patches = [patch.object(owner, key, self.timed(part, getattr(owner, key))) for owner, key, part in places]
        for one in patches:
            one.start()
        try:
            yield
        finally:
            for one in patches:
                one.stop()


def profile(options: argparse.Namespace, work: str, batch_size: int, engine: str, most: float) -> dict[str, Any]:
    """Return the shares of a round's parts, in per cent, and the fraction of the peak."""
    module, loader = WORKS[work](options, batch_size)
    without_dropout(module)
    chosen = engine if engine == "sequential" else Packing(options.clients_per_chunk, options.tokens)
    one_round(module, loader(), chosen, options)  # warm
    with FlopCounterMode(display=False) as counter:
        one_round(module, loader(), chosen, options)
    rounds = []
    for _ in range(options.repeats):
        parts = Parts()
        with parts.watching(module):
            total = one_round(module, loader(), chosen, options)
        rounds.append({**parts.seconds, REST: total - sum(parts.seconds.values()), "total": total})
    shares = {name: median(100 * r.get(name, 0.0) / r["total"] for r in rounds) for name in rounds[0]}
    seconds, flops = median(r["total"] for r in rounds), counter.get_total_flops()
    training = median(r["forward, backward"] for r in rounds)
    return {
        "work": work,
        "batch_size": batch_size,
        "engine": engine,
        "seconds": round(seconds, 3),
        "gflop": round(flops / 1e9, 2),
        "percent_of_peak": round(100 * flops / 1e9 / seconds / most),
        "percent_of_peak_in_training": round(100 * flops / 1e9 / training / most),
        "percent": {name: round(share, 1) for name, share in shares.items() if name != "total"},
    }


def main() -> None:
    options = settled(parser_of(__doc__, repeats=3))
    most = peak()
    print(f"Peak of float32 products on one thread: {most:.0f} GFLOP/s\n")
    print("| work | batch | engine | s | % of peak | in training | where the time goes, % |")
    print("|---|---|---|---|---|---|---|", flush=True)
    rows = []
    for work in options.work:
        for size in options.batch_sizes:
            for engine in options.engines:
                rows.append(row := profile(options, work, size, engine, most))
                shares = ", ".join(f"{name} {share}" for name, share in row["percent"].items())
                reached = f"{row['percent_of_peak']} | {row['percent_of_peak_in_training']}"
                print(f"| {work} | {size} | {engine} | {row['seconds']} | {reached} | {shares} |", flush=True)
    machine = platform.processor() or platform.machine()
    print(json.dumps({"peak_gflops": most, "rows": rows, "machine": machine, "date": date.today().isoformat()}))


if __name__ == "__main__":
    main()
