"""pl_fed: `FedIT` with the engines `sequential` and `packed`; with ``--devices 2`` in two processes."""

import argparse
import logging
import warnings
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import Dataset
from workload import CLIENTS, RATE, STEPS, Task, loss, trained

from pl_fed import __version__
from pl_fed.chunks import Packing
from pl_fed.loaders import RoundLoader
from pl_fed.modules.token_losses import token_losses, without_head
from pl_fed.packing import TokenRows
from pl_fed.rounds import LocalTraining
from pl_fed.rules import FedIT
from pl_fed.strategy import FederatedStrategy

QUIET = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)


class Module(pl.LightningModule):
    """The network of the task."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model = task.work.network()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return loss(self.model, batch["input_ids"])

    def packed_losses(self, rows: TokenRows) -> Tensor:
        """Return each client's loss of the next token (clients,), from the row of all their tokens."""
        targets = rows.next_tokens()
        chosen = (targets != -100).nonzero().flatten()
        head = self.model.get_base_model().lm_head
        with without_head(head):
            output = self.model(input_ids=rows.pick("input_ids"), position_ids=rows.positions, logits_to_keep=chosen)
        return rows.token_means(token_losses(output.logits.squeeze(0), head, targets[chosen]), chosen)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(trained(self.model).values(), lr=RATE)


class Examples(Dataset[dict[str, Tensor]]):
    def __init__(self, ids: Tensor) -> None:
        self.ids = ids  # (examples, length)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


class Clock(pl.Callback):
    """Marks the rounds."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.task.mark()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.task.mark()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", default="packed", choices=["packed", "sequential"])
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--clients-per-chunk", type=int, default=CLIENTS)
    task = Task(parser)
    warnings.filterwarnings("ignore")
    logging.disable(logging.INFO)
    per_client = STEPS * task.work.batch_size
    shards = [list(range(k * per_client, (k + 1) * per_client)) for k in range(CLIENTS)]
    loader = RoundLoader(Examples(task.work.examples), shards, task.work.batch_size)
    options = task.options
    engine = Packing(options.clients_per_chunk) if options.engine == "packed" else options.engine
    strategy = FederatedStrategy(FedIT(), local=LocalTraining(steps=STEPS), engine=engine, seed=0)
    module, clock = Module(task), Clock(task)
    trainer = pl.Trainer(
        strategy=strategy,
        accelerator="cpu",
        devices=options.devices,
        max_epochs=task.work.rounds,
        callbacks=[clock],
        **QUIET,  # type: ignore[arg-type]
    )
    trainer.fit(module, loader)
    if trainer.is_global_zero:
        task.report(list(trained(module.model).values()), f"pl_fed {__version__}")


if __name__ == "__main__":
    main()
