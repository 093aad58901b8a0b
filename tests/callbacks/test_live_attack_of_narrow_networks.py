"""A live attack on a network that is narrower behind its norm: the rank says how many rounds it takes."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from pl_fed.loaders import RoundLoader
from tests.callbacks.test_live_attack import attacked, sgd

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")


class Narrow(pl.LightningModule):
    """Sixteen biases of the norm, two features at the final layer: rank 3."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        body = [nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2)]
        self.net = nn.Sequential(*body, nn.Linear(2, 5))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch["x"]), batch["labels"])

    def configure_optimizers(self) -> Any:
        return sgd(0.5)(self.parameters())


def test_the_rank_says_how_many_rounds(tmp_path: Path) -> None:
    """Two targets a round, so two rounds for four clients; one round gave nobody."""
    torch.manual_seed(1)
    labels = torch.randint(5, (40,))
    rows = [{"x": torch.randn(8), "labels": label} for label in labels]
    shards = [list(range(10 * k, 10 * k + 10)) for k in range(4)]
    loader = RoundLoader(rows, shards, batch_size=10)
    (report,) = attacked(tmp_path, module=Narrow(), loader=loader, trainer={"max_epochs": 3}).reports
    assert report.exact_match == 1.0 and "up to 1:" in report.setting
    assert [list(row.true) for row in report.rows] == [labels[s].bincount(minlength=5).tolist() for s in shards]
