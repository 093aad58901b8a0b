"""Tables in every format, the selection from them, contact sheets, and the rating page."""

import base64
import csv
import io
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pl_fed.errors import FederatedConfigError
from pl_fed.isa.assessment import make_row
from pl_fed.isa.extraction import Extracted
from pl_fed.isa.images import find_images
from pl_fed.isa.rating_page import rating_page
from pl_fed.isa.scorers import Score
from pl_fed.isa.selection import Criteria, select
from pl_fed.isa.sheet import find_image, write_html, write_png
from pl_fed.isa.tables import check_output, read_rows, write_rows
from tests.helpers.isa import picture, row, saved

EVIL = '</script><img src=x onerror="alert(1)">&猫.png'


CLUES = [{"section": "Mental state", "clues": ["<b>a smile</b>", "=1+1"], "conclusion": "glad"}]
ROWS = [
    row("a,b.png", 0.5, 0.25, clues=CLUES, description="=SUM(A1)\nline\u2028two"),
    row("-x.png", None, None, error="bad"),
]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "json", "parquet"])
def test_tables_come_back(tmp_path: Path, ending: str) -> None:
    path = tmp_path / "new" / f"t.{ending}"
    write_rows(ROWS, path)
    assert read_rows(path) == ROWS and [p.name for p in path.parent.iterdir()] == [path.name]


def test_csv_begins_like_the_isa_table_and_runs_nothing(tmp_path: Path) -> None:
    write_rows(ROWS, tmp_path / "t.csv")
    with (tmp_path / "t.csv").open(newline="") as stream:
        found = list(csv.reader(stream))
    assert found[0][:3] == ["file_name", "entity_score", "semantic_score"]
    assert found[1][0] == "a,b.png" and found[1][6].startswith("'=SUM") and found[2][0] == "-x.png"


def test_texts_that_no_file_can_hold(tmp_path: Path) -> None:
    write_rows([row("a.png", 0.0, 0.0, description="\ud800")], tmp_path / "t.parquet")
    assert read_rows(tmp_path / "t.parquet")[0]["description"] == "?"


def test_other_tables(tmp_path: Path) -> None:
    with pytest.raises(FederatedConfigError, match="`output` to end in .csv, .jsonl, .json, .parquet but got 't.txt'"):
        write_rows(ROWS, "t.txt")
    for name, content in (
        ("t.json", "{"),
        ("t.parquet", "x"),
        ("t.jsonl", "{}\nx"),
        ("t.csv", "file_name\na,b\n"),
        ("t.json", "[" * 100_000),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(FederatedConfigError, match=f"`scores` to be a table but .*{name}' cannot be read"):
            read_rows(tmp_path / name)
    (tmp_path / "n.json").write_text("[1]")
    with pytest.raises(FederatedConfigError, match="rows with named columns"):
        read_rows(tmp_path / "n.json")


def test_png_sheet(tmp_path: Path) -> None:
    """Two columns of 240 pixels with gaps of 12, one line; the second image is gone."""
    saved(tmp_path, "a.png")
    write_png([row("a.png", 0.5, 0.5), row("gone.png", 0.5, 0.25)], tmp_path / "sheet.png", tmp_path)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (240 + 44 + 52 + 2 * 12, 2 * 252 + 12, 3)
    middle = sheet[12 + 105 : 12 + 135, 12 + 100 : 12 + 140]
    assert np.array_equal(middle, np.asarray(picture())), "small images are not enlarged"


def test_png_sheet_gives_reasons(tmp_path: Path) -> None:
    """Clues are drawn below the scores, and never outside an image's own column."""
    clues = [{"section": "Events", "clues": ["word" * 30, "short"], "conclusion": "x " * 200}]
    write_png([row("a.png", 0.5, 0.5), row("b.png", 0.5, 0.5)], tmp_path / "none.png", tmp_path)
    write_png([{**row("a.png", 0.5, 0.5), "clues": clues}, row("b.png", 0.5, 0.5)], tmp_path / "some.png", tmp_path)
    none, some = (np.asarray(Image.open(tmp_path / name)) for name in ("none.png", "some.png"))
    rows, columns = (none != some).any(-1).nonzero()
    assert rows.size and rows.min() >= 12 + 240 + 44 and rows.max() < 12 + 240 + 44 + 52
    assert columns.min() >= 12 and columns.max() < 12 + 252 + 12


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags, self.images, self.text = list[str](), list[str](), ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.images += [dict(attributes).get("src") or ""] if tag == "img" else []

    def handle_data(self, data: str) -> None:
        self.text += data


def test_html_sheet_escapes_everything(tmp_path: Path) -> None:
    file = saved(tmp_path, "a.png")
    evil = row(EVIL, 0.5, 0.75, clues=CLUES, description="<script>alert(2)</script>", path=str(file.path))
    write_html([evil, row("gone.png", 0.5, 0.25)], tmp_path / "s.html", None, "SS >= 0.2 & <b>")
    reader = Reader()
    reader.feed((tmp_path / "s.html").read_text())
    assert "script" not in reader.tags and reader.tags.count("img") == 1
    assert all(source.startswith("data:image/jpeg;base64,") for source in reader.images)
    decoded = Image.open(io.BytesIO(base64.b64decode(reader.images[0].split(",")[1])))
    assert decoded.size == (40, 30)
    for text in (
        EVIL,
        "<script>alert(2)</script>",
        "<b>a smile</b>; =1+1 → glad",
        "ES 3.00, SS 4.00",
        "image not found",
    ):
        assert text in reader.text


def script_of(page: str) -> str:
    return re.findall(r"<script>(.*?)</script>", page, re.DOTALL)[0]


def test_rating_page_is_blind_and_each_rater_has_an_order() -> None:
    images = [(f"{i}.png", f"data:{i}") for i in range(20)]
    pages = {rater: rating_page(images, rater) for rater in ("Ann", "Bob")}
    assert pages["Ann"] == rating_page(images, "Ann")
    orders = []
    for page in pages.values():
        reader = Reader()
        reader.feed(page)
        assert ".png" not in reader.text.split("use strict")[0] and reader.tags.count("input") == 10
        orders.append([image["name"] for image in json.loads(re.findall(r"const images = (.*?), rater", page)[0])])
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1]) == sorted(name for name, _ in images)


