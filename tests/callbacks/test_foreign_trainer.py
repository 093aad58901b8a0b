"""Every callback is harmless under a Trainer without rounds, of either copy of Lightning."""

import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger

from pl_fed.callbacks import (
    CommunicationMonitor,
    FederatedProgressBar,
    FederatedRichProgressBar,
    RoundPlots,
    RunSummary,
    WandbRounds,
)

ROOT = Path(__file__).parents[2]
BODY = """
import sys, warnings
warnings.simplefilter("error")
warnings.filterwarnings("ignore", ".*does not have many workers")
warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated", FutureWarning)
warnings.filterwarnings("ignore", ".*smaller than the logging interval")
import pytorch_lightning as pl
from pytorch_lightning.demos.boring_classes import BoringModel
from pytorch_lightning.loggers import CSVLogger, WandbLogger

from pl_fed.callbacks import *

bars = [FederatedProgressBar(), FederatedRichProgressBar(refresh_rate=0)]
loggers = [CSVLogger(sys.argv[1], version="run"), WandbLogger(save_dir=sys.argv[1], mode="offline")]
for bar, logger in zip(bars, loggers):
    callbacks = [bar, CommunicationMonitor(), RunSummary(), RoundPlots(metrics=["x"]), WandbRounds(config={"a": 1})]
    assert all(isinstance(callback, pl.Callback) for callback in callbacks)
    trainer = pl.Trainer(
        max_epochs=1, limit_train_batches=2, limit_val_batches=2, limit_test_batches=2, accelerator="cpu",
        logger=logger, callbacks=callbacks, enable_model_summary=False,
    )
    trainer.fit(BoringModel())
    trainer.save_checkpoint(f"{sys.argv[1]}/last.ckpt")
    trainer.test(BoringModel(), verbose=False)
print("done")
"""


@pytest.mark.parametrize("bar", [FederatedProgressBar, FederatedRichProgressBar])
def test_plain_trainer(bar: type, tmp_path: Path) -> None:
    callbacks = [bar(), CommunicationMonitor(), RunSummary(), RoundPlots(), WandbRounds()]
    logger = CSVLogger(tmp_path, name=None, version="run")
    options: Any = {f"limit_{stage}_batches": 2 for stage in ("train", "val", "test")}
    options |= {"accelerator": "cpu", "enable_checkpointing": False, "enable_model_summary": False}
    trainer = Trainer(max_epochs=2, logger=logger, callbacks=callbacks, **options)
    trainer.fit(BoringModel())
    trainer.test(BoringModel(), verbose=False)
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"summary.json"}
    assert not (tmp_path / "run" / "clients.csv").exists()
    saved = tmp_path / "last.ckpt"
    trainer.save_checkpoint(saved)
    assert {"CommunicationMonitor", "RunSummary", "WandbRounds"} <= set(
        torch.load(saved, weights_only=True)["callbacks"]
    )
    resumed = Trainer(max_epochs=3, logger=False, default_root_dir=tmp_path, callbacks=callbacks, **options)
    resumed.fit(BoringModel(), ckpt_path=saved)
    assert (tmp_path / "summary.json").is_file()


def test_pytorch_lightning_trainer(tmp_path: Path) -> None:
    """In a process that imported only `pytorch_lightning` before."""
    (tmp_path / "run.py").write_text(textwrap.dedent(BODY))
    done = subprocess.run(
        [sys.executable, "run.py", str(tmp_path)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(tmp_path), "WANDB_SILENT": "true"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("done")
    assert (tmp_path / "lightning_logs" / "run" / "summary.json").is_file()
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 1


def test_all_pickle() -> None:
    for kind in (CommunicationMonitor, RunSummary, RoundPlots, WandbRounds, FederatedProgressBar):
        assert isinstance(pickle.loads(pickle.dumps(kind())), kind)
