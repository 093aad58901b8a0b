"""Clients whose batch is one example: the sum then holds the label of that very example."""

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from pl_fed.callbacks import AuditPage, LabelInferenceAttack
from tests.callbacks.test_live_attack import attacked, data, sgd
from tests.helpers.audited import bert, mlp
from tests.helpers.audited_runs import Net, fit, loader
from tests.modules.tiny_images import make

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")


def layer_norm() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 10))


@pytest.mark.parametrize("make_net", [layer_norm, bert])
def test_every_label_is_read(tmp_path: Path, make_net: Callable[[], nn.Module]) -> None:
    """Four clients, ten classes: a uniform guess of one label is the first class."""
    audit = LabelInferenceAttack(num_clients=4, batch_size=1)
    fit(Net(make_net()), loader(), tmp_path, audit, max_epochs=1)
    (report,) = audit.reports
    assert report.exact_match == 1.0 and [sum(row.true) for row in report.rows] == [1] * 4


def test_live(tmp_path: Path) -> None:
    module = make("groupnorm_cnn", optimizer=sgd(0.1))
    (report,) = attacked(tmp_path, module=module, loader=data(batch_size=1)).reports
    assert report.exact_match == 1.0 and [sum(row.true) for row in report.rows] == [1] * 4


def test_batch_norm_cannot_train_on_one(tmp_path: Path) -> None:
    """Torch refuses such a batch, so there is no such client: the reason is that, for the attack and for the page."""
    reason = "batches of two or more examples, as BatchNorm needs in training, but got one of a single example"
    for audit in (LabelInferenceAttack(2, 1), AuditPage(2, 1)):
        with pytest.warns(UserWarning, match=reason):
            fit(Net(mlp(16)), loader(), tmp_path, audit, max_epochs=1)
    assert "raise `batch_size`" in (tmp_path / "label_inference_start.md").read_text()
