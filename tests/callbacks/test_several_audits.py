"""Several audits in one Trainer, and callbacks that can be there only once."""

import csv
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from pl_fed.attacks import LocalSteps
from pl_fed.callbacks import ClientDP, FishingTripwire, LabelInferenceAttack
from pl_fed.cli_trainer import FederatedTrainer
from pl_fed.errors import FederatedConfigError
from tests.callbacks.test_live_attack import attacked
from tests.helpers.audited_runs import Net, fit, loader

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")


def test_two_at_the_same_time(tmp_path: Path) -> None:
    """One of shared gradients and one of three steps: each has its report, its figures and its state."""
    audits = [LabelInferenceAttack(), LabelInferenceAttack(local=LocalSteps(3, 0.01))]
    trainer = fit(Net(), loader(), tmp_path, *audits, logger=CSVLogger(tmp_path, None, "run"), max_epochs=1)
    texts = [(tmp_path / "run" / f"label_inference_start{n}.md").read_text() for n in ("", "_2")]
    assert "1 step(s)" in texts[0] and "3 step(s)" in texts[1]
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines()))
    for name, audit in zip(("audit", "audit_2"), audits, strict=True):
        found = [float(row[f"{name}/rounding_margin"]) for row in rows if row[f"{name}/rounding_margin"]]
        assert found == [pytest.approx(audit.reports[0].margin)]
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    kept = torch.load(tmp_path / "x.ckpt", weights_only=True)["callbacks"]
    assert {audit.state_key for audit in audits} <= set(kept) and audits[0].state_key != audits[1].state_key


def test_before_and_live(tmp_path: Path) -> None:
    before = LabelInferenceAttack(num_clients=4, batch_size=4)
    live = attacked(tmp_path, before)
    assert before.reports[0].exact_match == live.reports[0].exact_match == 1.0
    assert {path.name for path in tmp_path.glob("*.md")} == {"label_inference_start.md", "label_inference_live.md"}


def test_two_servers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FederatedConfigError, match="one LabelInferenceAttack with `when: live` but got several"):
        attacked(tmp_path, LabelInferenceAttack(when="live", seed=1))


@pytest.mark.parametrize("kind", [ClientDP, FishingTripwire, LabelInferenceAttack])
def test_doubles_are_one_sentence(kind: Any, tmp_path: Path) -> None:
    """Of Lightning's own Trainer it is a RuntimeError, which the command line shows as a traceback."""
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "default_root_dir": tmp_path}
    with pytest.raises(
        FederatedConfigError, match=f"one `{kind.__name__}` with the same settings .* but got 2: remove"
    ):
        FederatedTrainer(accelerator="cpu", callbacks=[kind(), pl.Callback(), kind(), pl.Callback()], **options)
    FederatedTrainer(accelerator="cpu", callbacks=kind(), **options)
