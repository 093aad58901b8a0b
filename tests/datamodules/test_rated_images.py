"""`RatedImages` from files to batches, and how it is split."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from flwr_datasets.partitioner import IidPartitioner, NaturalIdPartitioner, PathologicalPartitioner
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from transformers import AutoTokenizer

from pl_fed.datamodules import ImageTransform, RatedImages, RatedSource, SplitConfig, decoding, rated_checks
from pl_fed.datamodules.config import LoadingConfig
from pl_fed.datamodules.rated_splits import split_of
from pl_fed.errors import FederatedConfigError
from pl_fed.loaders import RoundLoader
from tests.helpers.rated import NO_SPLITS, levels, picture, rated_data, write_rated


def names(indices: list[int], data: RatedImages) -> set[str]:
    return {data._examples.rated[i].file_name for i in indices}


def test_batches(tmp_path: Path, tokenizer_folder: str) -> None:
    """Scores are the means of Ann's and Bob's; pixels, texts and tokens are those of the image named."""
    folder = write_rated(tmp_path / "data", range(20))
    texts = dict.fromkeys(("cot", "naive"), str(folder / "texts.jsonl"))
    one = {"partitioner": IidPartitioner(1), "splits": NO_SPLITS}
    data = rated_data(folder, {"texts": texts}, tokenizer=tokenizer_folder, max_length=3, **one)
    tokenizer, seen = AutoTokenizer.from_pretrained(tokenizer_folder), []
    for batch in data.train_dataloader():
        size = len(batch["file_names"])
        assert batch["targets"].shape == (size, 2) and batch["targets"].dtype == torch.float32
        assert batch["ratings"].shape == (size, 2, 2) and batch["images"].shape == (size, 3, 6, 6)
        assert batch["client_id"].tolist() == [0] * size
        for row, name in enumerate(batch["file_names"]):
            i = int(name.removesuffix(".png"))
            seen.append(i)
            ann = [(level - 1) / 4 for level in levels(i)]
            bob = [max(0.0, score - 0.25) for score in ann]
            assert batch["ratings"][row].tolist() == [ann, bob]
            assert batch["targets"][row].tolist() == [(a + b) / 2 for a, b in zip(ann, bob, strict=True)]
            assert batch["cot_text"][row] == " ".join([f"w{i}", *["a"] * (i % 7)])
            for kind, prefix in (("cot", ""), ("naive", "naive_")):
                ids = batch[f"{prefix}input_ids"][row][batch[f"{prefix}attention_mask"][row].bool()]
                assert ids.tolist() == tokenizer(batch[f"{kind}_text"][row])["input_ids"][:3]
    assert sorted(seen) == list(range(20)) and data.raters == ("Ann", "Bob")
    example = data._examples[3]
    if picture(int(example["file_name"].removesuffix(".png"))).shape[0] == 6:
        assert example["image"][0, 0, 0] < 100  # the number, whatever resizing made of it


def test_without_images_or_tokenizer(tmp_path: Path) -> None:
    """Texts alone, whole; and images alone."""
    folder = write_rated(tmp_path / "data", range(12))
    data = rated_data(folder, {"texts": {"cot": str(folder / "texts.jsonl")}}, transform=None, splits=NO_SPLITS)
    batch = next(iter(data.train_dataloader()))
    assert set(batch) == {"targets", "ratings", "client_id", "file_names", "cot_text"}
    images = next(iter(rated_data(folder, splits=NO_SPLITS).train_dataloader()))
    assert set(images) == {"targets", "ratings", "client_id", "file_names", "images"}


def test_the_tokenizer_of_the_module(tmp_path: Path, tokenizer_folder: str) -> None:
    """Tokens come as soon as there is a module with a tokenizer; one too large for the model is refused."""
    folder = write_rated(tmp_path / "data", range(12))
    data = rated_data(folder, {"texts": {"cot": str(folder / "texts.jsonl")}}, transform=None, splits=NO_SPLITS)
    module = SimpleNamespace(tokenizer=AutoTokenizer.from_pretrained(tokenizer_folder))
    data.trainer = SimpleNamespace(lightning_module=module)  # type: ignore[assignment]
    data.setup()
    assert "input_ids" in next(iter(data.train_dataloader()))
    module.model = SimpleNamespace(get_input_embeddings=lambda: SimpleNamespace(num_embeddings=5))
    with pytest.raises(FederatedConfigError, match="a tokenizer of at most the model's 5 embeddings but got one of"):
        data.train_dataloader()


def test_like_lengths_go_together(tmp_path: Path, tokenizer_folder: str) -> None:
    folder = write_rated(tmp_path / "data", range(40))
    source = {"texts": {"cot": str(folder / "texts.jsonl")}}
    options = {"tokenizer": tokenizer_folder, "transform": None, "splits": SplitConfig(test_fraction=0.5)}
    data = rated_data(folder, source, partitioner=IidPartitioner(1), **options)
    lengths = [len(text.split()) for batch in data.predict_dataloader() for text in batch["cot_text"]]
    (loader,) = data.test_dataloader()
    grouped = [len(text.split()) for batch in loader for text in batch["cot_text"]]
    assert grouped == sorted(lengths, reverse=True) != lengths


# Clients.


def test_clients_by_site(tmp_path: Path) -> None:
    folder = write_rated(tmp_path / "data", range(24))
    for options in ({"source": {"group_by": "site"}}, {"partitioner": NaturalIdPartitioner("site")}):
        data = rated_data(folder, splits=NO_SPLITS, **options)
        assert sorted(data.client_names) == ["north", "south"]
        for name, shard in zip(data.client_names, data.partition.shards, strict=True):
            assert {int(file.split(".")[0]) % 2 for file in names(shard, data)} == {int(name == "south")}
    assert [row["num_train"] for row in data.partition_table()] == [12, 12]


def test_raters_of_one_image_at_two_sites(tmp_path: Path) -> None:
    """The image comes once for each site, with that site's scores, and in the same split at both."""
    folder = write_rated(tmp_path / "data", range(40), both_sites=True)
    data = rated_data(folder, {"group_by": "site"}, splits=SplitConfig(validation_fraction=0.2, test_fraction=0.2))
    assert len(data._examples) == 80 and data.num_clients == 2
    for split in ("train", "validation", "test"):
        north, south = (names(shard, data) for shard in getattr(data.partition, split))
        assert north == south and north
    for example in (data._examples[i] for i in range(80)):
        site = data.client_names[example["client_id"]]
        less = 0.25 * (site == "south")
        ann = [(level - 1) / 4 for level in levels(int(example["file_name"].split(".")[0]))]
        assert example["targets"].tolist() == [max(0.0, score - less) for score in ann]
        assert np.isnan(example["ratings"][int(site == "north")]).all()


