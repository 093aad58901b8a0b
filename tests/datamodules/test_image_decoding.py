"""Images as they come: stored in any way, decoded once, kept, and named where they cannot be read."""

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from flwr_datasets.partitioner import IidPartitioner
from PIL import Image

from pl_fed.datamodules import ImageColumns, ImageTransform, SplitConfig, decoding
from pl_fed.datamodules import image_sources as sources
from pl_fed.errors import FederatedConfigError
from tests.helpers.images import Build, pixels, ready


def table(images: list[Any], feature: Any, folder: Path) -> Path:
    """Save a data set of the hub's kind, with the columns that CIFAR-10 has."""
    features = datasets.Features({"img": feature, "fine": datasets.Value("string")})
    rows = datasets.Dataset.from_dict({"img": images, "fine": ["ab"[i % 2] for i in range(len(images))]}, features)
    datasets.DatasetDict({"train": rows}).save_to_disk(folder)
    return folder


def encoded(array: np.ndarray) -> dict[str, Any]:
    sink = io.BytesIO()
    Image.fromarray(array).save(sink, "PNG")
    return {"bytes": sink.getvalue(), "path": None}


@pytest.mark.parametrize("kind", ["encoded", "Array3D", "lists"])
def test_tables_of_images(kind: str, build_images: Build, tmp_path: Path) -> None:
    """Images as a hub set stores them: as files in a column, or as numbers."""
    arrays = [pixels(i, channels=3) for i in range(9)]
    feature = {"encoded": datasets.Image(), "Array3D": datasets.Array3D((6, 5, 3), "uint8")}.get(kind)
    feature = feature or datasets.List(datasets.List(datasets.List(datasets.Value("uint8"))))
    images = [encoded(a) if kind == "encoded" else a.tolist() for a in arrays]
    path = table(images, feature, tmp_path / "saved")
    data = ready(build_images(path, columns=ImageColumns("img", "fine"), splits=SplitConfig(test_fraction=0.0)))
    assert (data.num_channels, data.label_names) == (3, ["a", "b"])
    examples = data.train_dataloader().dataset
    for i, array in enumerate(arrays):
        np.testing.assert_array_equal(examples[i]["image"], array.transpose(2, 0, 1))