def test_rating_page_holds_any_name() -> None:
    page = rating_page([(EVIL, "data:1")], "<i>Ann</i>")
    reader = Reader()
    reader.feed(page)
    assert reader.tags.count("script") == 1 and reader.tags.count("img") == 1 and "i" not in reader.tags
    assert json.loads(re.findall(r"const images = (.*?), rater", page)[0]) == [{"name": EVIL, "source": "data:1"}]


# What a browser offers, as far as the page uses it.
BROWSER = """
const nodes = {}, store = {};
const node = id => nodes[id] ??= {id, handlers: {}, elements: [], addEventListener(k, f) { this.handlers[k] = f; }};
const localStorage = {getItem: key => store[key] ?? null, setItem: (key, value) => { store[key] = value; }};
const document = {getElementById: node};
"""
RATE = """
const give = (name, value) => nodes.form.handlers.change({target: {name, value}});
give("entity", "3"); give("semantic", "5"); nodes.next.handlers.click(); give("entity", "1");
console.log(JSON.stringify({table: table(), progress: nodes.progress.textContent, stored: JSON.parse(store[key])}));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_rating_page_in_use(tmp_path: Path) -> None:
    """One image is rated in full and one in half: the table has the first one, the store both."""
    (tmp_path / "page.js").write_text(
        BROWSER + script_of(rating_page([('a"b.png', "1"), ("c.png", "2")], "Ann")) + RATE
    )
    done = subprocess.run(["node", tmp_path / "page.js"], capture_output=True, text=True, timeout=60, check=True)
    found = json.loads(done.stdout)
    first, second = [name for name in found["stored"]]
    assert found["stored"] == {first: {"entity": 3, "semantic": 5}, second: {"entity": 1}}
    rows = list(csv.DictReader(io.StringIO(found["table"])))
    assert rows == [{"file_name": first, "rater": "Ann", "entity": "3", "semantic": "5"}]
    assert found["progress"] == "Image 2 of 2, 1 rated."


def test_images_whose_names_no_table_holds_are_found(tmp_path: Path) -> None:
    """Line breaks and bytes that are no text are escapes in a table; the row still leads to the file."""
    for number, name in enumerate((b"a\nb.png", b"\xff.png")):
        folder = tmp_path / os.fsdecode(b"of \xfe") / f"{number}"
        folder.mkdir(parents=True)
        picture(number).save(os.fsdecode(os.fsencode(folder) + b"/" + name), "PNG")
    files = find_images([tmp_path])
    rows = [make_row(Extracted(file, "A text."), Score(0.5, 0.5, 0.1, 0.1)) for file in files]
    write_rows(rows, tmp_path / "s.csv")
    for number, written in enumerate(read_rows(tmp_path / "s.csv")):
        for folder in (None, tmp_path):
            found = find_image(written, folder)
            assert found is not None and np.array_equal(np.asarray(found), np.asarray(picture(number)))


@pytest.mark.parametrize("name", ["folder.csv", "file/s.csv"])
def test_a_table_that_cannot_be_written_is_refused_first(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(FederatedConfigError, match="Expected `output` to be a file that can be written but got"):
        check_output(tmp_path / name)
    check_output(tmp_path / "new" / "s.csv")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_scorer_of_stories_alone_can_be_selected_by(tmp_path: Path) -> None:
    """Without an entity score a row counts as long as no band is asked for."""
    rows = [row("a.png", None, 0.5), row("b.png", 0.5, 0.25), row("c.png", 0.5, None)]
    assert [r["file_name"] for r in select(rows, Criteria())] == ["a.png", "b.png"]
    assert [r["file_name"] for r in select(rows, Criteria(es=(0.0, 0.9)))] == ["b.png"]
    write_html(rows[:1], tmp_path / "s.html", None, "all")
    assert "ES -, SS 3.00" in (tmp_path / "s.html").read_text()
