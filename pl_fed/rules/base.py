"""What an aggregation rule is: which sides a client trains, what it sends, how the server puts updates together.

A rule is three small functions on plain tensors. It never sees the Trainer, and does not know whether clients share a
process. A new rule is one file beside this one that overrides what differs.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pl_fed.updates import (
    AdapterState,
    Broadcast,
    LayerSlots,
    LayerState,
    Slots,
    Update,
    scatter_columns,
    scatter_rows,
)

Weights = Mapping[str, Sequence[float]]
"""Weight of each update by layer name; the key "" holds the weights of the dense tensors."""


class Rule(ABC):
    """An aggregation rule; subclasses state their source in the file header.

    Attributes:
        sends_slots: Whether slot ids travel with the update (else clients hold the first slots, and a count is known).
    """

    sends_slots = False

    @abstractmethod
    def sides(self, round_idx: int) -> frozenset[str]:
        """Return what clients train and send in this round: any of ``a``, ``b``, ``diagonal``."""

    def optimizer_sides(self) -> frozenset[str]:
        """Return everything that a client may train in any round; the optimizer holds these."""
        return self.sides(0)

    def init(self, server: AdapterState, generator: torch.Generator) -> AdapterState:
        """Return the server's adapter before the first round; by default the one PEFT made."""
        return server

    def broadcast(self, server: AdapterState, slots: Slots, send_a: bool) -> Broadcast:
        """Return what one client downloads: its slots of every layer.

        Args:
            server: The server's adapter.
            slots: The client's active slots.
            send_a: Whether the client does not have its rows of A already.
        """
        layers = {
            name: LayerSlots(ids, server.layers[name].a[ids] if send_a else None, server.layers[name].b[:, ids])
            for name, ids in slots.items()
        }
        return Broadcast(layers, dict(server.dense))

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
            a = (new.a - old.a)[ids] if "a" in sides else None
            b = (folded - old.b)[:, ids] if "b" in sides else None
            layers[name] = LayerSlots(ids, a, b)
        return layers

    def weights(self, server: AdapterState, updates: Sequence[Update]) -> Weights:
        """Return each update's weight by layer: its share of the examples."""
        shares = example_shares(updates)
        return {name: shares for name in ["", *server.layers]}

    def aggregate(self, server: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the server's adapter after the round: every update added at its slots with its weight."""
        return add_updates(server, updates, self.weights(server, updates))

    def add_penalty(self, layers: Mapping[str, tuple[Tensor, Tensor, Tensor | None]]) -> None:  # noqa: B027  # a hook
        """Add the gradient of the rule's penalty on (A, B, diagonal) of each layer; by default there is none."""

    def settings(self) -> dict[str, str]:
        """Return the rule's name and arguments, to recognise it in a checkpoint."""
        return {"rule": type(self).__name__, **{key: repr(value) for key, value in sorted(vars(self).items())}}


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
    return AdapterState(layers, add_dense(server, updates, weights[""]))


def add_dense(server: AdapterState, updates: Sequence[Update], weights: Sequence[float]) -> dict[str, Tensor]:
    """Return the dense tensors plus the weighted sum of their updates."""
    dense = {name: value.clone() for name, value in server.dense.items()}
    for update, weight in zip(updates, weights, strict=True):
        for name, value in update.dense.items():
            dense[name].add_(value, alpha=weight)
    return dense
