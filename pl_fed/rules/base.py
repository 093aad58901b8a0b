"""What an aggregation rule is: which sides a client trains, what it sends, how the server puts updates together.

A rule is three small functions on plain tensors. It never sees the Trainer, and does not know whether clients share a
process. A new rule is one file beside this one that overrides what differs.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pl_fed.errors import FederatedConfigError
from pl_fed.rules.robust import RobustMean, add_robust
from pl_fed.updates import (
    AdapterState,
    Broadcast,
    LayerSlots,
    LayerState,
    Slots,
    Update,
    gather_columns,
    gather_rows,
    scatter_columns,
    scatter_rows,
    scattered,
)

Weights = Mapping[str, Sequence[float]]
"""Weight of each update by layer name; the key "" holds the weights of the dense tensors."""


@dataclass(frozen=True)
class TrainedLayer:
    """A layer in local training: its live factors, and the slots that the client holds."""

    a: Tensor
    b: Tensor
    diagonal: Tensor | None
    slots: Tensor


class Rule(ABC):
    """An aggregation rule; subclasses state their source in the file header.

    Args:
        mean: A robust mean in place of the weighted one, for rules that average.

    Attributes:
        source: Where it was published.
        up: What a client uploads for a layer, in numbers; D = d_in + d_out, r_k is the client's rank.
        down: What it downloads.
        sends_slots: Whether slot ids travel with the update (else clients hold the first slots, and a count is known).
        exact: Whether the new global model is the old one plus the weighted mean of the clients' dense updates.
        heterogeneous: Whether the published rule is for unequal ranks. The others are extended here: a slot that a
            client does not hold gets no change from it.
        sums_only: Whether the server needs no more than weighted sums of the updates (secure aggregation).
        averages: Whether the server takes a mean of the updates, which can be a robust one.
        merges: Whether the server changes the base model.
        rotates: Whether the server changes the basis of the slots; then they are ordered, and clients hold the first.
        reinitialises: Whether both sides draw new factors from the seed in every round, so that none is broadcast.
        keeps: What stays on the client (any of ``a``, ``b``, ``dense``): its model is its own, there is no global one.
        layer_weights: Whether a client's mass differs from layer to layer.
        why_not_averages: For errors: what the server does in place of a mean.
    """

    source = ""
    up, down = "", ""
    sends_slots = False
    exact = False
    heterogeneous = False
    sums_only = True
    averages = True
    merges = False
    rotates = False
    layer_weights = False
    reinitialises = False
    keeps: frozenset[str] = frozenset()
    why_not_averages = ""

    def __init__(self, mean: RobustMean | None = None) -> None:
        if mean is not None and not self.averages:
            raise FederatedConfigError(
                f"Expected no robust `mean` with {type(self).__name__} but got {mean}: {self.why_not_averages}. Use it "
                "with a rule that averages, such as AFLoRA, FedIT or FFALoRA."
            )
        self.mean = mean
        if mean is not None:  # it is no weighted mean, and needs every single update
            self.exact, self.sums_only = False, False

    @property
    def personalised(self) -> bool:
        """Whether each client has a model of its own, and the server none."""
        return bool(self.keeps & {"a", "b"})

    @abstractmethod
    def sides(self, round_idx: int) -> frozenset[str]:
        """Return what clients train in this round: any of ``a``, ``b``, ``diagonal``."""

    def optimizer_sides(self) -> frozenset[str]:
        """Return everything that a client may train in any round; the optimizer holds these."""
        return self.sides(0)

    def init(self, server: AdapterState, generator: torch.Generator) -> AdapterState:
        """Return the server's adapter before the first round; by default the one PEFT made."""
        return server

    def broadcast(self, server: AdapterState, slots: Slots, sides: frozenset[str] = frozenset({"a", "b"})) -> Broadcast:
        """Return what one client downloads: its slots of every layer.

        Args:
            server: The server's adapter.
            slots: The client's active slots.
            sides: The factors that the client does not have already.
        """
        send = sides - self.keeps
        layers = {}
        for name, ids in slots.items():
            layer = server.layers[name]
            a = gather_rows(layer.a, ids) if "a" in send else None
            b = gather_columns(layer.b, ids) if "b" in send else None
            layers[name] = LayerSlots(ids, a, b)
        return Broadcast(layers, {} if "dense" in self.keeps else dict(server.dense))

    def prune(self, before: AdapterState, after: AdapterState, slots: Slots) -> Slots:
        """Return the slots that a client holds after local training; by default those it had.

        Args:
            before: What the client received, at the server's rank.
            after: What it has after local training, diagonals folded.
            slots: The slots it holds.
        """
        return slots

    def update(
        self,
        before: AdapterState,
        after: AdapterState,
        diagonals: Mapping[str, Tensor],
        slots: Slots,
        sides: frozenset[str],
    ) -> dict[str, LayerSlots]:
        """Return the low-rank part of a client's update on `slots`, compact.

        Args:
            before: What the client received, at the server's rank.
            after: What it has after local training.
            diagonals: The learned diagonal by layer; folded into B.
            slots: The slots it still holds.
            sides: What it trained.
        """
        layers = {}
        for name, ids in slots.items():
            old, new = before.layers[name], after.layers[name]
            folded = new.b * diagonals[name] if name in diagonals else new.b  # B diag(lam), (d_out, rank)
            a = gather_rows(new.a - old.a, ids) if "a" in sides - self.keeps else None
            b = gather_columns(folded - old.b, ids) if "b" in sides - self.keeps else None
            layers[name] = LayerSlots(ids, a, b)
        return layers

    def mass(self, server: AdapterState, update: Update, layer: str) -> int:
        """Return a client's integer weight in a layer ("" for the dense tensors): its number of examples."""
        return update.num_examples

    def weights(self, server: AdapterState, updates: Sequence[Update]) -> Weights:
        """Return each update's weight by layer: its share of the mass."""
        weights = {}
        for name in ["", *server.layers]:
            mass = [self.mass(server, update, name) for update in updates]
            weights[name] = [m / (sum(mass) or 1) for m in mass]
        return weights

    def contribution(self, server: AdapterState, update: Update) -> dict[str, Tensor]:
        """Return what a client adds to a secure sum: flat tensors of one shape for all clients; with `sums_only`."""
        return scattered(update.layers, update.dense, server)

    def absorb(self, server: AdapterState, mean: Mapping[str, Tensor]) -> AdapterState:
        """Return the server's adapter after a round of which it knows the weighted mean contribution."""
        moved = {name: value + mean[name] if name in mean else value for name, value in server.tensors().items()}
        return AdapterState.from_tensors(moved)

    def aggregate(self, server: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the server's adapter after the round: every update added at its slots with its weight."""
        if self.mean is not None:
            return add_robust(server, updates, self.mean)
        return add_updates(server, updates, self.weights(server, updates))

    def renew(self, server: AdapterState, generator: torch.Generator) -> AdapterState:
        """Return the adapter of the next broadcast, after the server optimizer: the same function in another form."""
        return server

    def add_penalty(self, layers: Mapping[str, TrainedLayer]) -> None:  # noqa: B027  # a hook
        """Add the gradient of the rule's penalty on the factors of each layer; by default there is none."""

    @property
    def has_penalty(self) -> bool:
        """Whether `add_penalty` is to be called."""
        return type(self).add_penalty is not Rule.add_penalty

    def settings(self) -> dict[str, str]:
        """Return the rule's name and arguments, to recognise it in a checkpoint."""
        own = {key: repr(value) for key, value in sorted(vars(self).items()) if not isinstance(value, frozenset)}
        return {"rule": type(self).__name__, **own}


def example_shares(updates: Sequence[Update]) -> list[float]:
    """Return n_k / sum_j n_j."""
    total = sum(update.num_examples for update in updates)
    return [update.num_examples / total for update in updates]


def add_updates(server: AdapterState, updates: Sequence[Update], weights: Weights) -> AdapterState:
    """Return ``server + sum_k w_k scatter(update_k)``; a slot that nobody holds keeps its value bit for bit."""
    layers = {}
    for name, layer in server.layers.items():
        rank = layer.a.shape[0]
        a, b = layer.a.clone(), layer.b.clone()
        for update, weight in zip(updates, weights[name], strict=True):
            part = update.layers[name]
            if part.a is not None:
                a.add_(scatter_rows(part.a, part.slots, rank), alpha=weight)
            if part.b is not None:
                b.add_(scatter_columns(part.b, part.slots, rank), alpha=weight)
        layers[name] = LayerState(a, b)
    return AdapterState(layers, add_dense(server, updates, weights[""]), server.merged)


def add_dense(server: AdapterState, updates: Sequence[Update], weights: Sequence[float]) -> dict[str, Tensor]:
    """Return the dense tensors plus the weighted sum of their updates."""
    dense = {name: value.clone() for name, value in server.dense.items()}
    for update, weight in zip(updates, weights, strict=True):
        for name, value in update.dense.items():
            dense[name].add_(value, alpha=weight)
    return dense
