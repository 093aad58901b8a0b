"""Texts from a file in the layout of the ISA data."""

import json
from pathlib import Path

import pytest

from pl_fed.errors import FederatedConfigError
from pl_fed.isa.extractor import ExtractionError
from pl_fed.isa.extractors import PrecomputedExtractor
from pl_fed.isa.images import ImageFile, read_image
from tests.helpers.isa import loaded, picture, saved


def write(path: Path, *rows: object) -> str:
    path.write_text("\n".join([*(json.dumps(row, ensure_ascii=False) for row in rows), ""]), encoding="utf-8")
    return str(path)


def test_texts_by_name(tmp_path: Path) -> None:
    """A name below the folder wins over a bare one; line separators inside a text do not end a line."""
    rows = [{"file_name": "picture.png", "model_output": "one\u2028two", "entity_score": 0.5, "semantic_score": 1}]
    rows += [{"file_name": "a/x.png", "model_output": "below"}, {"file_name": "x.png", "model_output": "bare"}]
    extractor = PrecomputedExtractor(write(tmp_path / "t.jsonl", *rows))
    assert extractor.extract(loaded(picture(), tmp_path), "cot") == "one\u2028two"
    file = saved(tmp_path / "a", "x.png")
    assert extractor.extract(read_image(ImageFile(file.path, "a/x.png")), "cot") == "below"
    assert extractor.extract(read_image(file), "cot") == "bare"


def test_what_is_missing_or_failed(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", {"file_name": "picture.png", "model_output": "", "error": "broken"})
    with pytest.raises(ExtractionError, match="no line for 'picture.png'"):
        PrecomputedExtractor(path).extract(loaded(picture(), tmp_path), "naive")


@pytest.mark.parametrize("row", [{"model_output": "x"}, {"file_name": "x"}, {"file_name": "x", "model_output": 3}, []])
def test_other_files(tmp_path: Path, row: object) -> None:
    with pytest.raises(FederatedConfigError, match="`extractor.path` to be a JSONL file with `file_name`"):
        PrecomputedExtractor(write(tmp_path / "t.jsonl", row))
    with pytest.raises(FederatedConfigError, match="No such file"):
        PrecomputedExtractor(str(tmp_path / "nope.jsonl"))


def test_settings_follow_the_content(tmp_path: Path) -> None:
    first = PrecomputedExtractor(write(tmp_path / "t.jsonl", {"file_name": "a", "model_output": "x"})).settings
    second = PrecomputedExtractor(write(tmp_path / "t.jsonl", {"file_name": "a", "model_output": "y"})).settings
    assert first != second
