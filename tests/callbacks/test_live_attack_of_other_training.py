"""The live attack and what clients really train with: learning rates, optimizers, losses, formats of numbers.

Either the counts are exact or the report says why the attack does not apply: figures that are wrong without a word
would look like clients that leak nothing.
"""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LinearLR, StepLR

from pl_fed.attacks import LossSpec
from pl_fed.callbacks import AuditPage, LabelInferenceAttack
from pl_fed.context import RoundContext
from pl_fed.errors import ClientFailureError
from pl_fed.loaders import RoundLoader
from pl_fed.rounds import CohortConfig, LocalTraining
from pl_fed.rules import FedIT
from pl_fed.strategy import FederatedStrategy
from tests.callbacks.test_live_attack import ONE_STEP, QUIET, SHARDS, attacked, counts, data, sgd
from tests.modules.tiny_images import make

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
FOUR_STEPS = LocalTraining(epochs=4)


def refused(tmp_path: Path, reason: str, **options: Any) -> None:
    """Check that training goes on, and that warning and report say why there are no figures."""
    with pytest.warns(UserWarning, match=f"does not apply: .*{reason}"):
        attack = attacked(tmp_path, **options)
    assert not attack.reports and "Does not apply" in (tmp_path / "label_inference_live.md").read_text()


# ---------------------------------------------------------------- learning rates


def test_the_learning_rate_is_that_of_the_step(tmp_path: Path) -> None:
    """A warm-up from a tenth: at the end of the step the optimizer has the next rate already."""
    module = make(optimizer=sgd(), lr_scheduler=lambda optimizer: LinearLR(optimizer, 0.1, total_iters=2))
    (report,) = attacked(tmp_path, module=module).reports
    assert report.exact_match == 1.0 and report.margin < 0.01


def test_a_schedule_within_the_steps_does_not_apply(tmp_path: Path) -> None:
    def halving(interval: Any) -> Any:
        schedule = {"lr_scheduler": lambda optimizer: StepLR(optimizer, 1, 0.5), "schedule_interval": interval}
        return make(optimizer=sgd(0.01), **schedule)

    refused(tmp_path, "schedule gave 0.00125 to 0.01: let it step by rounds", module=halving("step"), local=FOUR_STEPS)
    (report,) = attacked(tmp_path, module=halving("epoch"), local=FOUR_STEPS).reports
    assert report.label_accuracy > 0.99


def groups(**head: Any) -> Any:
    """Return an optimizer whose last groups are the head's weight, with settings of its own, and its bias."""

    def make_it(parameters: Any) -> torch.optim.Optimizer:
        *body, weight, bias = parameters
        return torch.optim.SGD([{"params": body}, {"params": [weight], **head}, {"params": [bias]}], lr=0.05)

    return make_it


@pytest.mark.parametrize("head", [{"lr": 0.5}, {"weight_decay": 0.1}])
def test_a_head_with_a_group_of_its_own(tmp_path: Path, head: dict[str, float]) -> None:
    """Its bias is trained otherwise than its weight, and left out."""
    (report,) = attacked(tmp_path, module=make(optimizer=groups(**head))).reports
    assert report.exact_match == 1.0 and report.margin < 0.01
    refused(tmp_path, "one parameter group for the final", module=make(optimizer=groups(**head)), local=FOUR_STEPS)


# ---------------------------------------------------------------- optimizers


def test_the_first_step_of_any_sgd_is_exact(tmp_path: Path) -> None:
    """Nesterov's looks ahead by the momentum, dampening begins with the second."""
    for options in ({"momentum": 0.9, "nesterov": True}, {"momentum": 0.9, "dampening": 0.9}):
        module = make(optimizer=sgd(0.05, weight_decay=0.01, **options))
        assert attacked(tmp_path, module=module).reports[0].exact_match == 1.0


@pytest.mark.parametrize(
    ("options", "local", "reason"),
    [
        ({"momentum": 0.9, "nesterov": True}, FOUR_STEPS, "SGD has `nesterov`"),
        ({"momentum": 0.9, "dampening": 0.5}, FOUR_STEPS, "SGD has `dampening`"),
        ({"maximize": True}, ONE_STEP, "SGD has `maximize`"),
    ],
)
def test_sgd_of_other_kinds(tmp_path: Path, options: Any, local: LocalTraining, reason: str) -> None:
    refused(tmp_path, reason, module=make(optimizer=sgd(0.01, **options)), local=local)


def test_momentum_of_earlier_rounds(tmp_path: Path) -> None:
    """Two biases: the second round would attack clients that have a momentum from the first."""
    module = make(optimizer=sgd(0.1, momentum=0.9))
    module.settings.options["width"] = 1  # type: ignore[index]
    refused(tmp_path, "optimizers are kept", module=module, local=LocalTraining(steps=1, optimizer="kept"))


