"""The audit page: parsed, so that what a browser shows is what was measured; and the callback that writes it."""

import base64
import csv
import inspect
import io
import json
import math
import pickle
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentParser
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from torch import nn

from pl_fed.attacks import AuditReport, DefenceRow, LocalSteps
from pl_fed.attacks.report import ClientRow
from pl_fed.callbacks import AuditPage, LabelInferenceAttack
from pl_fed.callbacks._audit_figures import cost_figure, counts_figure, noise_figure
from pl_fed.callbacks._audit_page import LIMITS, THREATS, page, write_page
from pl_fed.callbacks._audit_result import Accuracy, AuditResult
from pl_fed.errors import FederatedConfigError
from tests.helpers.audited_runs import Net, fit, loader
from tests.helpers.tiny import make_trainer
from tests.modules.tiny_images import federation, make
from tests.modules.tiny_images import loader as rounds

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


# The callback.


class Tables(CSVLogger):
    """A logger that has tables, as W&B's."""

    def log_table(self, key: str, columns: list[str], data: list[list[str]]) -> None:
        self.table = (key, columns, data)


def test_a_plain_trainer(tmp_path: Path) -> None:
    """Everything of the run's own audit is on the page, in the files and with the logger."""
    audit, logger = AuditPage(num_clients=2, accuracy={"none": (0.9, 0.01, 3)}), Tables(tmp_path, None, "run")
    fit(Net(), loader(), tmp_path, audit, logger=logger, max_epochs=1)
    result = AuditResult.from_json((tmp_path / "run" / "audit.json").read_text(), tmp_path)
    assert result == audit.result and result.report.exact_match == 1.0 and len(result.report.rows) == 2
    assert result.setting == ("Net, 2 simulated clients with 32 labels each in 10 classes, 1 step(s) of sgd at lr 1.")
    assert Parsed((tmp_path / "run" / "audit.html").read_text()).tables[0][1][0] == "none"
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines()))
    (logged,) = [row for row in rows if row.get("audit/fishing/none/label_accuracy")]
    assert logged["audit/fishing/none/label_accuracy"] == "1.0"
    assert float(logged["audit/fishing/model_binding/label_accuracy"]) == result.rows[0].guess
    assert {f"audit/{a}/dp_0.3/label_accuracy" for a in ("fishing", "same_model", "llg", "ilrg")} <= set(logged)
    key, columns, data = logger.table
    assert key == "audit" and columns[:2] == ["defence", "fishing"] and len(columns) == len(data[0]) == 8
    assert data[0][:2] == ["none", "1.000 (1.00)"] and data[0][-1] == "0.900 ± 0.010 (3 seeds)"


def test_the_run_stays_the_same(tmp_path: Path) -> None:
    modules = []
    for callbacks in ([], [AuditPage(num_clients=2, batch_size=8, when="fit_start")]):
        module = Net()
        fit(module, loader(), tmp_path, *callbacks, max_epochs=1)
        modules.append(module.state_dict())
    assert all(bool((value == modules[1][name]).all()) for name, value in modules[0].items())
    assert (tmp_path / "audit.html").is_file()


def test_another_callbacks_report_is_shown(tmp_path: Path) -> None:
    attack, page_ = LabelInferenceAttack(num_clients=3, when="fit_end"), AuditPage(num_clients=2, batch_size=8)
    fit(Net(), loader(), tmp_path, attack, page_, max_epochs=1)
    assert page_.result is not None and page_.result.report is attack.reports[-1]


def test_rounds(tmp_path: Path) -> None:
    """In a federation the clients are its own; three classes, batches of four."""
    audit = AuditPage(num_clients=3, local=LocalSteps(lr=0.1))
    trainer = make_trainer(federation(), max_epochs=1, callbacks=[audit], default_root_dir=tmp_path)
    trainer.fit(make("small_cnn"), rounds(), rounds())
    assert audit.result is not None and "3 simulated clients with 4 labels each in 3 classes" in audit.result.setting
    assert audit.result.rows[0].exact_match == 1.0 and (tmp_path / "audit.html").is_file()


def test_where_it_does_not_apply(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.warns(UserWarning, match="No audit page is written: .* the module has none. That is no proof of"):
        fit(Net(net), loader(), tmp_path, AuditPage(), max_epochs=1)
    assert not (tmp_path / "audit.html").exists()


def test_a_dry_run_leaves_no_file(tmp_path: Path) -> None:
    audit = AuditPage(num_clients=2)
    fit(Net(), loader(), tmp_path, audit, fast_dev_run=True)
    assert audit.result is not None and not list(tmp_path.rglob("audit.*"))


def test_errors() -> None:
    with pytest.raises(FederatedConfigError, match="`num_clients` of 2 or more, .* but got 1 and None"):
        AuditPage(num_clients=1)
    with pytest.raises(FederatedConfigError, match=r"`when` out of .*'fit_end'.* but got `never`"):
        inspect.unwrap(AuditPage.__init__)(object.__new__(AuditPage), **{"when": "never"})
    assert pickle.loads(pickle.dumps(AuditPage(3))).num_clients == 3


def test_it_is_configured_by_class_path() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--audit", type=AuditPage)
    arguments = {"num_clients": 4, "local": {"lr": 0.1}, "accuracy": {"none": [0.9, 0.01, 3]}}
    parsed = parser.parse_object({"audit": {"class_path": "pl_fed.callbacks.AuditPage", "init_args": arguments}})
    audit = parser.instantiate(parsed).audit
    assert audit.settings.local == LocalSteps(lr=0.1) and audit.accuracy == {"none": Accuracy(0.9, 0.01, 3)}


BODY = """
import sys
import torch
import pytorch_lightning as pl
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from pl_fed.callbacks import AuditPage, FishingTripwire

class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

data = DataLoader(TensorDataset(torch.randn(60, 4), torch.arange(60) % 3), batch_size=10)
options = dict(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=sys.argv[1])
callbacks = [FishingTripwire(), AuditPage(num_clients=2)]
assert all(isinstance(callback, pl.Callback) for callback in callbacks)
pl.Trainer(callbacks=callbacks, **options).fit(Net(), data)
print(callbacks[1].result.rows[0].exact_match)
"""


def test_pytorch_lightning_trainer(tmp_path: Path) -> None:
    """In a process that imported only `pytorch_lightning` before; the tripwire beside it."""
    (tmp_path / "run.py").write_text(BODY)
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "run.py", str(tmp_path)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("1.0") and (tmp_path / "audit.html").is_file()
