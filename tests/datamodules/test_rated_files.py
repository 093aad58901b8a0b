"""Odd image files and texts beside ratings: each is used as it should be, or left out with a reason."""

import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr_datasets.partitioner import IidPartitioner
from PIL import Image

from pl_fed.datamodules import RatedSource
from pl_fed.datamodules.rated_checks import CheckedImage, check_images
from pl_fed.datamodules.rated_source import read_texts
from pl_fed.errors import FederatedConfigError
from pl_fed.isa.images import find_images, printable
from tests.helpers.rated import NO_SPLITS, rated_data, write_rated

ONE = {"partitioner": IidPartitioner(1), "splits": NO_SPLITS}


def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (40, 30, 3)).astype(np.uint8)


def odd_files(folder: Path) -> dict[str, str]:
    """Write odd files, and return what is said of each."""
    image = Image.fromarray(photo())
    image.save(folder / "whole.jpg")
    data = (folder / "whole.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(data[: len(data) // 2])
    (folder / "zero.png").write_bytes(b"")
    (folder / "text.png").write_text("no image at all")
    (folder / "folder.png").mkdir()
    image.save(folder / "moving.gif", save_all=True, append_images=[Image.fromarray(255 - photo())])
    Image.fromarray(photo()[:, :, 0].astype(np.uint16) * 256).save(folder / "deep.png")
    Image.fromarray(photo()[:, :, 0].astype(np.float32)).save(folder / "float.tif")
    Image.new("1", (1000, 1001)).save(folder / "large.png")
    Image.new("1", (8, 8)).save(folder / "bomb.png")
    png = (folder / "bomb.png").read_bytes()
    header = b"IHDR" + struct.pack(">II", 60000, 60000) + png[24:29]
    (folder / "bomb.png").write_bytes(png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:])
    return {
        "cut.jpg": "it cannot be read (image file is truncated",
        "zero.png": "the file is empty",
        "text.png": "it cannot be read (cannot identify image file",
        "folder.png": "there is no such file",
        "nowhere.png": "there is no such file",
        "../ratings.csv": "the name leads out of the folder",
        "a/../../ratings.csv": "the name leads out of the folder",
        "/ratings.csv": "the name leads out of the folder",
        "no\0name.png": "there is no such file",
        "long" * 100: "there is no such file",
        "moving.gif": "it has 2 frames or pages",
        "deep.png": "it has more than 8 bits a channel (mode I;16)",
        "float.tif": "it has more than 8 bits a channel (mode F)",
        "large.png": "it has 1.0 megapixels, more than 1",
        "bomb.png": "it cannot be read (Image size (3600000000 pixels) exceeds limit",
    }


def usable_files(folder: Path) -> list[str]:
    """Write files that look odd and can be used, and return their names."""
    before = {path.name for path in folder.iterdir()}
    image = Image.fromarray(photo())
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(folder / "upright.png")
    image.save(folder / "..dots.png")
    image.rotate(90, expand=True).save(folder / "turned.png", exif=exif)
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.convert("P").save(folder / "palette.gif")
    image.convert("RGBA").save(folder / "alpha.png")
    image.convert("L").save(folder / 'grey, é "quoted" 日本.bmp')
    (folder / "link.png").symlink_to(folder / "upright.png")
    image.save(folder / "two views.mpo", save_all=True, append_images=[image])
    return [path.name for path in sorted(folder.iterdir()) if path.name not in before]


