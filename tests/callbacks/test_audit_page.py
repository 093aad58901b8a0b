"""The audit page: parsed, so that what a browser shows is what was measured."""

import base64
import csv
import io
import json
import math
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pl_fed.attacks import AuditReport, DefenceRow
from pl_fed.attacks.report import ClientRow
from pl_fed.callbacks._audit_figures import cost_figure, counts_figure, noise_figure
from pl_fed.callbacks._audit_page import LIMITS, THREATS, page, write_page
from pl_fed.callbacks._audit_result import Accuracy, AuditResult
from pl_fed.errors import FederatedConfigError

ROOT = Path(__file__).parents[2]
CLIENTS = (
    ClientRow(0, (3, 1), (3, 1), True, 1.0, 0.75, 0.001),
    ClientRow(1, (0, 4), None, False, 0.5, 0.5, 0.0),
)
REPORT = AuditReport(CLIENTS, 1, 2, math.inf, 0.25, True, {"LLG": 0.5}, ("A <note> & more.",), "Two clients <b>.")
ROWS = (
    DefenceRow("fishing", "none", 1.0, 0.5, 0.625, 8, 3.0, 0.001, note="An exact sum."),
    DefenceRow("fishing", "clipping", 0.9, 0.5, 0.625, 8, 3.0, 0.001, noise_multiplier=0.0, note="Clipped."),
    DefenceRow("fishing", "DP 1", 0.65, 0.0, 0.625, 8, 3.0, 0.4, noise_multiplier=1.0, note="With noise."),
    DefenceRow("fishing", "<script>", 0.625, 0.0, 0.625, blocked=1.0, alarms=0.5, note="Bad & worse."),
    DefenceRow("LLG", "none", 0.5, 0.0, 0.625, note="An exact sum."),
)
RESULT = AuditResult(
    ROWS, "A tiny <setting>.", REPORT, {"none": Accuracy(0.9, 0.01, 3), "DP 1": Accuracy(0.8, None, 1)}
)


