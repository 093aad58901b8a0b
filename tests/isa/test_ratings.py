"""Ratings from every layout and file type, and what is refused with its place."""

import csv
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pl_fed.errors import FederatedConfigError
from pl_fed.isa.ratings import Ratings, make_ratings, read_ratings

LONG = [
    {"file_name": "a.png", "rater": "Ann", "entity": 3, "semantic": 5, "site": "north"},
    {"file_name": "a.png", "rater": "Bob", "entity": 2, "semantic": 4, "site": "south"},
    {"file_name": "b.png", "rater": "Ann", "entity": 1, "semantic": 1, "site": "north"},
    {"file_name": "b.png", "rater": "Bob", "entity": 5, "semantic": 2, "site": "south"},
]
MEANS = [[0.375, 0.875], [0.5, 0.125]]  # (3 + 2) / 2 = 2.5 of 5 is (2.5 - 1) / 4, and so on


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_long_layout(tmp_path: Path, suffix: str) -> None:
    ratings = read_ratings(write(tmp_path / f"r{suffix}", LONG))
    assert (ratings.file_names, ratings.raters) == (("a.png", "b.png"), ("Ann", "Bob"))
    np.testing.assert_allclose(ratings.means(), MEANS)
    np.testing.assert_allclose(ratings.scores[0], [[0.5, 1.0], [0.25, 0.75]])


def test_wide_layout_says_the_same(tmp_path: Path) -> None:
    """A rater's name may have an underscore; another column is kept."""
    rows = [
        {"file_name": "a.png", "entity_A_1": 3, "semantic_A_1": 5, "entity_B": 2, "semantic_B": 4, "site": "x"},
        {"file_name": "b.png", "entity_A_1": 1, "semantic_A_1": 1, "entity_B": 5, "semantic_B": 2, "site": "y"},
    ]
    ratings = read_ratings(write(tmp_path / "r.csv", rows))
    assert ratings.raters == ("A_1", "B")
    np.testing.assert_allclose(ratings.means(), MEANS)
    assert ratings.groups("site") == ["x", "y"]


def test_isa_layout(tmp_path: Path) -> None:
    rows = [{"file_name": "a.png", "entity_score": 0.375, "semantic_score": 0.875}]
    rows += [{"file_name": "b.png", "entity_score": 0.5, "semantic_score": 0.125}]
    ratings = read_ratings(write(tmp_path / "r.csv", rows))
    np.testing.assert_allclose(ratings.means(), MEANS)
    assert ratings.raters == ("mean",)


def test_a_table_of_scores_is_of_the_isa_layout(tmp_path: Path) -> None:
    """As `cli.py score` writes it: levels and uncertainties are no raters; nor is a column of one score only."""
    row = {"file_name": "a.png", "entity_score": 0.375, "semantic_score": 0.875, "entity_1_to_5": 2.5}
    row |= {"semantic_1_to_5": 4.5, "entity_uncertainty": 0.1, "semantic_uncertainty": 0.1, "entity_names": "cup"}
    assert read_ratings(write(tmp_path / "r.csv", [row])).means().tolist() == [[0.375, 0.875]]


def test_scores_beside_raters(tmp_path: Path) -> None:
    """Whether the means or the raters are meant is for the user to say."""
    rows = [{"file_name": "a.png", "entity_score": 3, "semantic_score": 5, "entity_B": 2, "semantic_B": 4}]
    message = (
        "either 'entity_score' and 'semantic_score' or columns of raters in '.*r.csv' but it also has 'entity_B', "
        "'semantic_B': remove the columns that are not to be read, or rename the first two if 'score' is a rater"
    )
    with pytest.raises(FederatedConfigError, match=message):
        read_ratings(write(tmp_path / "r.csv", rows))


def test_names_of_any_characters(tmp_path: Path) -> None:
    """Commas, quotes, line breaks, spaces, other scripts; and names that tables like to take for something else."""
    names = ['a,"b".png', "two\nlines.png", " lead.png", "日本 é.png", "NA", "007", "1e5", "sub/x.png", "nan"]
    rows = [{"file_name": name, "entity_score": 0.5, "semantic_score": 0.25} for name in names]
    for suffix in (".csv", ".jsonl", ".parquet"):
        assert read_ratings(write(tmp_path / f"r{suffix}", rows)).file_names == tuple(names)


