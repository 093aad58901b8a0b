"""What a client's training depends on besides its tensors: random numbers and schedules of the learning rate."""

import copy
from typing import Any

import torch
from lightning.pytorch.utilities.types import LRSchedulerConfig


def rng_state() -> dict[str, Any]:
    """Return torch's random state on the CPU and on every CUDA device."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore `rng_state`."""
    torch.set_rng_state(state["cpu"].cpu())
    if state["cuda"]:
        torch.cuda.set_rng_state_all([value.cpu() for value in state["cuda"]])


def seed_rng(seed: int) -> None:
    """Seed torch on the CPU and on every CUDA device: `torch.manual_seed` asks every other back end too."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)


class Schedules:
    """The schedules that step within a client's training; the state at the beginning is every client's start.

    Args:
        configs: All of Lightning's schedules.
    """

    def __init__(self, configs: list[LRSchedulerConfig]) -> None:
        self._configs = [config for config in configs if config.interval == "step"]
        self.start = self.state()

    def state(self) -> list[dict[str, Any]]:
        """Return a copy of the present state."""
        return copy.deepcopy([config.scheduler.state_dict() for config in self._configs])

    def load(self, states: list[dict[str, Any]]) -> None:
        """Restore `state`, and the learning rates with it."""
        for config, state in zip(self._configs, states, strict=True):
            config.scheduler.load_state_dict(copy.deepcopy(state))
            optimizer = config.scheduler.optimizer
            for group, lr in zip(optimizer.param_groups, state["_last_lr"], strict=True):
                group["lr"] = lr