def test_any_partitioner(tmp_path: Path) -> None:
    partitioner = PathologicalPartitioner(2, "semantic_level", 2, class_assignment_mode="first-deterministic")
    data = rated_data(write_rated(tmp_path / "data", range(50)), partitioner=partitioner, splits=NO_SPLITS)
    assert data.num_clients == 2
    for shard in data.partition.shards:  # levels of the mean, which is half a level below Ann's
        assert len({round(1 + 4 * float(data._examples.rated[i].scores[1])) for i in shard}) <= 2


# Splits.


def split_names(data: RatedImages) -> dict[str, str]:
    found = {data._examples.rated[i].file_name: "public" for i in data.partition.public}
    for split in ("train", "validation", "test"):
        found |= {name: split for shard in getattr(data.partition, split) for name in names(shard, data)}
    return found


def test_splits_stay_when_images_are_added(tmp_path: Path) -> None:
    splits = SplitConfig(validation_fraction=0.2, test_fraction=0.3, public_fraction=0.1, seed=4)
    options: dict[str, Any] = {"splits": splits, "transform": None}
    few = rated_data(write_rated(tmp_path / "few", range(60)), partitioner=IidPartitioner(2), **options)
    more = rated_data(write_rated(tmp_path / "more", range(90)), partitioner=IidPartitioner(4), **options)
    before, after = split_names(few), split_names(more)
    assert len(before) == 60 and {name: after[name] for name in before} == before
    assert set(before.values()) == {"train", "validation", "test", "public"}
    assert few.public_dataloader() is not None
    other = rated_data(tmp_path / "few", partitioner=IidPartitioner(2), splits=SplitConfig(0.2, 0.3, 0.1, seed=5))
    assert split_names(other) != before


