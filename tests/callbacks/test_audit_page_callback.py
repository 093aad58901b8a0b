"""The callback that writes the audit page: in any project, in a federation, and where it does not apply."""

import csv
import inspect
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentParser
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from pl_fed.attacks import LocalSteps
from pl_fed.callbacks import AuditPage, LabelInferenceAttack
from pl_fed.callbacks._audit_result import Accuracy, AuditResult
from pl_fed.errors import FederatedConfigError
from tests.callbacks.test_audit_page import ROOT, Parsed
from tests.helpers.audited_runs import Net, fit, loader
from tests.helpers.tiny import make_trainer
from tests.modules.tiny_images import federation, make
from tests.modules.tiny_images import loader as rounds


class Tables(CSVLogger):
    """A logger that has tables, as W&B's."""

    def log_table(self, key: str, columns: list[str], data: list[list[str]]) -> None:
        self.table, self.seen = (key, columns, data), {**getattr(self, "seen", {}), key: data}


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
    for row, client in zip(logger.seen["audit_clients"], result.report.rows, strict=True):
        true = " ".join(map(str, client.true))
        assert row[:4] == [client.client, true, true, True]
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
    with pytest.warns(UserWarning, match="The audit does not apply: .* the module has none. That is no proof of"):
        fit(Net(net), loader(), tmp_path, AuditPage(), max_epochs=1)
    for name in ("audit.html", "audit.md"):
        text = (tmp_path / name).read_text()
        assert "does not apply: Expected a normalisation layer" in text and "no proof of safety" in text
    assert Parsed((tmp_path / "audit.html").read_text()).tables == [] and not (tmp_path / "audit.json").exists()


def test_a_dry_run_leaves_no_file(tmp_path: Path) -> None:
    audit = AuditPage(num_clients=2)
    fit(Net(), loader(), tmp_path, audit, fast_dev_run=True)
    assert audit.result is not None and not list(tmp_path.rglob("audit.*"))


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"num_clients": 2.5}, "Expected whole `num_clients` of 2 or more, .* but got 2.5 and None"),
    ({"batch_size": 0}, "`batch_size` of 1 or more but got 8 and 0"),
    ({"accuracy": {"nothing": (0.9, 0.0, 1)}}, r"out of \['none', .* in `accuracy` but got \['nothing'\]"),
    ({"accuracy": {"none": 0.9}}, "deviation and number of seeds for `none` in `accuracy` but got 0.9: give three"),
    ({"accuracy": {"none": (0.9, 0.1)}}, r"number of seeds for `none` in `accuracy` but got \(0.9, 0.1\)"),
]


def test_errors() -> None:
    with pytest.raises(FederatedConfigError, match="`num_clients` of 2 or more, .* but got 1 and None"):
        AuditPage(num_clients=1)
    with pytest.raises(FederatedConfigError, match=r"`when` out of .*'fit_end'.* but got `never`"):
        inspect.unwrap(AuditPage.__init__)(object.__new__(AuditPage), **{"when": "never"})
    for wrong, message in WRONG:
        with pytest.raises(FederatedConfigError, match=message):
            inspect.unwrap(AuditPage.__init__)(object.__new__(AuditPage), **wrong)
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
