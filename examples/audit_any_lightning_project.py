"""An ordinary Lightning project, and one callback that says what a federation of it would leak.

    pip install -e . && python examples/audit_any_lightning_project.py

Nothing here knows of federation. The callback simulates clients on the training data, lets a malicious server craft
their models, and compares what it reads from the sum of their updates with the truth. It is an audit: run it on data
that you own. The report, with the guess baseline and the defences, is `label_inference_end.md` in the run's folder.
"""

import argparse
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pl_fed.callbacks import LabelInferenceAttack


class SmallNet(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 10),
        )

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        loss = nn.functional.cross_entropy(self.net(images), labels)
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def blobs(num_examples: int = 1024) -> TensorDataset:
    """Ten kinds of noisy images; a few classes are common, as in real life."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.multinomial(1.0 / torch.arange(1, 11), num_examples, replacement=True, generator=generator)
    kinds = torch.randn(10, 1, 8, 8, generator=generator)
    return TensorDataset(kinds[labels] + torch.randn(num_examples, 1, 8, 8, generator=generator), labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/audit_example"))
    parser.add_argument("--epochs", type=int, default=2)
    args = parser.parse_args()
    pl.seed_everything(0)
    audit = LabelInferenceAttack(num_clients=8, when="fit_end")
    trainer = pl.Trainer(
        max_epochs=args.epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        default_root_dir=args.folder,
        callbacks=[audit],
    )
    trainer.fit(SmallNet(), DataLoader(blobs(), batch_size=32, shuffle=True))
    print(audit.reports[-1].markdown())


if __name__ == "__main__":
    main()
