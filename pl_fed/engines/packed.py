"""Several clients at once on one network: one forward and backward pass over the shared base model for all of them.

Every client gets the gradients that it would get alone, since the loss is the sum of the clients' own losses and no
tensor that is trained belongs to two of them. Equal to the sequential engine but for the order of floating-point sums,
and for dropout, whose masks are drawn by (seed, round, client, step).
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch import Tensor
from torch.optim import Optimizer

from pl_fed.adapters import Adapter
from pl_fed.chunks import PackedBatch, Packing
from pl_fed.clients import ClientState
from pl_fed.engines.base import Engine
from pl_fed.engines.passes import Passes, with_gradients
from pl_fed.engines.stacks import Stacks
from pl_fed.engines.training_state import Schedules, rng_state, seed_rng, set_rng_state
from pl_fed.errors import FederatedConfigError
from pl_fed.packing import PackedNetwork
from pl_fed.rounds import derive_seed
from pl_fed.updates import AdapterState, Slots


class PackedEngine(Engine):
    """Trains the clients of a chunk together.

    Args:
        packing: How many.
    """

    name = "packed"

    def __init__(self, packing: Packing) -> None:
        self.packing, self.clients_per_chunk = packing, packing.clients
        self._passes = Passes()
        self._stacks: Stacks | None = None
        self._seeds: list[int] = []
        self._grads: list[Tensor | None] = []  # of an open accumulation window
        self._step = 0  # batches of the chunk that were trained
        self._rng: dict[str, Any] | None = None
        self._restore_rng = False

    def bind(self, adapter: Adapter, optimizers: list[Optimizer], schedules: list[LRSchedulerConfig]) -> None:
        """Take the adapter; the schedules' present state is every client's start."""
        self._adapter, self._optimizer = adapter, optimizers[0]
        self._schedules = Schedules(schedules)
        self._network: PackedNetwork | None = None
        self._passes = Passes()

    @property
    def stacks(self) -> Stacks:
        """The tensors of the chunk in training."""
        assert self._stacks is not None
        return self._stacks

    # ------------------------------------------------------------------ clients

    def open(self, num_clients: int) -> None:
        """Make room for the clients; optimizer and schedule start anew for all of them."""
        self._stacks, self._seeds, self._step = Stacks.empty(self._adapter.live(), num_clients), [], 0
        self._grads = []
        self._optimizer.state.clear()
        self._schedules.load(self._schedules.start)

    def begin(self, view: AdapterState, slots: Slots, client: ClientState, seed: int, kept: bool) -> None:
        """Load the next client through the network; with the last, the optimizer trains the chunk."""
        slot = len(self._seeds)
        self._adapter.write(view, slots)
        self.stacks.take(slot)
        self._seeds.append(seed)
        if len(self._seeds) == self.stacks.num_active:
            self.stacks.enter(self._optimizer)
            seed_rng(self._seeds[0])  # of whatever else draws random numbers in training
            self._rng, self._restore_rng = rng_state(), False

    def check_base(self, base: Mapping[str, Tensor]) -> None:
        """Refuse values for frozen tensors.

        Raises:
            FederatedConfigError: If a client was sent any.
        """
        if base:
            raise FederatedConfigError(
                f"Expected no values for frozen tensors with `engine: packed` but a client was sent {sorted(base)}: "
                "clients that train together share the base model. Set `engine: sequential`."
            )

    def load(self, slot: int) -> None:
        """Copy a client's tensors into the network."""
        self.stacks.give(slot)

    def views(self, slot: int) -> dict[str, Tensor]:
        """Return a client's slices of the stacks."""
        return self.stacks.views(slot)

    def finish(self, client: ClientState, kept: bool) -> None:
        """Keep nothing: `why_not` refuses kept optimizers."""

    def note(self, window_done: bool) -> None:
        """Note the random state, and the gradients of an open accumulation window."""
        self._rng = rng_state()
        found = [] if window_done else [p.grad for p in self.stacks.parameters]
        self._grads = [None if gradient is None else gradient.clone() for gradient in found]

    def stepped(self, window_done: bool, active: int) -> None:
        """Freeze the clients without batches left."""
        self._step += 1
        self.note(window_done)
        if window_done and active < self.stacks.num_active:
            self.stacks.narrow(active, self._optimizer)

    def drop(self) -> None:
        """Give the optimizer the network's tensors back."""
        if self._stacks is not None:
            self._stacks.leave(self._optimizer)
        self._stacks = None

    # ------------------------------------------------------------------ training

    def start_batch(self) -> None:
        """Undo, once after a resume, whatever drew random numbers meanwhile (new loader iterators do)."""
        if self._restore_rng and self._rng is not None:
            set_rng_state(self._rng)
        self._restore_rng = False

    def training_step(
        self, module: LightningModule, batch: PackedBatch, context: Callable[[], AbstractContextManager[Any]]
    ) -> Tensor:
        """Return the mean of the clients' losses, whose backward gives every slice its client's own gradient.

        Args:
            module: Has `packed_losses`.
            batch: A batch of each client that has one left.
            context: Lightning's context of a training step (precision).
        """
        if self._network is None:
            self._network = PackedNetwork(module, self._adapter)
        seeds = [derive_seed(seed, seed >> 32, self._step) for seed in self._seeds]
        self._passes.tokens = self.packing.tokens_on(module.device)
        losses, gradients = self._passes(module, self._network, self.stacks, batch.batches, seeds, context)
        sizes = losses.new_tensor([len(next(iter(own.values()))) for own in batch.batches])  # (clients,)
        mean = (losses * sizes).sum() / sizes.sum()
        log = getattr(module, "log_training_loss", None)
        if log is not None:
            log(mean, int(sizes.sum()))
        return with_gradients(mean, self.stacks.parameters, gradients)

    def clip_gradients(self, optimizer: Optimizer, max_norm: float) -> None:
        """Clip the norm of each client's gradients."""
        self.stacks.clip(optimizer, max_norm)

    # ------------------------------------------------------------------ interruptions

    def suspend(self, server: AdapterState) -> None:
        """Put the server's adapter into the network, which the clients' tensors are no part of."""
        self._adapter.write(server)

    def resume(self) -> None:
        """Let random numbers go on where they were, at the next batch."""
        self._restore_rng = True

    def state_dict(self) -> dict[str, Any]:
        """Return the stacks, the gradients of an open window, and what the next step depends on."""
        return {
            "values": [value.clone() for value in self.stacks.values],
            "active": self.stacks.num_active,
            "grads": self._grads,
            "seeds": list(self._seeds),
            "step": self._step,
            "rng": self._rng,
            "most_clients": self._passes.most_clients,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`; the optimizer has its state already, under the network's tensors."""
        live = self._adapter.live()
        pairs = zip(state["values"], live.values(), strict=True)
        values = [value.to(known.device) for value, known in pairs]
        self._stacks = Stacks(list(live), list(live.values()), values, state["active"])
        self._stacks.enter(self._optimizer)
        for parameter, gradient in zip(self._stacks.parameters, state["grads"], strict=False):
            parameter.grad = None if gradient is None else gradient.to(parameter.device)
        self._seeds, self._step, self._grads = list(state["seeds"]), state["step"], state["grads"]
        self._rng = state["rng"]
        self._passes.most_clients = state["most_clients"]
