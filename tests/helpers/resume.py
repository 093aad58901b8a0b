"""Short runs that write checkpoints, go on from one, and say all that is to be equal at the end."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Checkpoint

from pl_fed.rules import AFLoRA
from tests.helpers.tiny import TinyLM, adapter_tensors, eval_loader, make_strategy, make_trainer, round_loader


class SaveEveryBatch(Checkpoint):
    """Writes a checkpoint after every batch, also inside accumulation windows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        trainer.save_checkpoint(self.folder / f"{len(list(self.folder.iterdir())):03}.ckpt")


def run(case: dict[str, Any], ckpt: Path | None = None, callbacks: list[Any] | None = None) -> dict[str, torch.Tensor]:
    """Fit three rounds, maybe from a checkpoint; return the adapter, the changed base, and what clients keep."""
    module = case.get("network", TinyLM)(case.get("optimizer", "adamw"), **case.get("module", {}))
    strategy = make_strategy(case.get("rule", AFLoRA)(), **case.get("strategy", {}))
    extra = [make() for make in case.get("callbacks", [])]
    settings = {"max_epochs": 3, **case.get("trainer", {})}
    trainer = make_trainer(strategy, callbacks=[*extra, *(callbacks or [])], **settings)
    shards = {"shards": case["shards"]} if "shards" in case else {}
    trainer.fit(module, round_loader(**shards, **case.get("loader", {})), eval_loader(), ckpt_path=ckpt)
    merged = {name: value.clone() for name, value in module.named_buffers() if name.endswith("lora_merged")}
    clients = strategy.loop.federation.states  # type: ignore[union-attr]
    kept = {f"client {k} {n}": v for k, s in clients.items() for n, v in {**s.kept, **s.control, **s.slots}.items()}
    return {**adapter_tensors(module), **merged, **kept}
