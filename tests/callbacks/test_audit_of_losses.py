"""Audits of losses other than plain cross-entropy, where clipping or Adam hides the scale of updates."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pl_fed.attacks import LocalSteps, LossSpec
from pl_fed.callbacks import AuditPage, ClientDP, LabelInferenceAttack
from tests.callbacks.test_live_attack import attacked, sgd
from tests.helpers.audited import mlp
from tests.helpers.audited_runs import Net, fit, loader
from tests.modules.tiny_images import make

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:Optimal order is the (largest|smallest) alpha"),  # of a few rounds
]
SMOOTHING, WEIGHTS = 0.1, tuple(1 + c / 5 for c in range(10))
BOTH = LossSpec(label_smoothing=SMOOTHING, class_weights=WEIGHTS)


def both(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, labels, torch.tensor(WEIGHTS), label_smoothing=SMOOTHING)


def test_smoothing_and_class_weights_under_every_defence(tmp_path: Path) -> None:
    """Clipping hides the scale; the page is written, and clipping stops nothing."""
    page = AuditPage(num_clients=3, batch_size=16, loss=BOTH)
    fit(Net(mlp(16), both), loader(), tmp_path, page, max_epochs=1)
    assert page.result is not None and (tmp_path / "audit.html").is_file()
    row = page.result.cell("fishing", "clipping")
    assert row is not None and row.exact_match == 1.0


def one_hot(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(logits, nn.functional.one_hot(labels, 10).float())


def test_noise_on_bce_over_one_label_each(tmp_path: Path) -> None:
    """What noise leaves adds up to the batch size, as with cross-entropy; class by class it named less than nothing."""
    page = AuditPage(num_clients=3, batch_size=16, loss=LossSpec("bce_with_logits"))
    fit(Net(mlp(16), one_hot), loader(), tmp_path, page, max_epochs=1)
    assert page.result is not None and page.result.rows[0].exact_match == 1.0
    for attack, defence in itertools.product(("fishing", "same model"), ("DP 0.3", "DP 1")):
        row = page.result.cell(attack, defence)
        assert row is not None and row.label_accuracy > 0.15, (attack, defence)


def test_smoothing_and_class_weights_with_adam(tmp_path: Path) -> None:
    audit = LabelInferenceAttack(3, local=LocalSteps(2, 0.01, optimizer="adam"), loss=BOTH)
    fit(Net(mlp(16), both), loader(), tmp_path, audit, max_epochs=1)
    assert len(audit.reports) == 1 and "Adam" in " ".join(audit.reports[0].notes)


@pytest.mark.parametrize("defence", ["dp", "gradients"])
def test_smoothing_and_class_weights_live(tmp_path: Path, defence: str) -> None:
    """Updates or gradients that are clipped leave the counts, and the federation trains on."""
    weights = (1.0, 2.0, 0.5)
    module = make(optimizer=sgd(), label_smoothing=SMOOTHING, class_weights=list(weights))
    options: dict[str, Any] = {"trainer": {"gradient_clip_val": 0.05}} if defence == "gradients" else {}
    callbacks = [ClientDP(noise_multiplier=1e-6)] if defence == "dp" else []
    audit = {"loss": LossSpec(label_smoothing=SMOOTHING, class_weights=weights)}
    (report,) = attacked(tmp_path, *callbacks, module=module, audit=audit, **options).reports
    assert report.exact_match == 1.0
