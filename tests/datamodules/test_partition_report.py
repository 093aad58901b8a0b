"""The table and the picture of a partition, and the callback that leaves them in the run's folder."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from pl_fed.callbacks.partition_report import PartitionReport
from pl_fed.datamodules.partition import Partition
from pl_fed.datamodules.report import MAX_GROUPS, count_groups, draw_partition, entropy_bits, partition_rows

PARTITION = Partition(["ann", "bob"], train=[[0, 1], [4]], validation=[[2], []], test=[[3], []], public=[5])
GROUPS = ["x", "x", "y", "y", "y", "x"]


def test_table_by_hand() -> None:
    """Ann has two x and two y, which is one bit; Bob has one y, which is none."""
    common: dict[str, Any] = {"num_validation": 0, "num_test": 0}
    assert partition_rows(PARTITION, GROUPS, ["x", "y"]) == [
        {
            "client_id": 0,
            "name": "ann",
            "num_train": 2,
            "num_validation": 1,
            "num_test": 1,
            "entropy_bits": 1.0,
            "top_groups": "x (2), y (2)",
            "num x": 2,
            "num y": 2,
        },
        {
            "client_id": 1,
            "name": "bob",
            "num_train": 1,
            **common,
            "entropy_bits": 0.0,
            "top_groups": "y (1)",
            "num x": 0,
            "num y": 1,
        },
    ]


def test_groups_by_size() -> None:
    """Three y and two x are on clients; the public example counts for nobody."""
    names, counts = count_groups(PARTITION.shards, GROUPS)
    assert names == ["y", "x"]
    assert counts.tolist() == [[2, 2], [1, 0]]


def test_many_groups() -> None:
    """Of 30 groups the 19 largest keep their names; the smallest 11, of sizes 1 to 11, are 66 examples."""
    groups = [f"g{size:02}" for size in range(1, 31) for _ in range(size)]
    names, counts = count_groups([list(range(len(groups)))], groups)
    assert len(names) == MAX_GROUPS
    assert names[:2] == ["g30", "g29"]
    assert (names[-1], counts[0, -1]) == ("other", 66)
    assert counts.sum() == len(groups)


def test_entropy() -> None:
    assert entropy_bits([1, 1, 1, 1]) == 2.0
    assert entropy_bits([7]) == 0.0
    assert entropy_bits(np.array([1, 0, 3])) == pytest.approx(0.25 * 2 + 0.75 * np.log2(4 / 3))


@pytest.mark.parametrize("num_clients", [1, 8, 100])
@pytest.mark.parametrize("is_natural", [True, False])
def test_picture(num_clients: int, is_natural: bool, tmp_path: Path) -> None:
    names = [f"a client with a long name {k}" if is_natural else f"client {k}" for k in range(num_clients)]
    train = [[3 * k, 3 * k + 1, 3 * k + 2] for k in range(num_clients)]
    partition = Partition(names, train, [[]] * num_clients, [[]] * num_clients, [])
    groups = [f"group {i % 23}" for i in range(3 * num_clients)]
    draw_partition(partition, groups, "title", tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


class Silent(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        return self.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class Data(LightningDataModule):
    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(torch.zeros(1, 1))  # type: ignore[arg-type]


class Reported(Data):
    def partition_table(self) -> list[dict[str, Any]]:
        return partition_rows(PARTITION, GROUPS)

    def plot_partition(self, path: Path) -> None:
        path.write_bytes(b"picture")


def fit(folder: Path, data: LightningDataModule, callback: PartitionReport, logger: Any = False) -> Trainer:
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=[callback],
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Silent(), datamodule=data)
    return trainer


def test_callback_without_a_logger(tmp_path: Path) -> None:
    fit(tmp_path, Reported(), PartitionReport())
    with (tmp_path / "partition.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["ann", "bob"]
    assert [row["num y"] for row in rows] == ["2", "1"]
    assert (tmp_path / "partition.png").read_bytes() == b"picture"


def test_callback_with_a_logger(tmp_path: Path) -> None:
    fit(tmp_path, Reported(), PartitionReport(table=False), CSVLogger(tmp_path, name="run"))
    assert sorted(path.name for path in tmp_path.glob("run/version_0/*.png")) == ["partition.png"]
    assert not list(tmp_path.rglob("partition.csv"))


def test_callback_with_other_data(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="a datamodule with `partition_table` and `plot_partition` but got Data"):
        fit(tmp_path, Data(), PartitionReport())
    assert not list(tmp_path.iterdir())
