"""`LoraSequenceClassifier`: figures against hand-computed cases, the head, and that it learns."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger
from torch.utils.data import DataLoader

from pl_fed.errors import FederatedConfigError
from pl_fed.loaders import ClientLoader, RoundLoader
from pl_fed.modules import LoraSequenceClassifier, LoraSettings
from pl_fed.modules.evaluation import ClassifierEvaluation
from pl_fed.modules.reporting import log_client_table
from tests.modules.tiny_models import class_rows, collate_classes

Make = Callable[..., pl.Trainer]


def test_figures_of_a_hand_computed_case() -> None:
    """Labels 0 0 0 1 1 2, guesses 0 0 1 1 2 2; class 3 occurs nowhere.

    F1 of class 0: 2*2 / (2*2 + 0 + 1) = 4/5; of class 1: 2*1 / (2*1 + 1 + 1) = 1/2; of class 2: 2*1 / (2*1 + 1 + 0) =
    2/3; their mean is 59/90. Right are 4 of 6. Clients: 4 has 2 of 2, 8 has 0 of 1, 6 has 1 of 2, nobody has the last.
    """
    labels, guesses = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 0, 1, 1, 2, 2])
    clients = torch.tensor([4, 4, 8, 6, 6, -1])
    logits = torch.eye(4)[guesses]
    evaluation = ClassifierEvaluation(4)
    for part in (slice(0, 4), slice(4, 6)):
        evaluation.update(logits[part], labels[part], clients[part])
    table = evaluation.table()
    assert table == {4: 1.0, 6: 0.5, 8: 0.0}
    found = evaluation.results(table)
    right, wrong = (torch.tensor([x, 1.0 - x, 0.0, 0.0]).log_softmax(0)[0] for x in (1.0, 0.0))
    expected = {
        "loss": -float(4 * right + 2 * wrong) / 6,
        "accuracy": 4 / 6,
        "macro_f1": 59 / 90,
        "client_mean_accuracy": 0.5,
        "worst_client_accuracy": 0.0,
        "worst_client_id": 8.0,
    }
    assert found == pytest.approx(expected)


def test_the_first_of_equally_bad_clients_is_worst() -> None:
    evaluation = ClassifierEvaluation(2)
    evaluation.update(torch.eye(2), torch.tensor([1, 0]), torch.tensor([9, 3]))
    assert evaluation.results(evaluation.table())["worst_client_id"] == 3.0


def make_module(bert: str, **changes: Any) -> LoraSequenceClassifier:
    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=5e-2)

    settings = {"lora": LoraSettings(r=2), "num_labels": 3, "optimizer": optimizer, **changes}
    return LoraSequenceClassifier(bert, **settings)


def test_it_learns_under_a_plain_trainer(bert: str, trainer: Make) -> None:
    """All clients' examples pooled; the class is the word that a text repeats."""
    rows = class_rows()
    train = RoundLoader(rows, [list(range(12)), list(range(12, 24))], batch_size=8, collate_fn=collate_classes)
    loader = DataLoader(rows, batch_size=5, collate_fn=collate_classes)  # type: ignore[arg-type]
    module, run = make_module(bert), trainer(max_epochs=15)
    before = run.validate(module, loader, verbose=False)[0]
    run.fit(module, train, loader)
    after = run.callback_metrics
    assert float(after["val/loss"]) < 0.5 * before["val/loss"]
    assert float(after["val/accuracy"]) == float(after["val/macro_f1"]) == 1.0
    assert module.client_metrics["val"] == {0: 1.0, 1: 1.0, 2: 1.0, 3: 1.0}
    assert "train/loss" in after
    predictions = trainer().predict(module, loader)
    assert predictions is not None
    found = torch.cat([p["label"] for p in predictions])  # type: ignore[call-overload,index]
    assert found.tolist() == [row["label"] for row in rows]
    sums = torch.cat([p["probabilities"] for p in predictions]).sum(1)  # type: ignore[call-overload,index]
    torch.testing.assert_close(sums, torch.ones(len(rows)))