def test_other_optimizers_are_named(tmp_path: Path) -> None:
    module = make(optimizer=lambda parameters: torch.optim.RMSprop(parameters, lr=0.01))
    (report,) = attacked(tmp_path, module=module).reports
    notes = " ".join(report.notes)
    assert "train with RMSprop" in notes and "Adam" not in notes and report.exact_match < 1.0


# ---------------------------------------------------------------- losses


@pytest.mark.parametrize("options", [{"label_smoothing": 0.3}, {"class_weights": [1.0, 5.0, 0.2]}])
def test_a_loss_that_was_not_stated(tmp_path: Path, options: dict[str, Any]) -> None:
    refused(tmp_path, "set `loss`", module=make(optimizer=sgd(), **options))
    stated = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    (report,) = attacked(tmp_path, module=make(optimizer=sgd(), **options), audit={"loss": LossSpec(**stated)}).reports
    assert report.exact_match == 1.0


class ManyLabels(pl.LightningModule):
    """Five labels of which an example may have any number."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 5))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(self.net(batch["x"]), batch["labels"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5)


def test_several_labels_an_example(tmp_path: Path) -> None:
    """The batch size is that of examples; the labels of client k are counted by hand."""
    generator = torch.Generator().manual_seed(1)
    x, labels = torch.randn(40, 8, generator=generator), (torch.rand(40, 5, generator=generator) < 0.4).float()
    rows = [{"x": a, "labels": b} for a, b in zip(x, labels, strict=True)]
    loader = RoundLoader(rows, [list(range(10 * k, 10 * k + 10)) for k in range(4)], batch_size=10)
    loss = {"loss": LossSpec("bce_with_logits")}
    (report,) = attacked(tmp_path, module=ManyLabels(), loader=loader, audit=loss).reports
    assert [row.recovered for row in report.rows] == [tuple(labels[10 * k : 10 * k + 10].sum(0)) for k in range(4)]
    assert report.exact_match == 1.0 and report.margin < 0.01


# ---------------------------------------------------------------- formats of numbers


@pytest.mark.parametrize(("precision", "accuracy"), [("64-true", 1.0), ("bf16-true", 0.9)])
def test_true_precisions(tmp_path: Path, precision: str, accuracy: float) -> None:
    """In bfloat16 a single count may be off, since an update has some three digits."""
    (report,) = attacked(tmp_path, trainer={"precision": precision}).reports
    assert report.label_accuracy >= accuracy
    audit: Any = LabelInferenceAttack(num_clients=4, batch_size=4)
    callback: Any = audit if precision == "64-true" else AuditPage(num_clients=4, batch_size=4)
    run = pl.Trainer(
        accelerator="cpu",
        strategy=FederatedStrategy(FedIT(), CohortConfig(), ONE_STEP, seed=2),
        callbacks=[callback],
        precision=precision,  # type: ignore[arg-type]
        max_epochs=1,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
        **QUIET,
    )
    run.fit(make(optimizer=sgd()), data())
    report = callback.reports[0] if callback is audit else callback.result.report
    assert report.label_accuracy >= accuracy


# ---------------------------------------------------------------- rounds


class Leaves(pl.Callback):
    """Client 0 drops out of the first rounds."""

    def __init__(self, num_rounds: int) -> None:
        self.num_rounds = num_rounds

    def on_upload(self, trainer: Any, pl_module: Any, context: RoundContext) -> None:
        if context.round_idx < self.num_rounds and context.client.client_id == 0:  # type: ignore[union-attr]
            raise ClientFailureError(0, "left")


def narrow() -> Any:
    """Return a module whose norm has two biases, so that a round targets two of four clients."""
    module = make(optimizer=sgd())
    module.settings.options["width"] = 1  # type: ignore[index]
    return module


def test_a_client_that_left_is_a_target_again(tmp_path: Path) -> None:
    """Rounds target (0, 1), of whom 0 leaves, then (0, 2), then 3: three rounds, and everybody is found."""
    (report,) = attacked(tmp_path, Leaves(1), module=narrow(), trainer={"max_epochs": 6}).reports
    assert [row.recovered for row in report.rows] == [counts(shard) for shard in SHARDS]
    assert "up to 2:" in report.setting


def test_one_that_never_arrives_is_not_waited_for(tmp_path: Path) -> None:
    (report,) = attacked(tmp_path, Leaves(9), module=narrow(), trainer={"max_epochs": 9}).reports
    assert [row.client for row in report.rows] == [1, 2, 3] and report.exact_match == 1.0
    assert "up to 3:" in report.setting  # 1, then 2, then 3, then nobody new


def test_a_run_that_ends_before_the_attack_is_reported(tmp_path: Path) -> None:
    (report,) = attacked(tmp_path, module=narrow(), trainer={"max_epochs": 1}).reports
    assert [row.recovered is not None for row in report.rows] == [True, True, False, False]
    assert "up to 0:" in report.setting and (tmp_path / "label_inference_live.md").exists()
