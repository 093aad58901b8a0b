"""Local files: CSV says what JSON lines say, and what cannot be read is named in a sentence."""

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pl_fed.datamodules.files import load_file
from pl_fed.datamodules.labels import read_labels
from pl_fed.datamodules.tokens import content_hash
from pl_fed.errors import FederatedConfigError

# `datasets` leaves the files that it reads for the garbage collector to close.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
Write = Callable[[str, list[dict[str, Any]]], Path]
CELLS = [
    "4",
    "3.5",
    "007",
    "1.50",
    "1e5",
    "-2",
    " 8",
    "None",
    "null",
    "NA",
    "nan",
    "True",
    "01",
    "1",
    'a "b", c\nd',
    "é",
]


@pytest.mark.parametrize("end", ["csv", "tsv"])
def test_cells_are_the_text_in_the_file(end: str, write_rows: Write, tmp_path: Path) -> None:
    rows = [{"text": cell, "same": "5", "late": "" if i < 3 else "6"} for i, cell in enumerate(CELLS)]
    same = [row | {"late": row["late"] or None} for row in rows]
    found = load_file(write_rows(f"data.{end}", rows), tmp_path / "cache")
    assert found.to_list() == load_file(write_rows("data.jsonl", same), tmp_path / "cache").to_list() == same
    assert {feature.dtype for feature in found.features.values()} == {"string"}


def test_empty_cells_rows_and_blocks(tmp_path: Path) -> None:
    """Empty lines are no rows; empty cells and those that a row lacks are missing; pandas reads 10,000 at once."""
    path = tmp_path / "gaps.csv"
    path.write_text('text,label\na,b\nc\n\n,\n"",d\n')
    found = load_file(path, tmp_path / "cache")
    assert found[:] == {"text": ["a", "c", None, None], "label": ["b", None, None, "d"]}
    path.write_text("text,label\n" + "a,1\n" * 10_000 + "b,\n" * 10_001)
    assert load_file(path, tmp_path / "cache")["label"][:] == ["1"] * 10_000 + [None] * 10_001


def test_tokens_of_guessed_types_are_not_taken_again(write_rows: Write, tmp_path: Path) -> None:
    """The key of the cache is a hash of the cells, so tokens of what pandas made of a file are never found."""
    path = write_rows("data.csv", [{"text": cell} for cell in ("4", "3.5", "NA")])
    guessed = datasets.load_dataset("csv", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert guessed["text"][:] == [4.0, 3.5, None]
    assert content_hash(guessed, ["text"]) != content_hash(load_file(path, tmp_path / "cache"), ["text"])


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    for cell in ("1.5", "1.50"):
        path.write_text(f"text\n{cell}\n")
        assert load_file(path, tmp_path / "cache")["text"][:] == [cell]


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        ([10, 9, 0, None], ["0", "9", "10"]),
        ([-1, 1, 0, 1], ["-1", "0", "1"]),
        (["b", "a", None, "b"], ["a", "b"]),
        (["01", "1", "007", "1"], ["007", "01", "1"]),
        (["NA", "None", "null", "x"], ["NA", "None", "null", "x"]),
        ([False, True, True, None], ["False", "True"]),
    ],
)
def test_classes_as_in_json_lines(cells: list[Any], names: list[str], write_rows: Write, tmp_path: Path) -> None:
    rows = [{"text": "a", "label": cell} for cell in cells]
    found = [
        read_labels({"train": load_file(write_rows(f"data.{end}", rows), tmp_path / "cache")}, "label")
        for end in ("csv", "jsonl")
    ]
    assert found[0][1].tolist() == found[1][1].tolist()
    assert found[0][2] == found[1][2] == names


