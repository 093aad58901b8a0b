"""Texts of `RatedImages` that are cut section by section, and the means of its ratings."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from pl_fed.datamodules import SplitConfig
from tests.helpers.rated import NO_SPLITS, levels, rated_data, write_rated


def test_means_of_what_is_trained_on(tmp_path: Path) -> None:
    """Over the training images of all clients, copies at two sites included; no image of the other splits."""
    folder = write_rated(tmp_path / "data", range(30), both_sites=True)
    data = rated_data(folder, {"group_by": "site"}, transform=None, splits=SplitConfig(0.2, 0.2))
    train = [data._examples.rated[i] for shard in data.partition.train for i in shard]
    found = {i: [] for i in range(2)}
    for image in train:
        less = 0 if image.group == "north" else 1
        for i, level in enumerate(levels(int(image.file_name.removesuffix(".png")))):
            found[i].append((max(1, level - less) - 1) / 4)
    assert data.score_means.tolist() == pytest.approx([sum(found[i]) / len(train) for i in range(2)])


def test_long_texts_keep_their_description(
    tmp_path: Path, tokenizer_folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A section of twelve words and a description of two, in six tokens: both are there, and it says what is cut."""
    folder = write_rated(tmp_path / "data", range(12))
    told = f"Mental state: {' '.join(['a'] * 12)}\nDescription: w1 w2"
    rows = [{"file_name": f"{i}.png", "model_output": told} for i in range(12)]
    (folder / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options: dict[str, Any] = {"tokenizer": tokenizer_folder, "max_length": 8, "transform": None, "splits": NO_SPLITS}
    with caplog.at_level("INFO"):
        data = rated_data(folder, {"texts": {"cot": str(folder / "long.jsonl")}}, **options)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    (ids, *_) = next(iter(data.train_dataloader()))["input_ids"].tolist()
    assert len(ids) <= 8 and tokenizer("w1").input_ids[0] in ids and tokenizer("a").input_ids[0] in ids
    full = len(tokenizer(told).input_ids)
    assert f"{1 - len(ids) / full:.1%} of all tokens cut" in caplog.text