def test_grey_rgb_and_size(build_images: Build, tmp_path: Path) -> None:
    """Colours become ITU-R 601 grey, grey becomes three equal channels, and sizes become one."""
    for name, array in (("a/0.png", pixels(0, channels=3)), ("a/1.png", pixels(1, 9, 9)), ("b/2.png", pixels(2, 4, 4))):
        (tmp_path / "mixed" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(tmp_path / "mixed" / name)
    Image.fromarray(pixels(3, channels=3)).convert("P").save(tmp_path / "mixed" / "b" / "3.gif")
    options: dict[str, Any] = {"partitioner": IidPartitioner(1), "splits": SplitConfig(0.0, 0.0)}
    grey = ready(build_images(tmp_path / "mixed", transform=ImageTransform(size=6, channels=1), **options))
    colour = ready(build_images(tmp_path / "mixed", transform=ImageTransform(size=6), **options))
    assert (grey.num_channels, colour.num_channels) == (1, 3)  # the first image has colours
    first, rgb = grey._examples[0]["image"], pixels(0, channels=3).astype(np.int64)
    resized = Image.fromarray(np.rint(rgb @ [0.299, 0.587, 0.114]).astype(np.uint8)).resize((6, 6), 2)
    assert np.abs(first[0].astype(int) - np.asarray(resized).astype(int)).max() <= 1
    red, green, blue = colour._examples[1]["image"]
    np.testing.assert_array_equal(red, green)
    np.testing.assert_array_equal(red, np.asarray(Image.fromarray(pixels(1, 9, 9)).resize((6, 6), 2)))
    assert blue.shape == (6, 6)
    with pytest.raises(FederatedConfigError, match=r"images of 6 x 5, as the first is, but .*1.png is 9 x 9: set `tr"):
        build_images(tmp_path / "mixed", **options).setup()


def test_rotated_photographs_stand_upright(build_images: Build, tmp_path: Path) -> None:
    (tmp_path / "photos" / "a").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned to the right
    for i in range(2):
        Image.fromarray(pixels(i)).save(tmp_path / "photos" / "a" / f"{i}.png", exif=exif)
    data = ready(build_images(tmp_path / "photos", partitioner=IidPartitioner(1), splits=SplitConfig(0.0, 0.0)))
    assert data.image_size == (5, 6)
    np.testing.assert_array_equal(data._examples[0]["image"][0], np.rot90(pixels(0), -1))


# The cache.


def test_decoded_once(build_images: Build, image_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Another partition of the same images reads them from the memory map; another size is another file."""
    ready(build_images(image_folder))
    original = decoding._decode
    monkeypatch.setattr(decoding, "_decode", lambda *_: pytest.fail("decoded again"))
    data = ready(build_images(image_folder, partitioner=IidPartitioner(5), splits=SplitConfig(seed=3)))
    assert isinstance(data._examples.images._files[0], np.memmap)  # type: ignore[attr-defined]
    monkeypatch.setattr(sources, "load_image_splits", lambda *_: pytest.fail("loaded again"))
    data.setup("test")
    monkeypatch.undo()
    ready(build_images(image_folder, transform=ImageTransform(size=4)))
    Image.fromarray(pixels(60)).save(image_folder / "cat" / "00.png")
    changed = ready(build_images(image_folder))
    assert changed._examples[0]["image"][0, 0, 0] == 60
    files = [path for path in (tmp_path / "cache").iterdir() if path.suffix == ".npy"]
    assert len(files) == 3 and original is decoding._decode
    assert not list((tmp_path / "cache").glob("*.partial"))


def test_damaged_cache_is_made_again(build_images: Build, image_folder: Path, tmp_path: Path) -> None:
    ready(build_images(image_folder))
    (file,) = (tmp_path / "cache").glob("*.npy")
    whole = file.read_bytes()
    for damage in (b"", whole[:200], whole[:-7], b"\x93NUMPY nonsense"):
        file.write_bytes(damage)
        data = ready(build_images(image_folder))
        assert file.read_bytes() == whole and len(data._examples) == 30  # type: ignore[arg-type]


# Bad images.


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "sixteen bits"])
def test_bad_images_are_named(damage: str, build_images: Build, image_folder: Path, tmp_path: Path) -> None:
    bad = image_folder / "dog" / "17.png"
    if damage == "sixteen bits":
        Image.fromarray(np.full((6, 5), 300, np.uint16)).save(bad)
    else:
        bad.write_bytes({"empty": b"", "text": b"hello", "cut": bad.read_bytes()[:50]}[damage])
    with pytest.raises(FederatedConfigError, match=r"an image of 8 bits a channel in .*/dog/17.png but got: .*Replace"):
        build_images(image_folder).setup()
    assert not list((tmp_path / "cache").glob("*.npy")) and not list((tmp_path / "cache").glob("*.partial"))
    bad.unlink()
    assert len(ready(build_images(image_folder))._examples) == 29  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("images", "feature", "message"),
    [
        ([encoded(pixels(0)), None] * 3, datasets.Image(), "row 1 of column 'img' but got: nothing"),
        ([{"bytes": b"x", "path": None}] * 3, datasets.Image(), "row 0 of column 'img' but got: cannot identify"),
        (
            [[[0, 400]]] * 3,
            datasets.List(datasets.List(datasets.Value("int32"))),
            "row 0 .* numbers from 0 to 400",
        ),
        ([[0, 1]] * 3, datasets.List(datasets.Value("uint8")), r"values of type int64 and shape \(2,\)"),
        (["a.png"] * 3, datasets.Value("string"), "row 0 of column 'img' but got: values of type <U5"),
    ],
)
def test_bad_columns_are_named(
    images: list[Any], feature: Any, message: str, build_images: Build, tmp_path: Path
) -> None:
    path = table(images, feature, tmp_path / "saved")
    with pytest.raises(FederatedConfigError, match=message):
        build_images(path, columns=ImageColumns("img", "fine"), partitioner=IidPartitioner(1)).setup()
