"""Causes of wrong or missing figures are named in the report."""

from pathlib import Path

import pytest
from torch import nn

from pl_fed.callbacks import AuditPage, LabelInferenceAttack
from pl_fed.secure_round import SecureAggregation
from tests.callbacks.test_live_attack import attacked
from tests.helpers.audited_runs import Net, fit, loader

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")


def test_values_that_secure_aggregation_clipped(tmp_path: Path) -> None:
    (report,) = attacked(tmp_path, secure_aggregation=SecureAggregation(binding=False, clip=0.01)).reports
    (note,) = [note for note in report.notes if "clipped" in note]
    assert report.exact_match < 1.0 and "of the values that clients sent in round 0" in note
    assert note in (tmp_path / "label_inference_live.md").read_text()
    (report,) = attacked(tmp_path, secure_aggregation=SecureAggregation(binding=False)).reports
    assert report.exact_match == 1.0 and not report.notes


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.filterwarnings("ignore:The total number of parameters detected may be inaccurate")
def test_lazy_layers(tmp_path: Path) -> None:
    """Before the first batch they have no shape: a reason, not an error; at the end of training they are as others."""

    def net() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.LazyLinear(10))

    for audit in (LabelInferenceAttack(), AuditPage(2, when="fit_start")):
        with pytest.warns(UserWarning, match=r"does not apply: .* `net.4.weight` is lazy until a batch has run"):
            fit(Net(net()), loader(), tmp_path, audit, max_epochs=1)
    late = LabelInferenceAttack(when="fit_end")
    fit(Net(net()), loader(), tmp_path, late, max_epochs=1)
    assert late.reports[0].exact_match == 1.0