NAME = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(str.strip)


@settings(deadline=None, max_examples=60)
@given(st.lists(NAME, min_size=1, max_size=5, unique=True))
def test_names_of_really_any_characters(names: list[str]) -> None:
    rows = [{"file_name": name, "entity_score": 0.5, "semantic_score": 0.25} for name in names]
    with tempfile.TemporaryDirectory() as folder:
        for suffix in (".csv", ".tsv", ".jsonl"):
            assert read_ratings(write(Path(folder, f"r{suffix}"), rows)).file_names == tuple(names)


def test_a_spreadsheets_file(tmp_path: Path) -> None:
    """A byte order mark, and windows' line ends."""
    path = tmp_path / "r.csv"
    path.write_bytes("\ufefffile_name,entity_score,semantic_score\r\na.png,0.5,0.25\r\n".encode())
    assert read_ratings(path).means().tolist() == [[0.5, 0.25]]


def test_scale(tmp_path: Path) -> None:
    """Found by values beside 1; stated, it wins; a rating of 1 is the lowest of 1-5 and the highest of 0-1."""
    ones = [{"file_name": "a", "entity_score": 1, "semantic_score": 1}]
    path = write(tmp_path / "r.csv", ones)
    assert read_ratings(path, "1-5").means().tolist() == [[0.0, 0.0]]
    assert read_ratings(path, "0-1").means().tolist() == [[1.0, 1.0]]
    with pytest.raises(FederatedConfigError, match=r"tell their scale, .* but got no other values than 1: set `scale`"):
        read_ratings(path)
    mixed = [*ones, {"file_name": "b", "entity_score": 4, "semantic_score": 0.5}]
    with pytest.raises(FederatedConfigError, match=r"got 0.5 in 'r.csv', line 3 and 4 in 'r.csv', line 3: set `scale`"):
        read_ratings(write(tmp_path / "r.csv", mixed))


def test_missing_ratings(tmp_path: Path) -> None:
    rows = [dict(row) for row in LONG]
    rows[1]["entity"] = ""
    path = write(tmp_path / "r.csv", rows)
    with pytest.raises(
        FederatedConfigError, match=r"the entity rating of 'a.png' by 'Bob' in 'r.csv', line 3 but the cell is empty"
    ):
        read_ratings(path)
    np.testing.assert_allclose(read_ratings(path, missing="allow").means(), [[0.5, 0.875], [0.5, 0.125]])
    alone = read_ratings(write(tmp_path / "s.csv", [LONG[0], LONG[3]]))  # each image has one rater: nothing is missing
    np.testing.assert_allclose(alone.means(), [[0.5, 1.0], [1.0, 0.25]])
    nobody = [{**row, "entity": "NaN"} if row["file_name"] == "a.png" else row for row in LONG]
    assert np.isnan(read_ratings(write(tmp_path / "t.csv", nobody), missing="allow").means()[0, 0])


def test_groups() -> None:
    """By site every image comes once for each site, with that site's mean; by rater once for each rater."""
    ratings = made(LONG)
    found = ratings.by_group("site")
    assert [(row.file_name, row.group) for row in found] == [
        ("a.png", "north"),
        ("b.png", "north"),
        ("a.png", "south"),
        ("b.png", "south"),
    ]
    assert found[2].scores.tolist() == [0.25, 0.75] and np.isnan(found[2].by_rater[0]).all()
    assert [row.group for row in ratings.by_group("rater")] == ["Ann", "Ann", "Bob", "Bob"]
    assert [row.scores.tolist() for row in ratings.by_group()] == MEANS
    with pytest.raises(FederatedConfigError, match="a column of 'rows' to group by but got 'city': it has rater, site"):
        ratings.groups("city")


def test_a_rating_without_its_group() -> None:
    ratings = made([*LONG[:3], LONG[3] | {"site": ""}])
    with pytest.raises(FederatedConfigError, match="'site' of every rating in 'rows' but that of 'b.png' by 'Bob' has"):
        ratings.by_group("site")