def test_every_odd_file_has_its_reason(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    reasons, fine = odd_files(tmp_path / "images"), usable_files(tmp_path / "images")
    found = check_images(tmp_path / "images", [*reasons, *fine], 1.0, tmp_path / "cache")
    for name, reason in reasons.items():
        assert found[name].reason.startswith(reason) and not found[name].content, found[name]
    assert len(fine) == 9 and all(found[name].content and not found[name].reason for name in fine)
    assert found["turned.png"] == found["upright.png"] == found["alpha.png"]
    assert len({found[name].content for name in fine}) == 5  # and grey, CMYK, palette and JPEG differ
    assert check_images(tmp_path / "images", ["bomb.png"], 1e6, tmp_path / "cache")["bomb.png"].reason


def test_a_changed_file_is_checked_again(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"")
    empty = {"a.png": CheckedImage(reason="the file is empty")}
    assert check_images(folder, ["a.png"], 1.0, tmp_path / "cache") == empty
    Image.fromarray(photo()).save(folder / "a.png")
    assert check_images(folder, ["a.png"], 1.0, tmp_path / "cache")["a.png"].content
    (cached,) = (tmp_path / "cache").glob("*.json")
    for broken in ("{", "[]", '{"a": 3}'):
        cached.write_text(broken)
        assert check_images(folder, ["a.png"], 1.0, tmp_path / "cache")["a.png"].content


def test_skipped_images_are_reported(tmp_path: Path) -> None:
    """Training goes on with the others; without `skip` the first are named."""
    folder = write_rated(tmp_path / "data", range(12))
    (folder / "images" / "3.png").write_bytes(b"")
    (folder / "images" / "7.png").unlink()
    data = rated_data(folder, {"unusable": "skip"}, **ONE)
    assert len(data._examples) == 10
    data.write_left_out(tmp_path / "left_out.csv")
    lines = (tmp_path / "left_out.csv").read_text().splitlines()
    assert lines == ["file_name,reason", "3.png,the file is empty", "7.png,there is no such file"]
    names = [name for batch in data.train_dataloader() for name in batch["file_names"]]
    assert sorted(names) == sorted(f"{i}.png" for i in range(12) if i not in (3, 7))
    with pytest.raises(
        FederatedConfigError,
        match=r"got 2 that are not \('3.png': the file is empty; '7.png': there is no such file\): mend them, or",
    ):
        rated_data(folder, **ONE)


def test_nothing_usable(tmp_path: Path) -> None:
    folder = write_rated(tmp_path / "data", range(5))
    (tmp_path / "other").mkdir()
    with pytest.raises(FederatedConfigError, match="got 5 that are not .*; and 2 more.: check `images` and `texts`"):
        rated_data(folder, {"images": str(tmp_path / "other"), "unusable": "skip"}, **ONE)
    with pytest.raises(FederatedConfigError, match="`images` to be a folder but there is none at"):
        rated_data(folder, {"images": str(tmp_path / "nowhere")}, **ONE)


def test_an_image_that_no_group_has_rated(tmp_path: Path) -> None:
    folder = write_rated(tmp_path / "data", range(8))
    lines = (folder / "ratings.csv").read_text().splitlines()
    changed = [
        ",".join([*line.split(",")[:2], "", "", line.split(",")[4]]) if line[0] == "4" else line for line in lines
    ]
    (folder / "ratings.csv").write_text("\n".join(changed))
    source = {"missing": "allow", "unusable": "skip", "group_by": "site"}
    data = rated_data(folder, source, splits=NO_SPLITS)
    assert [(row.file_name, row.reason) for row in data.left_out] == [("4.png", "nobody has rated it")]


def test_missing_ratings_and_texts(tmp_path: Path) -> None:
    folder = write_rated(tmp_path / "data", range(6))
    lines = (folder / "ratings.csv").read_text().splitlines()
    changed = [line.replace("2.png,Ann,3", "2.png,Ann,").replace("2.png,Bob,2", "2.png,Bob,") for line in lines]
    changed = [",".join([*line.split(",")[:2], "", "", "x"]) if line.startswith("4.png") else line for line in changed]
    (folder / "ratings.csv").write_text("\n".join(changed))
    texts = (folder / "texts.jsonl").read_text().replace('"w5 a a"', '" "')
    (folder / "texts.jsonl").write_text(texts)
    source: dict[str, Any] = {"missing": "allow", "unusable": "skip", "texts": {"naive": str(folder / "texts.jsonl")}}
    found = rated_data(folder, source, **ONE).left_out
    assert {row.file_name: row.reason for row in found} == {
        "2.png": "one of the two scores has no rating",
        "4.png": "nobody has rated it",
        "5.png": "there is no text of kind 'naive'",
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"file_name": "a", "text": "x"}', None),
        ('{"name": "a", "model_output": "x"}', "'file_name' and 'model_output' in 't.jsonl', line 1 but it has name"),
        ('{"file_name": "a", "model_output": 3}', "'file_name' and 'model_output' in 't.jsonl', line 1 but"),
        ('{"file_name": "a", "model_output": "x"}\n' * 2, "one text of 'a' but got a second in 't.jsonl', line 2"),
        (
            '{"file_name": "a", "model_output": "x", "kind": "naive"}',
            "texts of kind 'cot' in 't.jsonl' but it has none",
        ),
    ],
)
def test_refused_texts(tmp_path: Path, content: str, message: str | None) -> None:
    (tmp_path / "t.jsonl").write_text(content)
    with pytest.raises(FederatedConfigError, match=message or "texts of kind 'cot' in 't.jsonl' but it has none"):
        read_texts(tmp_path / "t.jsonl", "cot")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unusable": "stop"}, "`unusable` to be error or skip but got 'stop'"),
        ({"max_megapixels": 0}, "`max_megapixels` above 0 but got 0"),
    ],
)
def test_refused_sources(change: dict[str, Any], message: str) -> None:
    with pytest.raises(FederatedConfigError, match=message):
        RatedSource("ratings.csv", "images", **change)


@pytest.mark.parametrize("rated", ["real", "printable"])
@pytest.mark.parametrize("told", ["real", "printable"])
def test_names_that_tables_write_in_another_way_join(tmp_path: Path, rated: str, told: str) -> None:
    """Ratings and texts may have the real name, or that of `rate` and `extract`; both lead to the file's pixels."""
    names = ["Screenshot 9.41.00\u202fAM.png", "two\nlines.png", "a\xa0\x1bb.png", "back\\nslash.png"]
    (tmp_path / "images").mkdir()
    for i, name in enumerate(names):
        Image.new("RGB", (6, 6), (i, i, i)).save(tmp_path / "images" / name)
    written = {"real": names, "printable": [printable(name) for name in names]}
    assert {file.name for file in find_images([tmp_path / "images"])} == set(written["printable"])
    ratings = [{"file_name": name, "entity_score": 0.5, "semantic_score": 0.25} for name in written[rated]]
    texts = [{"file_name": name, "model_output": f"text {i}"} for i, name in enumerate(written[told])]
    for rows, file in ((ratings, "ratings.jsonl"), (texts, "texts.jsonl")):
        (tmp_path / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"ratings": str(tmp_path / "ratings.jsonl"), "texts": {"cot": str(tmp_path / "texts.jsonl")}}
    data = rated_data(tmp_path, source, **ONE)
    assert not data.left_out
    for i, example in enumerate(data._examples[k] for k in range(len(names))):
        assert example["texts"] == {"cot": f"text {i}"} and example["image"].max() == i


def test_a_name_that_is_no_text_has_a_reason(tmp_path: Path) -> None:
    """Such a path fits into no table of images."""
    name = os.fsdecode(b"caf\xe9.png")
    Image.new("RGB", (6, 6)).save(tmp_path / name, "PNG")
    found = check_images(tmp_path, [r"caf\xe9.png", "\ud800.png"], 1.0, tmp_path / "cache")
    assert [image.reason for image in found.values()] == ["its path is no UTF-8; rename it", "there is no such file"]
