"""The audit as a callback: in a plain Lightning project, without a trace in it."""

import csv
import inspect
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from pl_fed.attacks import FixedPointSum, LocalSteps, LossSpec
from pl_fed.attacks.audit import AuditSettings
from pl_fed.callbacks import LabelInferenceAttack
from pl_fed.errors import FederatedConfigError
from tests.helpers.audited import bert, digits, mlp
from tests.helpers.audited_runs import Net, fit, loader

ROOT = Path(__file__).parents[2]


WHEN = [
    ({"when": "fit_start"}, ["start"]),
    ({"when": "fit_end"}, ["end"]),
    ({"when": "every_n_epochs", "every_n_epochs": 2}, ["epoch_2", "epoch_4"]),
]


@pytest.mark.parametrize(("arguments", "names"), WHEN)
def test_reports(tmp_path: Path, arguments: dict[str, Any], names: list[str]) -> None:
    """Eight clients of 32 digits: everything recovered, and told to file, logger and attribute."""
    audit = LabelInferenceAttack(**arguments)
    fit(Net(), loader(), tmp_path, audit, logger=CSVLogger(tmp_path, None, "run"), max_epochs=4)
    assert sorted(path.name for path in (tmp_path / "run").glob("*.md")) == [f"label_inference_{n}.md" for n in names]
    assert len(audit.reports) == len(names)
    for report in audit.reports:
        assert report.exact_match == report.label_accuracy == 1.0 and 0.3 < report.guess < 0.95
        assert report.rank == report.num_models == 8 and report.condition < 4 and report.margin < 0.01
        assert set(report.baselines) == {"aggregate mix", "LLG", "iLRG"} and len(report.rows) == 8
    text = (tmp_path / "run" / f"label_inference_{names[-1]}.md").read_text()
    assert "Run by the owner of the data" in text and "| guess |" in text and "What stops it" in text
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines()))
    assert sum(row["audit/exact_match"] == "1.0" for row in rows) == len(names)


