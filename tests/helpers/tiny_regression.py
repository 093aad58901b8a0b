"""Two linear layers with LoRA, of unlike widths, and the data of four clients: the counterpart of the Conv1D model."""

from typing import Any

import lightning.pytorch as pl
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils.data import Dataset


class TinyRegression(pl.LightningModule):
    """10 -> 7 -> 5 with a tanh between; rank 4."""

    def __init__(self, optimizer: str = "sgd") -> None:
        super().__init__()
        self.optimizer, self.strict_loading = optimizer, False
        torch.manual_seed(5)
        network = nn.Sequential(nn.Linear(10, 7), nn.Tanh(), nn.Linear(7, 5))
        self.model = get_peft_model(network, LoraConfig(r=4, lora_alpha=8, target_modules=["0", "2"], lora_dropout=0.1))

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        x, y = (batch[key].to(next(self.parameters()).dtype) for key in "xy")
        return (self.model(x) - y).square().mean()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.loss(batch)

    def configure_optimizers(self) -> Any:
        parameters = [p for p in self.parameters() if p.requires_grad]
        if self.optimizer == "adamw":
            return torch.optim.AdamW(parameters, lr=2e-2)
        return torch.optim.SGD(parameters, lr=0.2, momentum=0.9)


class Points(Dataset[dict[str, Tensor]]):
    """Random inputs and outputs in float64."""

    def __init__(self, num_examples: int = 30) -> None:
        generator = torch.Generator().manual_seed(2)
        self.x = torch.randn(num_examples, 10, generator=generator, dtype=torch.float64)
        self.y = torch.randn(num_examples, 5, generator=generator, dtype=torch.float64)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index], "y": self.y[index]}
