"""A tiny GPT-2 with LoRA, its data and its federation, shared by the tests."""

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader, Dataset
from transformers import GPT2Config, GPT2LMHeadModel

from pl_fed.clients import ClientsConfig
from pl_fed.loaders import RoundLoader
from pl_fed.rounds import CohortConfig, LocalTraining
from pl_fed.strategy import FederatedStrategy

RANK, VOCAB, LENGTH = 4, 32, 8
SHARDS = [list(range(0, 8)), list(range(8, 13)), list(range(13, 24)), list(range(24, 30))]


class TinyLM(pl.LightningModule):
    """GPT-2 with two layers of width 8; LoRA on `c_attn`, a Conv1D of 8 x 24."""

    def __init__(self, optimizer: str = "adamw", dropout: float = 0.1, schedule: str | None = None) -> None:
        super().__init__()
        self.optimizer, self.schedule, self.strict_loading = optimizer, schedule, False
        torch.manual_seed(3)
        config = GPT2Config(
            n_layer=2,
            n_head=2,
            n_embd=8,
            vocab_size=VOCAB,
            n_positions=LENGTH,
            bos_token_id=0,
            eos_token_id=0,
            resid_pdrop=dropout,
            embd_pdrop=dropout,
            attn_pdrop=dropout,
            loss_type="ForCausalLM",
        )
        lora = LoraConfig(
            r=RANK, lora_alpha=2 * RANK, target_modules=["c_attn"], lora_dropout=dropout, fan_in_fan_out=True
        )
        self.model = get_peft_model(GPT2LMHeadModel(config), lora).train()

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.model(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = self.loss(batch)
        self.log("train/loss", loss, on_step=True)
        return loss

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        self.log("val/loss", self.loss(batch), batch_size=len(batch["input_ids"]))

    def test_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        self.log("test/loss", self.loss(batch), batch_size=len(batch["input_ids"]))

    def predict_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self.model(input_ids=batch["input_ids"]).logits.argmax(-1)

    def public_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Tokens(9), batch_size=3, shuffle=True, generator=torch.Generator())

    def configure_optimizers(self) -> Any:
        parameters = [p for p in self.parameters() if p.requires_grad]
        if self.optimizer == "adamw":
            optimizer: torch.optim.Optimizer = torch.optim.AdamW(parameters, lr=2e-2)
        else:
            optimizer = torch.optim.SGD(parameters, lr=0.5, momentum=0.9)
        if self.schedule is None:
            return optimizer
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": self.schedule}}


class Tokens(Dataset[dict[str, torch.Tensor]]):
    """Random token sequences, each learnable: a random walk with few states."""

    def __init__(self, num_examples: int = 30) -> None:
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(0, VOCAB, (num_examples, LENGTH), generator=generator)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index]}


def round_loader(shards: Sequence[Sequence[int]] = SHARDS, batch_size: int = 3, **kwargs: Any) -> RoundLoader:
    """Return a loader whose clients have unequal numbers of batches."""
    return RoundLoader(Tokens(), shards, batch_size=batch_size, **kwargs)


def eval_loader() -> DataLoader[Any]:
    """Return a loader over a few examples."""
    return DataLoader(Tokens(6), batch_size=3)


def make_strategy(rule: Any = None, **kwargs: Any) -> FederatedStrategy:
    """Return a federation of four clients with ranks 4, 3, 2, 1, three in a round."""
    kwargs.setdefault("cohort", CohortConfig(clients=3))
    kwargs.setdefault("local", LocalTraining(epochs=1))
    kwargs.setdefault("clients", ClientsConfig(ranks=[4, 3, 2, 1]))
    return FederatedStrategy(rule, seed=kwargs.pop("seed", 5), **kwargs)


def make_trainer(strategy: FederatedStrategy | str, **kwargs: Any) -> pl.Trainer:
    """Return a quiet Trainer on the CPU."""
    defaults: dict[str, Any] = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    defaults["enable_checkpointing"] = any(isinstance(c, Checkpoint) for c in kwargs.get("callbacks") or [])
    return pl.Trainer(strategy=strategy, **{**defaults, **kwargs})


def adapter_tensors(module: pl.LightningModule) -> dict[str, torch.Tensor]:
    """Return copies of the LoRA factors."""
    return {n: p.detach().clone() for n, p in module.named_parameters() if "lora_" in n and "diagonal" not in n}
