"""Start-up and round time against the size of the population, with lazy shards: neither may grow with it.

    python benchmarks/population.py [--sizes 1000 100000 1000000] [--clients 10] [--rounds 6] [--store]

With ``--store`` every client keeps its adapter, in a file.
"""

import argparse
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Sequence
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from overhead import Module, Tokens

from pl_fed.clients import ClientsConfig
from pl_fed.loaders import RoundLoader
from pl_fed.rounds import CohortConfig, LocalTraining, derive_seed
from pl_fed.rules import AFLoRA
from pl_fed.strategy import FederatedStrategy

EXAMPLES = 512


class LazyShards(Sequence[Sequence[int]]):
    """Eight examples of each client, chosen when it is asked for."""

    def __init__(self, num_clients: int) -> None:
        self.num_clients = num_clients

    def __len__(self) -> int:
        return self.num_clients

    def __getitem__(self, client_id: Any) -> Sequence[int]:
        start = derive_seed(client_id) % (EXAMPLES - 8)
        return range(start, start + 8)


class Clock(pl.Callback):
    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.started = time.process_time()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.ends.append(time.process_time())


def measure(size: int, clients: int, rounds: int, store: str | None = None) -> dict[str, float]:
    """Return CPU seconds of the start and of a round (median), and how many clients' states are in memory."""
    module, clock = Module(), Clock()
    kept = ClientsConfig(ranks=[8, 4, 2, 1], keep_adapters=store is not None, store=store)
    strategy = FederatedStrategy(AFLoRA(), CohortConfig(clients=clients), LocalTraining(steps=2), kept, seed=0)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(strategy=strategy, accelerator="cpu", max_epochs=rounds, callbacks=[clock], **quiet)
    start = time.process_time()
    trainer.fit(module, RoundLoader(Tokens(EXAMPLES), LazyShards(size), batch_size=4))
    ends = [clock.started, *clock.ends]
    assert strategy.loop.federation is not None
    return {
        "population": size,
        "start_cpu_seconds": round(clock.started - start, 3),
        "round_cpu_seconds": round(statistics.median(b - a for a, b in pairwise(ends[1:])), 3),
        "states_in_memory": len(strategy.loop.federation.states.recent),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 100_000, 1_000_000])
    parser.add_argument("--clients", type=int, default=10, help="cohort")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--store", action="store_true", help="clients keep their adapters, in a file")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    measure(100, options.clients, 2)  # warm-up
    with tempfile.TemporaryDirectory() as folder:
        files = {size: str(Path(folder, f"{size}.sqlite")) if options.store else None for size in options.sizes}
        rows = [measure(size, options.clients, options.rounds, files[size]) for size in options.sizes]
    print(json.dumps({"rows": rows, "cohort": options.clients, "date": date.today().isoformat()}, indent=2))


if __name__ == "__main__":
    main()
