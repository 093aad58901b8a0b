"""`ImageData` from file to batch, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr_datasets.partitioner import DirichletPartitioner, IidPartitioner, PathologicalPartitioner
from PIL import Image
from sklearn.datasets import load_digits

from pl_fed.datamodules import ImageColumns, ImageTransform, SplitConfig
from pl_fed.errors import FederatedConfigError
from pl_fed.loaders import ClientLoader
from pl_fed.modules import ImageClassifier, NetworkSettings
from tests.helpers.images import Build, numbers, pixels, ready

# From file to batch.


def test_folder(build_images: Build, image_folder: Path) -> None:
    """Every image comes once, with its class and client, as (pixel / 255 - 0.5) / 0.5."""
    data = ready(build_images(image_folder))
    assert (data.label_names, data.num_labels) == (["cat", "dog"], 2)
    assert (data.num_channels, data.image_size, data.num_clients) == (1, (6, 5), 3)
    shards = data.partition
    assert sorted(numbers(data.train_dataloader())) == sorted(i for s in in_files(shards.train) for i in s)
    assert sorted(i for shard in in_files(shards.shards) for i in shard) == list(range(30))
    for batch in data.train_dataloader():
        assert batch["images"].dtype == torch.float32 and batch["images"].shape[1:] == (1, 6, 5)
        for image, label, client in zip(batch["images"], batch["labels"], batch["client_id"], strict=True):
            i = round(float(image[0, 0, 0] * 0.5 + 0.5) * 255)
            assert int(label) == i % 2 and i in in_files(shards.train)[int(client)]
            torch.testing.assert_close(image[0], (torch.from_numpy(pixels(i)) / 255 - 0.5) / 0.5)


def in_files(shards: list[list[int]]) -> list[list[int]]:
    """Rows 0 to 14 are the cats, which are the even files."""
    return [[2 * i if i < 15 else 2 * (i - 15) + 1 for i in shard] for shard in shards]


def test_loaders(build_images: Build, image_folder: Path) -> None:
    """The clients' validation and test images, those again personalised, and the server's own."""
    splits = SplitConfig(public_examples=3, validation_fraction=0.2, test_fraction=0.2)
    data = ready(build_images(image_folder, {"personalised": True}, splits=splits))
    held_out = {k: {i for s in in_files(getattr(data.partition, k)) for i in s} for k in ("validation", "test")}
    assert set(numbers(data.val_dataloader())) == held_out["validation"]
    loaders = data.test_dataloader()
    for loader, personalised in zip(loaders, (False, True), strict=True):
        assert isinstance(loader, ClientLoader) and loader.personalised is personalised
        assert set(numbers(loader)) == held_out["test"]
    public = data.public_dataloader()
    assert public is not None
    assert sorted(numbers(public)) == sorted(in_files([data.partition.public])[0])
    assert {int(i) for batch in public for i in batch["client_id"]} == {-1}


def test_own_splits(build_images: Build, tmp_path: Path) -> None:
    """Folders train, val and test; a class that only the test has is a class."""
    for split, start, stop in (("train", 0, 12), ("val", 12, 16), ("test", 16, 22)):
        for i in range(start, stop):
            place = tmp_path / "data" / split / ("b" if i % 2 else "z" if i > 20 else "a")
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels(i)).save(place / f"{i:02}.png")
    Image.fromarray(pixels(20)).save(tmp_path / "data" / "test" / "a" / "20.png")
    (tmp_path / "data" / "test" / "z").mkdir()
    Image.fromarray(pixels(30)).save(tmp_path / "data" / "test" / "z" / "30.jpeg", quality=100)
    data = ready(build_images(tmp_path / "data", splits=SplitConfig(validation_fraction=0.0, test_fraction=0.0)))
    assert data.label_names == ["a", "b", "z"]
    assert sorted(numbers(data.val_dataloader())) == [12, 13, 14, 15]
    assert sorted(numbers(data.test_dataloader()[0]))[:6] == [16, 17, 18, 19, 20, 21]
    assert len(numbers(data.predict_dataloader())) == 7
    limits = SplitConfig(test_fraction=0.0, limit_train=9, limit_test=2)
    limited = ready(build_images(tmp_path / "data", splits=limits))
    assert sum(map(len, limited.partition.shards)) == 9 and len(numbers(limited.test_dataloader()[0])) == 2


def test_an_unknown_name_lists_the_digits_too(build_images: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pl_fed.assets.hub_reachable", lambda: False)
    with pytest.raises(FederatedConfigError, match="but got 'digit': .* packaged are only .*fashion-mnist.*, digits"):
        build_images("digit").setup()


def test_digits_are_those_of_sklearn(build_images: Build) -> None:
    data = ready(build_images("digits", splits=SplitConfig(validation_fraction=0.0, test_fraction=0.0), batch_size=600))
    assert (data.num_channels, data.image_size, data.label_names) == (1, (8, 8), [str(i) for i in range(10)])
    found = load_digits()
    examples = data.train_dataloader().dataset
    assert len(examples) == 1797  # type: ignore[arg-type]
    for i in (0, 700, 1796):
        assert examples[i]["label"] == found.target[i]
        np.testing.assert_array_equal(examples[i]["image"][0], np.rint(found.images[i] * 255 / 16))


def test_partition(build_images: Build, tmp_path: Path) -> None:
    """Any partitioner over the classes, with the table and the picture."""
    partitioner = DirichletPartitioner(num_partitions=5, partition_by="label", alpha=0.5, min_partition_size=10)
    data = ready(build_images("digits", partitioner=partitioner))
    rows = data.partition_table()
    sizes = [int(row[k]) for row in rows for k in ("num_train", "num_validation", "num_test")]
    assert len(rows) == 5 and sum(sizes) == 1797
    assert [sum(int(row[f"num {i}"]) for row in rows) for i in range(10)] == np.bincount(load_digits().target).tolist()
    data.plot_partition(tmp_path / "partition.png")
    assert (tmp_path / "partition.png").stat().st_size > 1000
    two = PathologicalPartitioner(10, "label", 2, class_assignment_mode="first-deterministic")
    assert {
        sum(bool(row[f"num {i}"]) for i in range(10))
        for row in ready(build_images("digits", partitioner=two)).partition_table()
    } == {2}


def test_normalisation(build_images: Build, image_folder: Path) -> None:
    data = ready(build_images(image_folder, transform=ImageTransform(channels=3, mean=[0.1, 0.2, 0.3], std=0.25)))
    batch = next(iter(data.val_dataloader()))  # type: ignore[arg-type]
    i = int(data.partition.validation[0][0])
    raw = torch.from_numpy(data._examples[i]["image"].copy()) / 255
    torch.testing.assert_close(batch["images"][0], (raw - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / 0.25)


# What is refused.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 0}, "`transform.size` to be at least 1 but got 0"),
        ({"crop_padding": -1}, "`transform.crop_padding` >= 0 but got -1"),
        ({"std": 0.0}, "`transform.std` above 0 but got 0.0"),
        ({"std": [0.1, 0.0]}, "`transform.std` above 0 but got"),
    ],
)
def test_bad_transforms(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FederatedConfigError, match=message):
        ImageTransform(**changes)


def test_impossible_setups(
    build_images: Build, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        (
            {"transform": ImageTransform(mean=[0.1, 0.2])},
            "`transform.mean` to be one number or 1, one for each ch",
        ),
        ({"columns": ImageColumns(label="kind")}, "column 'kind' in the train split of .* but it has image, label"),
        ({"partitioner": IidPartitioner(31)}, "as many clients as the 30 examples that are left to them but got 31"),
    ]
    for changes, message in cases:
        with pytest.raises(FederatedConfigError, match=message):
            build_images(image_folder, **changes).setup()
    (tmp_path / "nothing").mkdir()
    with pytest.raises(FederatedConfigError, match="a folder of images for each class but .*nothing has none: put fil"):
        build_images(tmp_path / "nothing").setup()
    with pytest.raises(FederatedConfigError, match="`loading.generation` to be false for classification"):
        build_images(image_folder, {"generation": True})
    with pytest.raises(FederatedConfigError, match="`batch_size` to be at least 1 but got 0"):
        build_images(image_folder, batch_size=0)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FederatedConfigError, match="scikit-learn to be installed for `dataset`='digits' but it is not"):
        build_images("digits").setup()


@pytest.mark.parametrize(
    ("settings", "num_labels", "message"),
    [
        (NetworkSettings(), 1 + 1, None),
        (NetworkSettings(in_channels=3), 2, "`network.in_channels` of 1 for '.*' but it has 3: set its"),
        (NetworkSettings(), 5, None),
    ],
)
def test_model_and_data_must_fit(
    settings: NetworkSettings, num_labels: int, message: str | None, build_images: Build, image_folder: Path
) -> None:
    data = ready(build_images(image_folder))
    module = ImageClassifier("small_cnn", settings, num_labels=num_labels)
    data.trainer = type("FakeTrainer", (), {"lightning_module": module})()
    if message is None:
        data.train_dataloader()
        return
    with pytest.raises(FederatedConfigError, match=message):
        data.train_dataloader()


def test_model_of_too_few_classes(build_images: Build) -> None:
    data = ready(build_images("digits"))
    data.trainer = type("FakeTrainer", (), {"lightning_module": ImageClassifier("small_cnn", num_labels=4)})()
    with pytest.raises(FederatedConfigError, match="with `num_labels` of 10 for 'digits' but it has 4: set its"):
        data.val_dataloader()