class Trace(pl.Callback):
    """Notes what an audit could have changed, after every step."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        flags = [(part.training, len(part._forward_pre_hooks)) for part in pl_module.modules()]
        grads = [None if p.grad is None else p.grad.clone() for p in pl_module.parameters()]
        state = {name: value.clone() for name, value in pl_module.state_dict().items()}
        self.seen.append((state, grads, flags, pl_module.steps, batch[1].clone(), torch.get_rng_state()))


@pytest.mark.parametrize("when", ["fit_start", "every_n_epochs"])
@pytest.mark.parametrize("own_generator", [False, True])
def test_the_run_is_the_same_bit_for_bit(tmp_path: Path, when: Any, own_generator: bool) -> None:
    """Parameters, buffers, gradients, flags, Python state, the order of the data, random numbers and metrics."""
    traces, metrics = [], []
    for audited in (False, True):
        torch.manual_seed(1)
        trace = Trace()
        data = loader(generator=torch.Generator().manual_seed(3)) if own_generator else loader()
        callbacks = [LabelInferenceAttack(when=when, local=LocalSteps(2, 0.1))] * audited
        trainer = fit(Net(mlp(32, dropout=0.2)), data, tmp_path, *callbacks, trace)
        traces.append(trace.seen)
        metrics.append(dict(trainer.callback_metrics))
    assert metrics[0] == metrics[1] and len(traces[0]) == len(traces[1]) == 20
    for before, after in zip(*traces, strict=True):
        assert before[2:4] == after[2:4] and torch.equal(before[4], after[4]) and torch.equal(before[5], after[5])
        assert all(torch.equal(value, after[0][name]) for name, value in before[0].items())
        assert all(
            (a is None) == (b is None) and (a is None or torch.equal(a, b))
            for a, b in zip(before[1], after[1], strict=True)
        )


def test_twice_the_same(tmp_path: Path) -> None:
    first, second, other = (LabelInferenceAttack(seed=seed) for seed in (0, 0, 1))
    for audit in (first, second, other):
        fit(Net(), loader(), tmp_path, audit, max_epochs=1)
    assert first.reports == second.reports != other.reports


class Rms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(64, 8), nn.RMSNorm(8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.body(x.flatten(1))))


def square(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits - nn.functional.one_hot(labels, 10)).square().mean()


def smooth(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, labels, label_smoothing=0.2)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Net(Rms()), "only RMSNorm"),
        (lambda: Net(loss=square), "a regression loss cannot be audited"),
        (lambda: Net(loss=smooth), "set `loss`"),
    ],
)
def test_says_where_it_does_not_apply(tmp_path: Path, make: Callable[[], Net], reason: str) -> None:
    """Training goes on; the reason is a warning and the report."""
    audit = LabelInferenceAttack(batch_size=16)
    with pytest.warns(UserWarning, match=f"does not apply: .*{reason}"):
        trainer = fit(make(), loader(), tmp_path, audit)
    text = (tmp_path / "label_inference_start.md").read_text()
    assert trainer.current_epoch == 2 and not audit.reports
    assert "Does not apply" in text and "no proof of safety" in text


def test_settings_reach_the_clients(tmp_path: Path) -> None:
    """Loss, local steps, clients, batch size, and a sum that sees as many vectors as there are clients and rounds."""
    sums: list[int] = []

    def secure_sum(vectors: Sequence[Tensor]) -> Tensor:
        sums.append(len(vectors))
        return FixedPointSum(24)(vectors)

    audit = LabelInferenceAttack(5, 16, LocalSteps(3, 0.01, 0.5, 1e-3), LossSpec(label_smoothing=0.2), secure_sum)
    fit(Net(loss=smooth), loader(), tmp_path, audit, max_epochs=1)
    (report,) = audit.reports
    assert sums == [5, 5] and len(report.rows) == 5  # the attacked round, and an honest one for the baselines
    assert all(sum(row.true) == 48 for row in report.rows) and report.label_accuracy > 0.95
    assert "3 step(s) of sgd at lr 0.01, fished at `net.2`, head `net.5`" in report.setting


def test_more_clients_than_the_rank_take_rounds(tmp_path: Path) -> None:
    audit = LabelInferenceAttack(num_clients=20, batch_size=8)
    fit(Net(mlp(8)), loader(), tmp_path, audit, max_epochs=1)
    assert audit.reports[0].exact_match == 1.0 and audit.reports[0].notes[0] == "3 rounds, each with other targets."


def test_adam_is_reported_as_broken(tmp_path: Path) -> None:
    audit = LabelInferenceAttack(local=LocalSteps(2, 0.01, optimizer="adam"))
    fit(Net(), loader(), tmp_path, audit, max_epochs=1)
    assert audit.reports[0].exact_match == 0.0 and "Adam" in (tmp_path / "label_inference_start.md").read_text()


def test_a_transformer_and_batches_that_are_mappings(tmp_path: Path) -> None:
    images, labels = digits()
    examples = [{"pixels": x, "labels": y} for x, y in zip(images[:320], labels[:320], strict=True)]
    audit = LabelInferenceAttack()
    fit(Net(bert()), DataLoader(examples, batch_size=32), tmp_path, audit, max_epochs=1)  # type: ignore[arg-type]
    assert audit.reports[0].exact_match == 1.0 and "LayerNorm" in audit.reports[0].setting


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        images, labels = digits()
        yield from zip(images[:64], labels[:64], strict=True)


def test_a_stream_is_iterated(tmp_path: Path) -> None:
    """Two batches only: clients get them in turn."""
    audit = LabelInferenceAttack(num_clients=3)
    fit(Net(), DataLoader(Stream(), batch_size=32), tmp_path, audit, max_epochs=1)
    rows = audit.reports[0].rows
    assert audit.reports[0].exact_match == 1.0 and rows[0].true == rows[2].true != rows[1].true
    with pytest.raises(FederatedConfigError, match="no `batch_size` for a loader that can only be iterated but got 8"):
        fit(Net(), DataLoader(Stream(), batch_size=32), tmp_path, LabelInferenceAttack(3, batch_size=8))


def test_a_dry_run_leaves_no_file(tmp_path: Path) -> None:
    audit = LabelInferenceAttack()
    fit(Net(), loader(), tmp_path, audit, fast_dev_run=True)
    assert len(audit.reports) == 1 and not list(tmp_path.rglob("*.md"))


class Manual(Net):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class SecondLast(LabelInferenceAttack):
    def labels(self, batch: Any) -> Tensor:
        return batch["digit"]


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(FederatedConfigError, match="automatic optimization .* but Manual steps by itself"):
        fit(Manual(), loader(), tmp_path, LabelInferenceAttack())
    choices: list[tuple[dict[str, Any], str]] = [
        ({"num_clients": 0}, "whole `num_clients`, .* of 1 or more but got 0"),
        ({"num_clients": 2.5}, "whole `num_clients`, .* but got 2.5, 1 and None"),
        ({"when": "never"}, r"`when` out of .*'fit_end'.* but got `never`"),
    ]
    for arguments, message in choices:
        with pytest.raises(FederatedConfigError, match=message):
            inspect.unwrap(LabelInferenceAttack.__init__)(object.__new__(LabelInferenceAttack), **arguments)


def test_labels_under_another_name(tmp_path: Path) -> None:
    images, labels = digits()
    examples = [{"pixels": x, "digit": y} for x, y in zip(images[:320], labels[:320], strict=True)]
    audit = SecondLast()
    fit(Net(), DataLoader(examples, batch_size=32), tmp_path, audit, max_epochs=1)  # type: ignore[arg-type]
    assert audit.reports[0].exact_match == 1.0
    assert isinstance(pickle.loads(pickle.dumps(LabelInferenceAttack())), LabelInferenceAttack)


def test_example(tmp_path: Path) -> None:
    """A project that knows nothing of federation, as a reader runs it."""
    script = ROOT / "examples" / "audit_any_lightning_project.py"
    done = subprocess.run(
        [sys.executable, str(script), "--folder", str(tmp_path), "--epochs", "1"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "| **the attack** | **1.000** | **1.000** |" in done.stdout
    assert (tmp_path / "label_inference_end.md").read_text().strip() in done.stdout


def test_it_is_configured_by_class_path() -> None:
    """As in a YAML file of LightningCLI."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--audit", type=LabelInferenceAttack)
    secure_sum = {"class_path": "pl_fed.attacks.FixedPointSum", "init_args": {"bits": 16}}
    arguments = {"local": {"steps": 4, "lr": 0.01}, "loss": {"label_smoothing": 0.1}, "secure_sum": secure_sum}
    path = "pl_fed.callbacks.LabelInferenceAttack"
    parsed = parser.parse_object({"audit": {"class_path": path, "init_args": {"when": "fit_end", **arguments}}})
    audit = parser.instantiate(parsed).audit
    assert audit.settings == AuditSettings(LocalSteps(4, 0.01), LossSpec(label_smoothing=0.1), FixedPointSum(16))