def test_splits_have_their_shares() -> None:
    """Of 20,000 contents; a binomial's standard deviation is below 0.004 of them."""
    config = SplitConfig(validation_fraction=0.1, test_fraction=0.25, public_fraction=0.2)
    found = [split_of(f"{i:x}", config) for i in range(20000)]
    shares = {split: found.count(split) / 20000 for split in set(found)}
    private = {"validation": 0.1 * 0.8, "test": 0.25 * 0.8, "train": 0.65 * 0.8}
    assert shares == pytest.approx({"public": 0.2, **private}, abs=0.015)


def test_copies_go_together(tmp_path: Path) -> None:
    """The same picture under other names and with other metadata."""
    folder = write_rated(tmp_path / "data", range(30))
    info = PngInfo()
    info.add_text("Title", "another name")
    for i in range(6, 30):
        Image.fromarray(picture(i % 6)).save(folder / "images" / f"{i}.png", pnginfo=info)
    splits = SplitConfig(validation_fraction=0.3, test_fraction=0.3, seed=1)
    data = rated_data(folder, partitioner=IidPartitioner(1), splits=splits)
    found = split_names(data)
    assert all(len({found[f"{i}.png"] for i in range(k, 30, 6)}) == 1 for k in range(6))
    assert len(set(data._contents)) == 6 and len(set(found.values())) > 1


def test_everything_is_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_rated(tmp_path / "data", range(10))
    first = rated_data(folder, splits=NO_SPLITS)
    monkeypatch.setattr(rated_checks, "_check", lambda *_: pytest.fail("checked again"))
    monkeypatch.setattr(decoding, "_decode", lambda *_: pytest.fail("decoded again"))
    again = rated_data(folder, splits=NO_SPLITS)
    assert split_names(again) == split_names(first)
    again.setup("test")  # has nothing to do


def test_augmentation(tmp_path: Path) -> None:
    """In training alone: mirrored pictures begin with the last column of half of them."""
    folder = write_rated(tmp_path / "data", range(30))
    transform = ImageTransform(size=6, channels=3, flip=True)
    splits = SplitConfig(validation_fraction=0.3, test_fraction=0.0)
    data = rated_data(folder, transform=transform, partitioner=IidPartitioner(1), splits=splits)
    examples = {example["file_name"]: example for example in (data._examples[i] for i in range(30))}
    for loader in (data.train_dataloader(), data.val_dataloader()):
        mirrored = []
        for batch in loader:
            raw = torch.stack([torch.from_numpy(examples[name]["image"].copy()) for name in batch["file_names"]])
            plain = (raw / 255 - 0.5) / 0.5
            same, turned = (
                (batch["images"] - expected).abs().amax((1, 2, 3)) < 1e-6 for expected in (plain, plain.flip(3))
            )
            assert (same | turned).all()
            mirrored += (~same).tolist()
        assert any(mirrored) == isinstance(loader, RoundLoader), "only in training"


def test_limits(tmp_path: Path, tokenizer_folder: str) -> None:
    """Fewer images keep their own scores and texts."""
    folder = write_rated(tmp_path / "data", range(30))
    splits = SplitConfig(validation_fraction=0.0, test_fraction=0.0, limit_train=9)
    source = {"texts": {"cot": str(folder / "texts.jsonl")}}
    data = rated_data(folder, source, tokenizer=tokenizer_folder, splits=splits, partitioner=IidPartitioner(1))
    assert len(data._examples) == 9
    for i in range(9):
        example = data._examples[i]
        assert example["texts"]["cot"].startswith(f"w{example['file_name'].removesuffix('.png')}")


# What is refused.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 0}, "`max_length` to be at least 1 but got 0"),
        ({"batch_size": 0}, "`batch_size` to be at least 1 but got 0"),
        ({"loading": LoadingConfig(generation=True)}, "`loading.generation` to be false for scores but got true"),
    ],
)
def test_refused_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(FederatedConfigError, match=message):
        RatedImages(RatedSource("ratings.csv", "images"), **options)


def test_refused_splits(tmp_path: Path) -> None:
    folder = write_rated(tmp_path / "data", range(12))
    with pytest.raises(FederatedConfigError, match="`splits.public_fraction` for rated images but got `split"):
        rated_data(folder, splits=SplitConfig(public_examples=3))
    splits = SplitConfig(validation_fraction=0.0, test_fraction=0.9)
    with pytest.raises(FederatedConfigError, match=r"every client to have images to train on but 'client .' has none"):
        rated_data(folder, splits=splits, partitioner=IidPartitioner(6))
