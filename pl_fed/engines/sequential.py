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
from pl_fed.engines.training_state import Schedules, forget_others, rng_state, seed_rng, set_rng_state
from pl_fed.updates import AdapterState, Slots


class SequentialEngine(Engine):
    """Trains clients one after the other."""

    name = "sequential"

    def __init__(self) -> None:
        self._rng: dict[str, Any] | None = None
        self._restore_rng = False
        self._local: list[Tensor] | None = None  # the suspended client's values
        self._grads: list[Tensor | None] = []  # gradients of an open accumulation window

    def bind(self, adapter: Adapter, optimizers: list[Optimizer], schedules: list[LRSchedulerConfig]) -> None:
        """Take the live parameters; the schedules' present state is every client's start."""
        self._adapter, self._parameters = adapter, adapter.parameters()
        self._optimizers = optimizers
        self._schedules = Schedules(schedules)

    def open(self, num_clients: int) -> None:
        """Begin a chunk, which is a client."""
        assert num_clients == 1

    def begin(self, view: AdapterState, slots: Slots, client: ClientState, seed: int, kept: bool) -> None:
        """Load a client; without a kept state its optimizer and schedule start anew."""
        self._adapter.write(view, slots)
        for optimizer in self._optimizers:
            optimizer.state.clear()
        if kept and client.optimizer:
            for optimizer, state in zip(self._optimizers, client.optimizer["optimizers"], strict=True):
                state = copy.deepcopy(state)  # the optimizer would go on writing into the client's copy
                optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
            forget_others(self._optimizers, self._adapter, slots)
        self._schedules.load(client.optimizer["schedules"] if kept and client.optimizer else self._schedules.start)
        seed_rng(seed)
        self._rng, self._grads, self._restore_rng = rng_state(), [], False

    def load(self, slot: int) -> None:
        """Do nothing: the client is in the network."""

    def views(self, slot: int) -> dict[str, Tensor]:
        """Return the network's tensors."""
        return self._adapter.live()

    def finish(self, client: ClientState, kept: bool) -> None:
        """Keep copies of the optimizer's and the schedule's state; a pruned slot that comes back starts anew."""
        if kept:
            forget_others(self._optimizers, self._adapter, client.slots)
            states = [copy.deepcopy(optimizer.state_dict()["state"]) for optimizer in self._optimizers]
            client.optimizer = {"optimizers": states, "schedules": self._schedules.state()}

    def note(self, window_done: bool) -> None:
        """Note the random state, and the gradients of an open accumulation window."""
        self._rng = rng_state()
        self._grads = [] if window_done else [p.grad for p in self._parameters]

    def stepped(self, window_done: bool, active: int) -> None:
        """Note what the next batch depends on."""
        self.note(window_done)

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
