"""What a client's training depends on besides its tensors: random numbers, schedules, an optimizer's moments."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch import Tensor
from torch.optim import Optimizer

from pl_fed.adapters import Adapter
from pl_fed.updates import Slots


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


@torch.no_grad()
def forget_others(optimizers: Sequence[Optimizer], adapter: Adapter, slots: Slots) -> None:
    """Zero what optimizers remember of slots that a client does not hold, since momentum would train these.

    Args:
        optimizers: Train the adapter; what they keep for each number of a factor or diagonal is masked.
        adapter: The network's federated tensors.
        slots: The client's slots by layer.
    """
    for name, ids in slots.items():
        layer = adapter.layers[name]
        if len(ids) == layer.a.shape[0]:
            continue
        others = torch.ones_like(layer.b[0], dtype=torch.bool).index_fill_(0, ids, False)  # (rank,)
        masks: dict[Tensor, Tensor] = {layer.a: others[:, None], layer.b: others}
        if layer.diagonal is not None:
            masks[layer.diagonal] = others
        for parameter, state in ((p, o.state[p]) for o in optimizers for p in masks if p in o.state):
            for value in state.values():
                if isinstance(value, Tensor) and value.shape == parameter.shape and value.is_floating_point():
                    value.masked_fill_(masks[parameter], 0.0)


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
