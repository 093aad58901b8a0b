"""`RatedImages` on synthetic scenes: in a federated run, under a plain Trainer, and from a command line."""

from pathlib import Path
from typing import Any

import jsonargparse
import lightning.pytorch as pl
import pytest
import torch
from flwr_datasets.partitioner import IidPartitioner, NaturalIdPartitioner
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from pl_fed.datamodules import ImageTransform, LoadingConfig, RatedImages, RatedSource, SplitConfig
from pl_fed.isa.scenes.folder import SceneConfig, write_scenes
from pl_fed.metrics import Spearman, rmse
from pl_fed.rounds import CohortConfig, LocalTraining
from pl_fed.rules import FedIT
from pl_fed.strategy import FederatedStrategy
from tests.helpers.tiny import adapter_tensors, make_trainer

KINDS = ("naive", "cot")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("made") / "scenes", SceneConfig(num_images=75, size=32))


def rated(scenes: Path, folder: Path, **changes: Any) -> RatedImages:
    texts = dict.fromkeys(KINDS, str(scenes / "texts.jsonl"))
    source = RatedSource(str(scenes / "ratings.csv"), str(scenes / "images"), texts, group_by="site")
    options: dict[str, Any] = {"transform": ImageTransform(size=8, channels=3), "splits": SplitConfig(0.2, 0.2)}
    return RatedImages(source, **options | {"loading": LoadingConfig(cache_dir=str(folder))} | changes)


class Scorer(pl.LightningModule):
    """Scores from colours and the number of clues in the text."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(3 + 1, 16), nn.Tanh(), nn.Linear(16, 2))
        self.model = get_peft_model(network, LoraConfig(r=4, target_modules=["0", "2"]))
        self.strict_loading = False
        self.spearman, self.names = Spearman(), set[str]()

    def forward(self, batch: dict[str, Any]) -> Tensor:
        lines = [[line for line in text.splitlines() if line[:1].isdigit()] for text in batch["cot_text"]]
        counts = torch.tensor([[len(clues) / 10] for clues in lines])
        scores: Tensor = self.model(torch.cat([batch["images"].mean((2, 3)), counts], 1))  # (batch, 2)
        return scores

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.names |= set(batch["file_names"])
        return (self(batch) - batch["targets"]).square().mean()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.log("val/rmse", rmse(self(batch)[:, 1], batch["targets"][:, 1]), batch_size=len(batch["targets"]))

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.spearman.update(self(batch)[:, 1], batch["targets"][:, 1])
        self.log("test/srcc", self.spearman, on_epoch=True, on_step=False, batch_size=len(batch["targets"]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=0.01)


def test_federated(scenes: Path, tmp_path: Path) -> None:
    """Three sites train a scorer; the number of clues says much of the story."""
    data, scorer = rated(scenes, tmp_path), Scorer()
    before = adapter_tensors(scorer)
    strategy = FederatedStrategy(FedIT(), cohort=CohortConfig(), local=LocalTraining(epochs=5))
    trainer = make_trainer(strategy, max_epochs=3)
    trainer.fit(scorer, datamodule=data)
    after = adapter_tensors(scorer)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    expected = {data._examples.rated[i].file_name for shard in data.partition.train for i in shard}
    assert scorer.names == expected and len(expected) > 30
    (figures,) = trainer.test(scorer, datamodule=data, verbose=False)
    assert figures["test/srcc"] > 0.6


def test_plain_trainer(scenes: Path, tmp_path: Path) -> None:
    data = rated(scenes, tmp_path, partitioner=IidPartitioner(2))
    make_trainer("auto", max_epochs=1).fit(Scorer(), datamodule=data)
    assert data.num_clients == 2


def test_command_line(scenes: Path, tmp_path: Path) -> None:
    """Everything can be set from YAML and single options."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(pl.LightningDataModule, "data")
    partitioner = {
        "class_path": "flwr_datasets.partitioner.NaturalIdPartitioner",
        "init_args": {"partition_by": "site"},
    }
    arguments = [
        "--data=pl_fed.datamodules.RatedImages",
        f"--data.source.ratings={scenes / 'ratings.csv'}",
        f"--data.source.images={scenes / 'images'}",
        f"--data.source.texts={{cot: {scenes / 'texts.jsonl'}}}",
        "--data.transform=null",
        f"--data.partitioner={partitioner}",
        f"--data.loading.cache_dir={tmp_path}",
    ]
    data = parser.instantiate(parser.parse_args(arguments)).data
    assert isinstance(data, RatedImages) and isinstance(data.partitioner, NaturalIdPartitioner)
    data.setup()
    assert data.num_clients == 3 and data.transform is None
