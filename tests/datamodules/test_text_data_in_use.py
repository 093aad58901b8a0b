"""`TextClassificationData` under a plain Trainer and from a command line."""

from pathlib import Path
from typing import Any

import jsonargparse
import pytest
import torch
from flwr_datasets.partitioner import (
    DirichletPartitioner,
    IidPartitioner,
    NaturalIdPartitioner,
    Partitioner,
    PathologicalPartitioner,
)
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from transformers import PreTrainedTokenizerFast

from pl_fed.datamodules import SplitConfig, TextClassificationData
from pl_fed.errors import FederatedConfigError


class Classifier(LightningModule):
    """A bag of words; its embeddings and classes can be made too few."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, num_embeddings: int = 999, num_labels: int = 2) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.model = torch.nn.EmbeddingBag(num_embeddings, num_labels)
        self.model.get_input_embeddings = lambda: self.model  # type: ignore[assignment]
        self.model.config = type("Config", (), {"num_labels": num_labels})()  # type: ignore[assignment]
        self.losses: list[float] = []

    def training_step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self.model(batch["input_ids"]), batch["labels"])

    def validation_step(self, batch: dict[str, torch.Tensor]) -> None:
        self.losses.append(self.training_step(batch).item())

    def test_step(self, batch: dict[str, torch.Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self.training_step(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1.0)


def trainer(folder: Path) -> Trainer:
    return Trainer(
        max_epochs=3,
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def test_plain_trainer(make_text: Any, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """Without a strategy this is centralised training, with the module's tokenizer."""
    module, data = Classifier(tokenizer), make_text({"personalised": True}, tokenizer=None)
    runner = trainer(tmp_path)
    runner.fit(module, datamodule=data)
    assert runner.global_step == 3 * 12
    assert len(module.losses) == 3 and module.losses[0] != module.losses[-1]
    runner.test(module, datamodule=data)
    assert data._fitted is tokenizer


@pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")
def test_plain_trainer_without_held_out_data(
    make_text: Any, tmp_path: Path, tokenizer: Any, write_rows: Any, text_row: Any
) -> None:
    data = make_text(tokenizer=None, splits=SplitConfig(validation_fraction=0.0))
    data.dataset = str(write_rows("alone.jsonl", [text_row(i) for i in range(12)]))
    runner = trainer(tmp_path)
    runner.fit(Classifier(tokenizer), datamodule=data)
    assert runner.global_step > 0 and data.val_dataloader() == []


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_embeddings": 5}, "at most the model's 5 embeddings but got one of"),
        ({"num_labels": 1}, "a model of at least 2 labels for '.*' but it has 1"),
    ],
)
def test_model_too_small(sizes: dict[str, int], message: str, make_text: Any, tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(FederatedConfigError, match=message):
        trainer(tmp_path).fit(Classifier(tokenizer, **sizes), datamodule=make_text(tokenizer=None))


def test_model_that_comes_after_setup(make_text: Any, tokenizer: Any) -> None:
    data = make_text()
    data.setup()
    data.trainer = type("FakeTrainer", (), {"lightning_module": Classifier(tokenizer, num_embeddings=5)})()
    with pytest.raises(FederatedConfigError, match="at most the model's 5 embeddings"):
        data.train_dataloader()


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (DirichletPartitioner, {"num_partitions": 2, "partition_by": "label", "alpha": 0.5}),
        (
            DirichletPartitioner,
            {"num_partitions": 2, "partition_by": "label", "alpha": [5.0, 9.0], "min_partition_size": 1},
        ),
        (PathologicalPartitioner, {"num_partitions": 2, "partition_by": "label", "num_classes_per_partition": 1}),
        (NaturalIdPartitioner, {"partition_by": "user"}),
        (IidPartitioner, {"num_partitions": 2}),
    ],
)
def test_command_line(
    kind: type[Partitioner], arguments: dict[str, Any], make_text: Any, tokenizer_folder: str
) -> None:
    """A YAML config gives the same data as Python, and survives being written and read."""
    python = make_text(partitioner=kind(**arguments))
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    init = {
        "dataset": python.dataset,
        "columns": {"text": "text"},
        "partitioner": {"class_path": f"flwr_datasets.partitioner.{kind.__name__}", "init_args": arguments},
        "tokenizer": tokenizer_folder,
        "loading": {"cache_dir": python.loading.cache_dir},
        "splits": {"seed": 0},
    }
    config = parser.parse_object(
        {"data": {"class_path": "pl_fed.datamodules.TextClassificationData", "init_args": init}}
    )
    again = parser.parse_string(parser.dump(config))
    data = getattr(parser, "instantiate", parser.instantiate_classes)(again).data
    assert isinstance(data, TextClassificationData)
    assert (data.splits, data.loading, data.columns) == (python.splits, python.loading, python.columns)
    data.setup()
    python.setup()
    assert data.partition == python.partition