def test_global_and_personalised_figures_are_apart(bert: str, trainer: Make, tmp_path: Path) -> None:
    """The personalised loader is seen with another head, as a strategy would swap it in."""
    rows = class_rows()
    shards = [[i for i, row in enumerate(rows) if row["client_id"] == k] for k in range(4)]
    options: dict[str, Any] = {"batch_size": 4, "collate_fn": collate_classes}
    loaders = [ClientLoader(rows, shards, personalised=own, **options) for own in (False, True)]

    class Swap(pl.Callback):
        def on_test_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int, idx: int = 0) -> None:
            """Always answer 0 for the global adapter, and client 1's own class for the personalised."""
            head = module.model.base_model.model.classifier.modules_to_save["default"]
            head.weight.zero_()
            head.bias.copy_(torch.eye(3)[1 if idx else 0])

    run = trainer(callbacks=[Swap()], logger=CSVLogger(tmp_path, name="run", version=0))
    module = make_module(bert)
    run.test(module, loaders, verbose=False)
    # client k holds rows k, k + 4, ..., whose classes go round 0 1 2 twice
    assert module.client_metrics["test_clients"] == pytest.approx(dict.fromkeys(range(4), 1 / 3))
    assert float(run.callback_metrics["test_clients/accuracy"]) == pytest.approx(1 / 3)
    assert float(run.callback_metrics["test_personalised/macro_f1"]) == pytest.approx(1 / 6)
    for prefix in ("test_clients", "test_personalised"):
        table = list(csv.reader((tmp_path / "run/version_0" / f"clients_{prefix}.csv").read_text().splitlines()))
        assert table[0] == ["client_id", "accuracy"] and [row[0] for row in table[1:]] == ["0", "1", "2", "3"]


def test_tables_go_where_loggers_keep_them() -> None:
    class Tables:
        log_dir = None

        def log_table(self, key: str, columns: list[str], data: list[list[Any]]) -> None:
            self.seen = (key, columns, data)

    class Nowhere:
        pass

    tables = Tables()
    log_client_table([tables, Nowhere()], "val", "loss", {3: 0.5})
    assert tables.seen == ("val/clients", ["client_id", "loss"], [[3, 0.5]])


def test_sanity_checks_write_no_tables(
    bert: str, trainer: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = class_rows(6)
    loader = DataLoader(rows, batch_size=3, collate_fn=collate_classes)  # type: ignore[arg-type]
    logger: Logger = CSVLogger(tmp_path, name="run", version=0)
    run = trainer(num_sanity_val_steps=1, limit_train_batches=1, limit_val_batches=0, logger=logger)
    run.fit(make_module(bert), loader, loader)
    assert not list(tmp_path.rglob("clients_*.csv"))


def test_the_clients_follow_the_whole(bert: str, trainer: Make, tmp_path: Path) -> None:
    """`WandbRounds` puts the round into the row that comes next: it must be that of the figures."""
    seen: list[str] = []

    class Tables(CSVLogger):
        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            seen.extend(name for name in metrics if name.endswith("/loss"))

        def log_table(self, key: str, **table: Any) -> None:
            seen.append(key)

    loader = DataLoader(class_rows(6), batch_size=3, collate_fn=collate_classes)  # type: ignore[arg-type]
    run, module = trainer(logger=Tables(tmp_path)), make_module(bert)
    run.validate(module, loader, verbose=False)
    run.test(module, loader, verbose=False)
    assert seen == ["val/loss", "val/clients", "test/loss", "test/clients"]


# The number of labels.


class Labels(pl.LightningDataModule):
    num_labels = 3

    def predict_dataloader(self) -> Any:
        return DataLoader(class_rows(3), batch_size=3, collate_fn=collate_classes)  # type: ignore[arg-type]


def test_number_of_labels_comes_from_the_datamodule(bert: str, trainer: Make) -> None:
    module = make_module(bert, num_labels=None)
    predictions = trainer().predict(module, datamodule=Labels())
    assert predictions is not None and predictions[0]["probabilities"].shape == (3, 3)  # type: ignore[call-overload,index]
    assert module.hparams["num_labels"] == 3  # for a checkpoint, which loads without data


def test_number_of_labels_must_be_known(bert: str, trainer: Make) -> None:
    with pytest.raises(FederatedConfigError, match="`num_labels` or a datamodule with `num_labels` but NoneType has"):
        make_module(bert, num_labels=None).configure_model()
    loader = DataLoader(class_rows(3), batch_size=3, collate_fn=collate_classes)  # type: ignore[arg-type]
    with pytest.raises(FederatedConfigError, match="`num_labels` or a datamodule"):
        trainer().predict(make_module(bert, num_labels=None), loader)
