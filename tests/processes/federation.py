"""What one of several processes does: ``python -m tests.processes.federation FOLDER NAME...``, started like torchrun.

Every process leaves ``<name>-<rank>.pt`` with what its run ended with.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from tests.helpers.tiny import TinyLM, adapter_tensors, eval_loader, make_strategy, make_trainer, round_loader
from tests.test_resume import CASES, PEERS, SHORT

NUM_ROUNDS = 3
ALL = {**CASES, **{name: {**SHORT, **case} for name, case in PEERS.items()}}
INSIDE_ROUNDS = {"validation-inside-rounds"}


def run(
    case: dict[str, Any], devices: int = 1, rounds: int = NUM_ROUNDS, ckpt: Path | None = None, save: Path | None = None
) -> dict[str, Any]:
    """Fit and return the adapter, the changed base, what clients keep, and the counts of steps and batches."""
    module = TinyLM(case.get("optimizer", "adamw"), **case.get("module", {}))
    strategy = make_strategy(case.get("rule", lambda: None)(), **case.get("strategy", {}))
    callbacks = [make() for make in case.get("callbacks", [])]
    if save is not None:
        callbacks.append(ModelCheckpoint(save, filename="end", enable_version_counter=False))
    options = {**case.get("trainer", {}), "devices": devices, "max_epochs": rounds, "callbacks": callbacks}
    trainer = make_trainer(strategy, **options)
    shards = {"shards": case["shards"]} if "shards" in case else {}
    trainer.fit(module, round_loader(**shards, **case.get("loader", {})), eval_loader(), ckpt_path=ckpt)
    federation = strategy.loop.federation
    assert federation is not None
    merged = {name: value.clone() for name, value in module.named_buffers() if name.endswith("lora_merged")}
    states = federation.states.items()
    kept = {f"client {k} {n}": v for k, s in states for n, v in {**s.kept, **s.control, **s.slots}.items()}
    total = trainer.fit_loop.epoch_loop.batch_progress.total
    counts = torch.tensor([trainer.global_step, trainer.current_epoch, total.ready, total.completed])
    return {**adapter_tensors(module), **merged, **kept, "counts": counts}


def main(folder: Path, names: list[str]) -> None:
    for name in names:
        found = run(ALL[name], devices=2, save=folder / name)
        torch.save(found, folder / f"{name}-{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
