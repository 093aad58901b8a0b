"""The audit of a federated LoRA classifier as it is: a final linear layer, and norms that come from the server."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from torch.utils.data import DataLoader

from pl_fed.callbacks import LabelInferenceAttack
from pl_fed.loaders import RoundLoader
from pl_fed.modules import LoraSequenceClassifier, LoraSettings
from pl_fed.rounds import CohortConfig
from pl_fed.rules import FedIT
from pl_fed.strategy import FederatedStrategy
from tests.modules.tiny_models import class_rows, collate_classes


@pytest.mark.parametrize("federated", [True, False])
def test_lora_classifier(bert: str, tmp_path: Path, federated: bool) -> None:
    """Four clients with their own shards, under `FederatedStrategy` and under a plain Trainer."""
    rows = class_rows(40)
    shards = [[i for i, row in enumerate(rows) if row["client_id"] == k] for k in range(4)]
    loader = RoundLoader(rows, shards, batch_size=8, collate_fn=collate_classes)
    evaluation = DataLoader(rows, batch_size=8, collate_fn=collate_classes)  # type: ignore[arg-type]
    strategy = FederatedStrategy(FedIT(), cohort=CohortConfig(clients=2)) if federated else "auto"
    audit = LabelInferenceAttack(num_clients=4, when="fit_end")
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        strategy=strategy,
        callbacks=[audit],
        default_root_dir=tmp_path,
        enable_checkpointing=False,
        **quiet,
    )
    trainer.fit(LoraSequenceClassifier(bert, lora=LoraSettings(r=2), num_labels=3), loader, evaluation)
    (report,) = audit.reports
    assert report.exact_match == 1.0 and report.rank == 4 and report.condition < 100
    assert "encoder.layer.1.output.LayerNorm" in report.setting and "classifier" in report.setting
    assert all(sum(row.true) == 8 for row in report.rows)
