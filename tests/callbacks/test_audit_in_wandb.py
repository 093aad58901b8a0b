"""What an audit leaves in an offline W&B run: its figures, its tables and its page."""

import json
from pathlib import Path

import pytest
import wandb

from pl_fed.callbacks import AuditPage, LabelInferenceAttack, WandbRounds
from pl_fed.callbacks._audit_page import page
from tests.callbacks.test_wandb_rounds import no_network, offline, read
from tests.helpers.audited_runs import Net, fit, loader

__all__ = ["no_network"]  # the fixture
pytestmark = pytest.mark.filterwarnings("ignore:.*`LightningModule.training_step`")


def test_figures_table_and_page(tmp_path: Path) -> None:
    """The row of the attack, one figure for each cell, the table as it stands in the page, and the page itself."""
    attack, audit = LabelInferenceAttack(num_clients=2, when="fit_end"), AuditPage(num_clients=2)
    fit(Net(), loader(), tmp_path, attack, audit, WandbRounds(), logger=offline(tmp_path), max_epochs=1)
    wandb.finish()
    rows, _, _, files = read(tmp_path)
    assert audit.result is not None
    (row,) = [row for row in rows if "audit/rank" in row]
    assert (row["audit/label_accuracy"], row["audit/exact_match"], row["audit/rank"]) == (1.0, 1.0, 2)
    assert 0 < row["audit/guess"] < 1 and row["audit/rounding_margin"] < 0.1 < row["audit/condition"]
    (cells,) = [row for row in rows if "audit/fishing/none/label_accuracy" in row]
    assert cells["audit/fishing/none/label_accuracy"] == 1.0
    assert sum(name.endswith("/label_accuracy") and name.count("/") == 3 for name in cells) == len(audit.result.rows)
    (path,) = tmp_path.glob("wandb/offline-run-*/files/media/table/audit_[0-9]*.json")
    table = json.loads(path.read_text())
    assert table["columns"] == ["defence", *audit.result.attacks, "tripwire alarms", "test accuracy"]
    assert table["data"] == audit.result.table()
    assert "audit.html" in files
    (path,) = tmp_path.glob("wandb/offline-run-*/files/media/table/audit_clients_*.json")
    clients = json.loads(path.read_text())
    assert clients["columns"][:3] == ["client", "true", "recovered"]
    assert [row[1] for row in clients["data"]] == [" ".join(map(str, row.true)) for row in attack.reports[0].rows]
    (path,) = tmp_path.glob("wandb/offline-run-*/files/media/html/audit/page_*.html")
    assert path.read_text() == page(audit.result)
