"""The reference engine: one client after the other on one network, one optimizer step of one client per batch.

Values are swapped in place (`torch._foreach_copy_`), so Lightning's optimizer keeps its parameters. Every other engine
must equal this one to floating-point precision.
"""

import copy
from typing import Any

import torch
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch import Tensor
from torch.optim import Optimizer

from pl_fed.adapters import Adapter
from pl_fed.clients import ClientState
from pl_fed.engines.base import Engine
from pl_fed.updates import AdapterState, Slots


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


class SequentialEngine(Engine):
    """Trains clients one after the other."""

    name = "sequential"

    def __init__(self) -> None:
        self._schedule_start: list[dict[str, Any]] = []
        self._rng: dict[str, Any] | None = None
        self._restore_rng = False
        self._local: list[Tensor] | None = None  # the suspended client's values
        self._grads: list[Tensor | None] = []  # gradients of an open accumulation window

    def bind(self, adapter: Adapter, optimizers: list[Optimizer], schedules: list[LRSchedulerConfig]) -> None:
        """Take the live parameters; the schedules' present state is every client's start."""
        self._adapter, self._parameters = adapter, adapter.parameters()
        self._optimizers = optimizers
        self._schedules = [config for config in schedules if config.interval == "step"]
        self._schedule_start = self._schedule_state()

    def _schedule_state(self) -> list[dict[str, Any]]:
        return copy.deepcopy([config.scheduler.state_dict() for config in self._schedules])

    def _set_schedules(self, states: list[dict[str, Any]]) -> None:
        for config, state in zip(self._schedules, states, strict=True):
            config.scheduler.load_state_dict(copy.deepcopy(state))
            optimizer = config.scheduler.optimizer
            for group, lr in zip(optimizer.param_groups, state["_last_lr"], strict=True):
                group["lr"] = lr

    def begin(self, view: AdapterState, slots: Slots, client: ClientState, seed: int, kept: bool) -> None:
        """Load a client; without a kept state its optimizer and schedule start anew."""
        self._adapter.write(view, slots)
        for optimizer in self._optimizers:
            optimizer.state.clear()
        if kept and client.optimizer:
            for optimizer, state in zip(self._optimizers, client.optimizer["optimizers"], strict=True):
                state = copy.deepcopy(state)  # the optimizer would go on writing into the client's copy
                optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        self._set_schedules(client.optimizer["schedules"] if kept and client.optimizer else self._schedule_start)
        seed_rng(seed)
        self._rng, self._grads, self._restore_rng = rng_state(), [], False

    def finish(self, client: ClientState, kept: bool) -> None:
        """Keep copies of the optimizer's and the schedule's state."""
        if kept:
            states = [copy.deepcopy(optimizer.state_dict()["state"]) for optimizer in self._optimizers]
            client.optimizer = {"optimizers": states, "schedules": self._schedule_state()}

    def stepped(self, window_done: bool) -> None:
        """Note the random state, and the gradients of an open accumulation window."""
        self._rng = rng_state()
        self._grads = [] if window_done else [p.grad for p in self._parameters]

    def suspend(self, server: AdapterState) -> None:
        """Swap the server's adapter in; twice is once."""
        if self._local is None:
            self._local = [parameter.detach().clone() for parameter in self._parameters]
            self._adapter.write(server)

    @torch.no_grad()
    def resume(self) -> None:
        """Swap the client back in; its random numbers follow at the next batch."""
        if self._local is None:
            return
        torch._foreach_copy_([parameter.data for parameter in self._parameters], self._local)
        for parameter, gradient in zip(self._parameters, self._grads, strict=False):
            parameter.grad = None if gradient is None else gradient.to(parameter.device)
        self._local = None
        self._restore_rng = True

    def start_batch(self) -> None:
        """Undo, once after a resume, whatever drew random numbers meanwhile (new loader iterators do)."""
        if self._restore_rng and self._rng is not None:
            set_rng_state(self._rng)
        self._restore_rng = False

    def drop(self) -> None:
        """Forget the client in progress."""
        self._local, self._grads = None, []

    def state_dict(self) -> dict[str, Any]:
        """Return the client in progress; its parameters in the adapter's order."""
        local = self._local or [parameter.detach().clone() for parameter in self._parameters]
        grads = [None if gradient is None else gradient.clone() for gradient in self._grads]
        return {"local": local, "rng": self._rng, "grads": grads}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the client in progress; it stays suspended until `resume`."""
        self._local, self._rng, self._grads = state["local"], state["rng"], state["grads"]
