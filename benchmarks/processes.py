"""What several processes gain: seconds of a round in one and in more processes, in turn.

Every process trains its share of the clients with one thread; the adapters are equal to the last bit. Starting the
processes is not counted.

    python benchmarks/processes.py [--processes 2] [--clients 20] [--steps 4] [--batch-size 4] [--repeats 3]
"""

import argparse
import hashlib
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from typing import Any

import lightning.pytorch as pl
import torch
from overhead import Module, Tokens

from pl_fed.callbacks import keep_freed_memory
from pl_fed.loaders import RoundLoader
from pl_fed.rounds import CohortConfig, LocalTraining
from pl_fed.rules import FedIT
from pl_fed.strategy import FederatedStrategy

COUNTED = 5  # rounds, after one warm-up


class RoundSeconds(pl.Callback):
    """Measures every round by the clock, with the wait for other processes."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.seconds.append(time.perf_counter() - self.start)


def work(options: argparse.Namespace, devices: int) -> None:
    """Train in this process and, with more devices, in those that Lightning starts."""
    torch.set_num_threads(1)
    if options.keep_memory:
        keep_freed_memory()
    per_client = options.steps * options.batch_size
    shards = [list(range(k * per_client, (k + 1) * per_client)) for k in range(options.clients)]
    loader = RoundLoader(Tokens(options.clients * per_client), shards, options.batch_size)
    strategy = FederatedStrategy(
        FedIT(), CohortConfig(clients=options.clients), LocalTraining(steps=options.steps), seed=0
    )
    times, module = RoundSeconds(), Module()
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = pl.Trainer(
        strategy=strategy, accelerator="cpu", devices=devices, max_epochs=COUNTED + 1, callbacks=[times], **quiet
    )
    trainer.fit(module, loader)
    digest = hashlib.sha256()
    for parameter in module.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    if trainer.is_global_zero:
        print(json.dumps({"seconds": times.seconds[1:], "digest": digest.hexdigest()}), flush=True)


def measure(devices: int) -> dict[str, Any]:
    """Run this file for a number of processes and return its round times."""
    command = [sys.executable, *sys.argv, "--worker", str(devices)]
    clean = {key: value for key, value in os.environ.items() if key not in ("LOCAL_RANK", "RANK", "WORLD_SIZE")}
    output = subprocess.run(command, env=clean | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True)
    return dict(json.loads(output.stdout.strip().splitlines()[-1]))


def together(number: int) -> list[float]:
    """Run so many independent processes at once, and return all their round times."""
    with ThreadPoolExecutor(number) as pool:
        return [second for found in pool.map(measure, [1] * number) for second in found["seconds"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3, help="starts of each")
    parser.add_argument("--keep-memory", action="store_true", help="call `pl_fed.callbacks.keep_freed_memory` first")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.INFO)
    if options.worker:
        work(options, options.worker)
        return
    found = [(measure(1), measure(options.processes), together(options.processes)) for _ in range(options.repeats)]
    assert len({run["digest"] for *pair, _ in found for run in pair}) == 1, "the adapters differ"
    ratios = [statistics.median(one["seconds"]) / statistics.median(more["seconds"]) for one, more, _ in found]
    ceilings = [
        options.processes * statistics.median(one["seconds"]) / statistics.median(seconds) for one, _, seconds in found
    ]
    alone = statistics.median(second for one, _, _ in found for second in one["seconds"])
    print(
        f"{options.clients} clients of {options.steps} steps, batch size {options.batch_size}: {alone:.2f} s a round "
        f"in one process; {options.processes} processes are {statistics.median(ratios):.2f} times as fast "
        f"({min(ratios):.2f} to {max(ratios):.2f}, {options.repeats} starts of each), as many independent "
        f"processes do {statistics.median(ceilings):.2f} times the work of one; equal adapters; "
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}, "
        f"{date.today()}"
    )


if __name__ == "__main__":
    main()