def made(rows: list[dict[str, Any]]) -> Ratings:
    from pl_fed.isa.ratings_layouts import find_ratings
    from pl_fed.isa.ratings_tables import TableRow

    return make_ratings(find_ratings([TableRow(f"row {i}", row) for i, row in enumerate(rows)], "rows"), "rows")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"entity": 6}, r"entity rating of 'b.png' by 'Bob' in row 3 from 1 to 5 but got 6: correct it"),
        ({"semantic": "many"}, r"a number in column 'semantic' of row 3 but got 'many': write ratings like"),
        ({"semantic": "inf"}, r"a number in column 'semantic' of row 3 but got 'inf'"),
        ({"entity": 10**400}, r"a number in column 'entity' of row 3 but got 10+\.\.\.0+: write ratings like"),
        ({"entity": True}, r"a number in column 'entity' of row 3 but got True"),
        ({"file_name": "a.png"}, r"one rating of 'a.png' by 'Bob' but got them in row 1 and in row 3: remove one"),
        ({"file_name": "  "}, r"text in column 'file_name' of row 3 but got '  '"),
        ({"file_name": 7}, r"text in column 'file_name' of row 3 but got 7"),
        ({"rater": None}, r"text in column 'rater' of row 3 but got None"),
    ],
)
def test_refused_cells(change: dict[str, Any], message: str) -> None:
    with pytest.raises(FederatedConfigError, match=message):
        made([*LONG[:3], LONG[3] | change])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["image", "entity", "semantic"], "column 'file_name' in 'rows' but it has image, entity, semantic: rename"),
        (["file_name", "rater", "es"], "columns 'entity' and 'semantic' beside 'rater' in 'rows' but it has"),
        (["file_name", "entity_Ann", "semantic_Bob"], "for every rater, but 'rows' has file_name, entity_Ann, sem"),
        (["file_name", "score"], "for every rater, but 'rows' has file_name, score: rename them"),
    ],
)
def test_refused_layouts(columns: list[str], message: str) -> None:
    with pytest.raises(FederatedConfigError, match=message):
        made([dict.fromkeys(columns, "3")])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.xlsx", b"", "ends in one of .csv, .tsv, .jsonl, .parquet but got 'r.xlsx': convert it"),
        ("r.csv", b"", "rows in 'r.csv' but it has none"),
        ("r.csv", b"file_name,entity_score\n", "rows in 'r.csv' but it has none"),
        ("r.csv", b"file_name,file_name\na,b\n", "column names once each in 'r.csv' but got 'file_name' twice"),
        ("r.csv", b"a,b\n1,2\n1,2,3\n", "2 cells in 'r.csv', line 3, as in the first line, but got 3: put quotes"),
        ("r.csv", b"a,b\n1\n", "2 cells in 'r.csv', line 2, as in the first line, but got 1"),
        ("r.csv", b'a,b\n"x" y,2\n', "'r.csv' to be a CSV file but got an error after line 1"),
        ("r.csv", b"a,b\n\xff\xfe,2\n", "'r.csv' to be text in UTF-8 but got invalid start byte at byte 4"),
        ("r.jsonl", b'{"a": 1}\n\n{"a": \n', "JSON in 'r.jsonl', line 3 but got"),
        ("r.jsonl", b'{"a": ' + b"9" * 5000 + b"}", "JSON in 'r.jsonl', line 1 but got: Exceeds the limit"),
        ("r.jsonl", b"{}\n" + b"[" * 100_000, "JSON in 'r.jsonl', line 2 but got: maximum recursion depth exceeded"),
        ("r.jsonl", b"[1]\n", "a JSON object in 'r.jsonl', line 1 but got list"),
        ("r.parquet", b"PAR?", "'r.parquet' to be a Parquet file but got"),
    ],
)
def test_refused_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FederatedConfigError, match=message):
        read_ratings(tmp_path / name)


def test_refused_options(tmp_path: Path) -> None:
    with pytest.raises(FederatedConfigError, match="a table at '.*nowhere.csv' but there is no such file"):
        read_ratings(tmp_path / "nowhere.csv")
    for options, message in (({"scale": "1-7"}, "`scale` to be one of auto, 1-5, 0-1 but got '1-7'"),):
        with pytest.raises(FederatedConfigError, match=message):
            make_ratings.__wrapped__([], "rows", **options)  # type: ignore[attr-defined]  # past the checker of types