class Parsed(HTMLParser):
    """Text, tables, images and tags of a page; every tag must be closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.images: list[bytes] = []
        self.marked: list[str] = []
        self.text, self.leak = "", False
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.leak = found.get("class") == "leak"
        elif tag == "img":
            kind, _, data = found["src"].partition(",")
            assert kind == "data:image/png;base64" and found["alt"]
            self.images.append(base64.b64decode(data, validate=True))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data
            if self.leak:
                self.marked.append(data)


def test_the_page() -> None:
    """Four tables; nothing of the text becomes markup; pictures are inside."""
    found = Parsed(page(RESULT))
    matrix, cells, numbers, costs = found.tables
    assert matrix == [
        ["Defence", "fishing", "LLG", "Tripwire alarms"],
        ["none", "1.000 (0.50)", "0.500 (0.00)", "—"],
        ["clipping", "0.900 (0.50)", "—", "—"],
        ["DP 1", "0.650 (0.00)", "—", "—"],
        ["<script>", "0.625 (0.00)", "—", "50%"],
    ]
    assert found.marked == ["1.000 (0.50)", "0.900 (0.50)", "1.000 (fishing)"], "more than .05 above the guess"
    assert cells[1] == ["fishing", "none", "8", "3", "0.001", "0%"] and cells[4][2:] == ["—", "—", "—", "100%"]
    assert numbers[1:] == [["0", "3 1", "3 1", "1.000", "0.750"], ["1", "0 4", "not separated", "0.500", "0.500"]]
    assert costs[1:] == [
        ["none", "0.900 ± 0.010 (3 seeds)", "1.000 (fishing)", "0.625"],
        ["DP 1", "0.800 (1 seed)", "0.650 (fishing)", "0.625"],
    ]
    assert "Not measured: clipping; <script>." in found.text
    assert "python cli.py audit --config configs/audit_defences.yaml" in found.text
    assert "script" not in found.tags and "link" not in found.tags and len(THREATS) == 4
    assert all(text in found.text for text in (*THREATS, *LIMITS, "A <note> & more.", "A tiny <setting>."))
    assert "Of 2 attacked participants, the server read all label counts of 1 exactly and named 75%" in found.text
    for picture in found.images:
        assert Image.open(io.BytesIO(picture)).width > 200
    assert len(found.images) == 3
    assert "The same by instance-wise" not in found.text and "A crafted model for each participant" in found.text


def test_without_noise_and_with_all_costs() -> None:
    everything = {row.defence: Accuracy(0.5, 0.0, 2) for row in ROWS}
    found = Parsed(page(replace(RESULT, rows=ROWS[:1], accuracy=everything)))
    assert len(found.images) == 2 and "not measured" not in found.text.lower()


def test_without_costs() -> None:
    """No table of empty cells: one sentence that says how to measure."""
    found = Parsed(page(replace(RESULT, accuracy={}, setting="Norm `a.<b>`.")))
    assert len(found.tables) == 3 and len(found.images) == 2 and "code" in found.tags
    assert "Not measured: none; clipping; DP 1; <script>." in found.text and "Norm a.<b>." in found.text


def test_a_defence_costs_the_same_against_whoever_evades_it() -> None:
    rows = [replace(ROWS[0], defence=name) for name in ("tripwire", "tripwire, evaded")]
    result = replace(RESULT, rows=(*rows, replace(ROWS[0], attack="true mix", label_accuracy=1.1)))
    result = replace(result, accuracy={"tripwire": Accuracy(0.7, None, 1)})
    assert result.cost("tripwire, evaded") == "0.700 (1 seed)" and result.cost("none") == "not measured"
    assert result.leak("none") is None and result.leak("tripwire") == rows[0]


def test_twins(tmp_path: Path) -> None:
    """JSON comes back as it was, infinite figures too; CSV has every row; nothing partial is left."""
    write_page(tmp_path, RESULT)
    assert {path.name for path in tmp_path.iterdir()} == {"audit.html", "audit.md", "audit.csv", "audit.json"}
    text = (tmp_path / "audit.json").read_text()
    assert AuditResult.from_json(text, tmp_path) == RESULT and "Infinity" not in text
    rows = list(csv.DictReader((tmp_path / "audit.csv").read_text().splitlines()))
    assert [row["label_accuracy"] for row in rows] == ["1.0", "0.9", "0.65", "0.625", "0.5"]
    assert rows[3]["alarms"] == "0.5" and rows[0]["alarms"] == ""
    lines = (tmp_path / "audit.md").read_text().splitlines()
    assert "| DP 1 | 0.650 (0.00) | — | — | 0.800 (1 seed) |" in lines
    assert "- DP 1: With noise." in lines and "Guessing gives 0.625." in lines[4]
    for wrong in ("{}", "[1]", "nothing", json.dumps({**json.loads(text), "rows": [{"x": 1}]})):
        with pytest.raises(FederatedConfigError, match="Expected an audit in '.*' but got something else"):
            AuditResult.from_json(wrong, tmp_path)


def test_figures() -> None:
    """Points where the rows say; the guess; no picture without noise. Twelve clients: eight are drawn."""
    figure = noise_figure(ROWS)
    assert figure is not None
    line, guess = figure.axes[0].get_lines()
    assert list(line.get_ydata()) == [0.9, 0.65] and list(guess.get_ydata()) == [0.625, 0.625]
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["0", "1"]
    assert noise_figure(ROWS[:2]) is None and noise_figure(()) is None
    plots = counts_figure([CLIENTS[0]] * 12).axes
    assert len(plots) == 8 and [bar.get_height() for bar in plots[0].patches] == [3, 1]
    assert list(plots[0].get_lines()[0].get_ydata()) == [3, 1]
    assert [plot.get_visible() for plot in counts_figure([CLIENTS[0]] * 5).axes] == [True] * 5 + [False] * 3
    assert not counts_figure(CLIENTS).axes[1].get_lines(), "nothing was recovered"
    figure = cost_figure(RESULT)
    assert figure is not None and [bar.get_width() for bar in figure.axes[0].patches] == [0.9, 0.8]
    dots = next(line for line in figure.axes[0].get_lines() if "attack" in str(line.get_label()))
    assert list(dots.get_xdata()) == [1.0, 0.65] and cost_figure(replace(RESULT, accuracy={})) is None
