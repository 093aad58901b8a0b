"""An ordinary classifier under an ordinary Trainer, for callbacks that audit it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from tests.helpers.audited import digits, mlp


class Net(pl.LightningModule):
    """A classifier with dropout, batch norm and a metric that keeps state outside of its buffers' reach."""

    def __init__(self, net: nn.Module | None = None, loss: Callable[..., Tensor] = nn.functional.cross_entropy) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = mlp(32) if net is None else net
        self.loss, self.accuracy, self.steps = loss, MulticlassAccuracy(10), 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | dict[str, Tensor]:
        images, labels = batch.values() if isinstance(batch, dict) else batch
        logits = self.net(images)
        self.steps += 1
        self.accuracy(logits.detach(), labels)
        self.log("train/accuracy", self.accuracy, on_step=False, on_epoch=True)
        self.log("train/epoch", float(self.trainer.current_epoch))
        return {"loss": self.loss(logits, labels)}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader(num_examples: int = 320, **kwargs: Any) -> DataLoader[Any]:
    images, labels = digits()
    return DataLoader(
        TensorDataset(images[:num_examples], labels[:num_examples]), **{"batch_size": 32, "shuffle": True} | kwargs
    )


def fit(module: pl.LightningModule, data: Any, folder: Path, *callbacks: pl.Callback, **kwargs: Any) -> pl.Trainer:
    defaults: dict[str, Any] = {"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False, "logger": False}
    defaults |= {"enable_model_summary": False, "enable_checkpointing": False, "default_root_dir": folder}
    trainer = pl.Trainer(callbacks=list(callbacks), **{**defaults, **kwargs})
    torch.manual_seed(7)
    trainer.fit(module, data)
    return trainer
