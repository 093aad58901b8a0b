"""What an engine is: the local training of a cohort on one network.

The round driver tells an engine which clients come next; Lightning's own loop makes the optimizer steps.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch import Tensor
from torch.optim import Optimizer

from pl_fed.adapters import Adapter
from pl_fed.clients import ClientState
from pl_fed.updates import AdapterState, Slots


class Engine(ABC):
    """Trains a chunk of clients at a time on the network that `Adapter` is bound to.

    Attributes:
        name: As in `FederatedStrategy(engine=...)`.
        clients_per_chunk: How many clients train together, with batches for all of them (`PackedBatch`); None for one
            at a time with batches of its own.
    """

    name: str
    clients_per_chunk: int | None = None

    @abstractmethod
    def bind(self, adapter: Adapter, optimizers: list[Optimizer], schedules: list[LRSchedulerConfig]) -> None:
        """Take the network's adapter and Lightning's optimizers and schedules; called once per fit."""

    @abstractmethod
    def open(self, num_clients: int) -> None:
        """Begin a chunk; `begin` follows for each of its clients, those with more batches first."""

    @abstractmethod
    def begin(self, view: AdapterState, slots: Slots, client: ClientState, seed: int, kept: bool) -> None:
        """Load the next client of the chunk: its adapter, optimizer, schedule and random numbers."""

    @abstractmethod
    def load(self, slot: int) -> None:
        """Put what a client of the chunk has trained into the network, for `finish`."""

    @abstractmethod
    def views(self, slot: int) -> dict[str, Tensor]:
        """Return a client's live tensors and gradients under the flat names of `Adapter.live`."""

    def check_base(self, base: Mapping[str, Tensor]) -> None:  # noqa: B027  # a hook
        """Refuse values for frozen tensors that a client was sent, if clients share these."""

    @abstractmethod
    def finish(self, client: ClientState, kept: bool) -> None:
        """Let a client's optimizer and schedule go into its state, if they are kept."""

    @abstractmethod
    def start_batch(self) -> None:
        """Note that a batch of the chunk is about to be trained."""

    @abstractmethod
    def note(self, window_done: bool) -> None:
        """Note what the next batch depends on, for a checkpoint.

        Args:
            window_done: False inside an accumulation window.
        """

    @abstractmethod
    def stepped(self, window_done: bool, active: int) -> None:
        """Note that one batch was trained.

        Args:
            window_done: False inside an accumulation window.
            active: How many clients of the chunk have batches left; they are its first.
        """

    @abstractmethod
    def suspend(self, server: AdapterState) -> None:
        """Put the clients aside and the server's adapter into the network (validation, the end of a run)."""

    @abstractmethod
    def resume(self) -> None:
        """Put the suspended clients back."""

    @abstractmethod
    def drop(self) -> None:
        """Forget the chunk, which is done or given up."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return the clients in progress as tensors and primitives."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`; the clients are suspended until `resume`."""