def test_classes_of_several_files(write_rows: Write, tmp_path: Path) -> None:
    """All splits decide together what is a number, so that 1 is one class and not two."""
    splits = {}
    for name, cells in (("train", ["1", "2", "x"]), ("test", ["2", "1"])):
        path = write_rows(f"{name}.csv", [{"text": "a", "label": cell} for cell in cells])
        splits[name] = load_file(path, tmp_path / "cache")
    _, labels, names = read_labels(splits, "label")
    assert (labels.tolist(), names) == ([0, 1, 2, 1, 0], ["1", "2", "x"])


def test_fractions_in_a_csv_file_are_no_classes(write_rows: Write, tmp_path: Path) -> None:
    path = write_rows("data.csv", [{"label": 0.5}, {"label": 2}])
    with pytest.raises(FederatedConfigError, match=r"as classes in column 'label' but got 0.5 \(float\): set"):
        read_labels({"train": load_file(path, tmp_path / "cache")}, "label")


def parquet(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


WHOLE = parquet(pa.table({"text": ["a"] * 100}))
LATIN = "text,label\ncafé au lait,b\n".encode("latin-1")
UNREADABLE = [
    ("r.csv", b"", "rows in 'r.csv' but the file is empty"),
    ("r.csv", b"text,label\n", "rows in 'r.csv' but it has none below its header: add some"),
    ("r.tsv", b"text\tlabel\n\n\n", "rows in 'r.tsv' but it has none below its header: add some"),
    ("r.json", b"[]", "rows in 'r.json' but it has none: add some"),
    ("r.parquet", parquet(pa.table({"text": pa.array([], pa.string())})), "rows in 'r.parquet' but it has none"),
    ("r.csv", b"text,label\na,b,\nc,d,\n", "2 cells in the first row of 'r.csv', as its header has, but got 3"),
    ("r.csv", b"text,label\na,b\nc,d,e\n", r"the same columns in every row .*line 3, saw 3\): mend or remove that"),
    ("r.csv", b'text,label\n"a,b\nc,d\n', "the same columns in every row .*EOF inside string"),
    ("r.parquet", WHOLE[: len(WHOLE) // 2], r"'r.parquet' to be a whole Parquet file .*\): copy or write it again"),
    ("r.csv", LATIN, "'r.csv' to be text in UTF-8 but got the byte 0xe9 where it cannot be: save it as UTF-8"),
    ("r.csv", b"text,label\n" + b"a,b\n" * 30_000 + LATIN, "'r.csv' to be text in UTF-8 but got the byte 0xe9"),
    ("r.csv", LATIN.decode("latin-1").encode("utf-16"), "'r.csv' to be text in UTF-8 but got the byte 0xff"),
    ("r.csv", "text,label\na,b\n".encode("utf-16-le"), "'r.csv' to be text in UTF-8 but got zero bytes"),
    ("r.jsonl", '{"text": "é"}\n'.encode("latin-1"), "'r.jsonl' to be text in UTF-8 but got the byte 0xe9"),
    ("r.jsonl", '{"text": "é"}\n'.encode("utf-16"), "'r.jsonl' to be text in UTF-8 but got the byte 0xff"),
    ("r.jsonl", '{"text": "é'.encode()[:-1], "'r.jsonl' to be text in UTF-8 but got the byte 0xc3"),
]


@pytest.mark.parametrize(("name", "content", "message"), UNREADABLE, ids=range(len(UNREADABLE)))
def test_unreadable_files(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(FederatedConfigError, match=message):
        load_file(path, tmp_path / "cache")


def test_utf8_with_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes("text,label\né,b\n".encode("utf-8-sig"))
    with path.open(encoding="utf-8-sig", newline="") as file:
        assert load_file(path, tmp_path / "cache").to_list() == list(csv.DictReader(file))


@pytest.mark.parametrize("label", [["a"], {"x": "a"}, b"a"])
def test_classes_that_are_none(label: Any) -> None:
    rows = datasets.Dataset.from_dict({"label": [label, label]})
    with pytest.raises(FederatedConfigError, match=r"as classes in column 'label' but got .* \((list|dict|bytes)\)"):
        read_labels({"train": rows}, "label")
