"""What an engine is: the local training of a cohort on one network.

The round driver tells an engine which client comes next; Lightning's own loop makes the optimizer steps.
"""

from abc import ABC, abstractmethod
from typing import Any

from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch.optim import Optimizer

from pl_fed.adapters import Adapter
from pl_fed.clients import ClientState
from pl_fed.updates import AdapterState, Slots


class Engine(ABC):
    """Trains clients on the network that `Adapter` is bound to."""

    name: str

    @abstractmethod
    def bind(self, adapter: Adapter, optimizers: list[Optimizer], schedules: list[LRSchedulerConfig]) -> None:
        """Take the network's adapter and Lightning's optimizers and schedules; called once per fit."""

    @abstractmethod
    def begin(self, view: AdapterState, slots: Slots, client: ClientState, seed: int, kept: bool) -> None:
        """Load a client: its adapter, optimizer, schedule and random numbers."""

    @abstractmethod
    def finish(self, client: ClientState, kept: bool) -> None:
        """Let a client's optimizer and schedule go into its state, if they are kept."""

    @abstractmethod
    def start_batch(self) -> None:
        """Note that a batch of the client in progress is about to be trained."""

    @abstractmethod
    def stepped(self, window_done: bool) -> None:
        """Note that one batch was trained; `window_done` is False inside an accumulation window."""

    @abstractmethod
    def suspend(self, server: AdapterState) -> None:
        """Put the client aside and the server's adapter into the network (validation, the end of a run)."""

    @abstractmethod
    def resume(self) -> None:
        """Put the suspended client back."""

    @abstractmethod
    def drop(self) -> None:
        """Forget the client in progress."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return the client in progress as tensors and primitives."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`; the client is suspended until `resume`."""
