"""The engines `sequential` and `packed` on the same rounds: ratios of CPU seconds, measured in turn in one process.

`toy` is GPT-2 of four layers of width 128 on 32 tokens each; `minilm` is all-MiniLM-L6-v2 on 20 Newsgroups, ragged, as
`configs/classify_newsgroups.yaml` has them (downloads both once). Without dropout the adapters of both engines are
compared at the end; with it (``--dropout``) their random numbers differ.

    python benchmarks/engines.py [--work toy minilm] [--batch-sizes 1 4] [--clients 16] [--steps 4] [--repeats 7]
"""

import argparse
import itertools
import json
import logging
import os
import platform
import resource
import statistics
import time
import warnings
from collections.abc import Callable
from datetime import date
from typing import Any

import lightning.pytorch as pl
import torch
from overhead import Module, Tokens
from torch import nn

from pl_fed.chunks import Packing
from pl_fed.datamodules import TextClassificationData
from pl_fed.loaders import RoundLoader
from pl_fed.modules import LoraSequenceClassifier, LoraSettings
from pl_fed.packing import TokenRows
from pl_fed.rounds import LocalTraining
from pl_fed.rules import FedIT
from pl_fed.strategy import FederatedStrategy

QUIET = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)


class Toy(Module):
    """The network of `overhead.py`, whose clients may train together."""

    def packed_losses(self, rows: TokenRows) -> torch.Tensor:
        logits = self.model(input_ids=rows.pick("input_ids"), position_ids=rows.positions).logits[0]
        targets = rows.next_tokens()
        chosen = (targets != -100).nonzero().flatten()
        losses = nn.functional.cross_entropy(logits[chosen], targets[chosen], reduction="none")
        return rows.token_means(losses, chosen)


class LabelledTokens(Tokens):
    """The examples of `overhead.py` with their labels, which packed rows shift by themselves."""

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {**super().__getitem__(index), "labels": self.ids[index]}


class Seconds(pl.Callback):
    """CPU seconds of the round, without Lightning's set-up."""

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.start = time.process_time()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.seconds = time.process_time() - self.start


def toy(options: argparse.Namespace, batch_size: int) -> tuple[pl.LightningModule, Callable[[], RoundLoader]]:
    per_client = options.steps * batch_size
    data = LabelledTokens(options.clients * per_client)
    shards = [list(range(k * per_client, (k + 1) * per_client)) for k in range(options.clients)]
    return Toy(), lambda: RoundLoader(data, shards, batch_size=batch_size)


def minilm(options: argparse.Namespace, batch_size: int) -> tuple[pl.LightningModule, Callable[[], RoundLoader]]:
    from flwr_datasets.partitioner import IidPartitioner

    name = "sentence-transformers/all-MiniLM-L6-v2"
    lora = LoraSettings(r=8, target_modules=["query", "value"])
    module = LoraSequenceClassifier(name, lora, lambda p: torch.optim.AdamW(p, lr=1e-3), num_labels=20)
    partitioner = IidPartitioner(options.clients)
    data = TextClassificationData(
        "SetFit/20_newsgroups", partitioner=partitioner, max_length=options.max_length, batch_size=batch_size
    )
    trainer = pl.Trainer(accelerator="cpu", **QUIET)
    trainer.strategy._lightning_module = module
    module.trainer, data.trainer = trainer, trainer
    data.prepare_data()
    data.setup("fit")
    module.configure_model()
    return module, data.train_dataloader


def one_round(module: Any, loader: RoundLoader, engine: Any, steps: int) -> float:
    """Return the CPU seconds of a round from the module's present adapter."""
    seconds = Seconds()
    strategy = FederatedStrategy(FedIT(), local=LocalTraining(steps=steps), engine=engine, seed=0)
    trainer = pl.Trainer(strategy=strategy, accelerator="cpu", max_epochs=1, callbacks=[seconds], **QUIET)
    trainer.fit(module, loader)
    return seconds.seconds


def measure(options: argparse.Namespace, work: str, batch_size: int) -> dict[str, Any]:
    """Run both engines in turn from the same adapter."""
    module, loader = {"toy": toy, "minilm": minilm}[work](options, batch_size)
    if not options.dropout:
        for child in module.modules():
            if isinstance(child, nn.Dropout):
                child.p = 0.0
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    start = {name: p.detach().clone() for name, p in trained.items()}
    seconds: dict[str, list[float]] = {engine: [] for engine in options.engines}
    ends: dict[str, dict[str, torch.Tensor]] = {}
    for _ in range(options.repeats + 1):
        for engine, times in seconds.items():
            for name, value in start.items():
                trained[name].data.copy_(value)
            chosen = engine if engine == "sequential" else Packing(options.clients_per_chunk, options.tokens)
            times.append(one_round(module, loader(), chosen, options.steps))
            ends[engine] = {name: p.detach().clone() for name, p in trained.items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", nargs="+", default=["toy", "minilm"], choices=["toy", "minilm"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--max-length", type=int, default=96)
    parser.add_argument("--clients-per-chunk", type=int, default=Packing().clients)
    parser.add_argument("--tokens", type=int, default=None)
    parser.add_argument("--repeats", type=int, default=7, help="counted rounds of each engine, after one warm-up")
    parser.add_argument("--engines", nargs="+", default=["sequential", "packed"], help="one alone shows its memory")
    parser.add_argument("--dropout", action="store_true", help="leave the models' dropout on")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    print("| work | batch | sequential / packed (min to max) | CPU s sequential | CPU s packed |")
    print("|---|---|---|---|---|", flush=True)
    rows = []
    for work, size in itertools.product(options.work, options.batch_sizes):
        rows.append(row := measure(options, work, size))
        if len(options.engines) == 2:
            spread = f"{row['ratio_median']} ({row['ratio_min']} to {row['ratio_max']})"
            print(f"| {work} | {size} | {spread} | {row['seconds_sequential']} | {row['seconds_packed']} |", flush=True)
    machine = {"machine": platform.processor() or platform.machine(), "load": os.getloadavg()[0]}
    print(json.dumps({"rows": rows, "settings": vars(options), **machine, "date": date.today().isoformat()}, indent=1))


if __name__ == "__main__":
    main()
