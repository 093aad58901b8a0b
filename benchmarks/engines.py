"""The engines `sequential` and `packed` on the same rounds: ratios, measured in turn in one process.

Seconds are those of the CPU, or with a GPU those of the clock. Without dropout the adapters of both engines are
compared at the end; with it (``--dropout``) their random numbers differ. The works:

ABOUT

    python benchmarks/engines.py [--work toy minilm vit] [--batch-sizes 1 4] [--clients 16] [--steps 4] [--repeats 7]
    python benchmarks/engines.py --work smollm2 llama1b --accelerator gpu --precision bf16-mixed
"""

import argparse
import itertools
import json
import os
import platform
import resource
import statistics
import time
from datetime import date
from typing import Any

import lightning.pytorch as pl
import torch
from works import QUIET, WORKS, parser_of, settled, without_dropout

from pl_fed.chunks import Packing
from pl_fed.loaders import RoundLoader
from pl_fed.rounds import LocalTraining
from pl_fed.rules import FedIT
from pl_fed.strategy import FederatedStrategy


class Seconds(pl.Callback):
    """Seconds of the round without Lightning's set-up: those of the CPU, or with a GPU those of the clock."""

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.start = self._now(pl_module)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.seconds = self._now(pl_module) - self.start

    def _now(self, module: Any) -> float:
        if module.device.type != "cuda":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()


def one_round(module: Any, loader: RoundLoader, engine: Any, options: argparse.Namespace) -> float:
    """Return the seconds of a round from the module's present adapter."""
    seconds = Seconds()
    strategy = FederatedStrategy(FedIT(), local=LocalTraining(steps=options.steps), engine=engine, seed=0)
    where = {"accelerator": options.accelerator, "precision": options.precision, "devices": 1}
    trainer = pl.Trainer(strategy=strategy, max_epochs=1, callbacks=[seconds], **where, **QUIET)
    trainer.fit(module, loader)
    return seconds.seconds


def measure(options: argparse.Namespace, work: str, batch_size: int) -> dict[str, Any]:
    """Run both engines in turn from the same adapter."""
    module, loader = WORKS[work](options, batch_size)
    if not options.dropout:
        without_dropout(module)
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    start = {name: p.detach().clone() for name, p in trained.items()}
    seconds: dict[str, list[float]] = {engine: [] for engine in options.engines}
    ends: dict[str, dict[str, torch.Tensor]] = {}
    for _ in range(options.repeats + 1):
        for engine, times in seconds.items():
            for name, value in start.items():
                trained[name].data.copy_(value)
            chosen = engine if engine == "sequential" else Packing(options.clients_per_chunk, options.tokens)
            times.append(one_round(module, loader(), chosen, options))
            ends[engine] = {name: p.detach().clone() for name, p in trained.items()}
    peak = peak_megabytes(options.accelerator)
    medians = {f"seconds_{engine}": round(statistics.median(times[1:]), 3) for engine, times in seconds.items()}
    if len(seconds) == 1:
        return {"work": work, "batch_size": batch_size, **medians, "peak_megabytes": peak}
    ratios = [a / b for a, b in zip(seconds["sequential"][1:], seconds["packed"][1:], strict=True)]
    moved = max(float((value - start[name]).abs().max()) for name, value in ends["sequential"].items())
    apart = max(float((value - ends["packed"][name]).abs().max()) for name, value in ends["sequential"].items())
    return {
        "work": work,
        "batch_size": batch_size,
        "ratio_median": round(statistics.median(ratios), 2),
        "ratio_min": round(min(ratios), 2),
        "ratio_max": round(max(ratios), 2),
        **medians,
        "largest_move": moved,
        "largest_difference": None if options.dropout else apart,
    }


def peak_megabytes(accelerator: str) -> int:
    """Return the most memory so far: of the process, or on the GPU."""
    if accelerator == "gpu":
        return torch.cuda.max_memory_allocated() // 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    parser = parser_of(__doc__, repeats=7)
    parser.add_argument("--dropout", action="store_true", help="leave the models' dropout on")
    options = settled(parser)  # `--engines` with one alone shows its memory
    print("| work | batch | sequential / packed (min to max) | s sequential | s packed |")
    print("|---|---|---|---|---|", flush=True)
    rows = []
    for work, size in itertools.product(options.work, options.batch_sizes):
        rows.append(row := measure(options, work, size))
        if len(options.engines) == 2:
            spread = f"{row['ratio_median']} ({row['ratio_min']} to {row['ratio_max']})"
            print(f"| {work} | {size} | {spread} | {row['seconds_sequential']} | {row['seconds_packed']} |", flush=True)
    name = torch.cuda.get_device_name() if options.accelerator == "gpu" else platform.processor() or platform.machine()
    machine = {"machine": name, "load": os.getloadavg()[0]}
    print(json.dumps({"rows": rows, "settings": vars(options), **machine, "date": date.today().isoformat()}, indent=1))


if __name__ == "__main__":
    main()
