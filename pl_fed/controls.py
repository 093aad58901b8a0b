"""SCAFFOLD's control variates in a round: the server's, and the gradients of the client in training.

See `pl_fed.corrections.Scaffold` for the source. A client's variate lives on the slots it holds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pl_fed.context import ClientContext
from pl_fed.rules.base import add_updates
from pl_fed.updates import (
    AdapterState,
    Broadcast,
    LayerSlots,
    Slots,
    Update,
    gather_columns,
    gather_rows,
    scattered,
)


@dataclass
class ClientControl:
    """A client in training.

    Args:
        drift: The server's variate minus the client's, by flat name, zero outside the client's slots.
        sums: Sum of the client's uncorrected gradients so far.
        steps: Number of its optimizer steps so far.
    """

    drift: dict[str, Tensor] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0

    def record(self, trained: Mapping[str, Tensor]) -> None:
        """Add the gradients of one optimizer step."""
        self.steps += 1
        for name in self.drift:
            gradient = trained[name].grad
            if gradient is not None:
                known = self.sums.get(name)
                self.sums[name] = gradient.detach().clone() if known is None else known.add_(gradient)

    def state_dict(self) -> dict[str, Any]:
        """Return everything as tensors and primitives."""
        return dict(vars(self))

    @classmethod
    def from_state_dict(cls, state: dict[str, Any], device: torch.device) -> "ClientControl":
        """Rebuild it on `device`."""
        drift, sums = ({n: v.to(device) for n, v in state[key].items()} for key in ("drift", "sums"))
        return cls(drift, sums, state["steps"])


@dataclass
class Controls:
    """Control variates of the server, and what becomes of a client's.

    Args:
        server: The server's variate, at its rank.
    """

    server: AdapterState

    @classmethod
    def zero(cls, server: AdapterState) -> "Controls":
        """Return variates of zero for a server's adapter."""
        zeros = {n: torch.zeros_like(v) for n, v in server.tensors().items() if not n.endswith("/merged")}
        return cls(AdapterState.from_tensors(zeros))

    def message(self, slots: Slots, sides: frozenset[str], dense: bool) -> Broadcast:
        """Return what a client downloads of the server's variate: the sides that it trains and sends."""
        layers = {}
        for name, ids in slots.items():
            layer = self.server.layers[name]
            a = gather_rows(layer.a, ids) if "a" in sides else None
            b = gather_columns(layer.b, ids) if "b" in sides else None
            layers[name] = LayerSlots(ids, a, b)
        return Broadcast(layers, dict(self.server.dense) if dense else {})

    def begin(self, message: Broadcast, own: Mapping[str, Tensor]) -> ClientControl:
        """Start a client with the variate that arrived and its own."""
        drift = {}
        for name, value in scattered(message.layers, message.dense, self.server).items():
            mask = self._mask(name, message.layers)
            known = own.get(name)
            drift[name] = value if known is None else (value - known.to(value)) * mask
        return ClientControl(drift)

    def _mask(self, name: str, layers: Mapping[str, LayerSlots]) -> Tensor:
        layer, _, side = name.rpartition("/")
        if layer not in layers:
            return torch.ones(())
        known, ids = self.server.layers[layer], layers[layer].slots
        mask = known.a.new_zeros(known.a.shape[0]).index_fill_(0, ids, 1.0)  # (rank,)
        return mask[:, None] if side == "a" else mask

    def update(self, client: ClientContext, control: ClientControl, own: Mapping[str, Tensor]) -> Update:
        """Return the change of the client's variate on the slots it still holds."""
        change = {}
        for name, drift in control.drift.items():
            mean = control.sums.get(name, torch.zeros_like(drift)) / max(1, control.steps)
            change[name] = mean - own.get(name, torch.zeros_like(mean)).to(mean)
        layers = {}
        for name, ids in client.slots.items():
            a, b = change.get(f"{name}/a"), change.get(f"{name}/b")
            layers[name] = LayerSlots(
                ids, None if a is None else gather_rows(a, ids), None if b is None else gather_columns(b, ids)
            )
        dense = {name: value for name, value in change.items() if name in self.server.dense}
        return Update(client.client_id, client.num_examples, layers, dense)

    def client_control(self, change: Update, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the client's next variate."""
        moved = scattered(change.layers, change.dense, self.server)
        return {**own, **{n: (own[n] + v.cpu() if n in own else v.cpu()) for n, v in moved.items()}}

    def apply(self, updates: Sequence[Update], population: int) -> None:
        """Move the server's variate by the sum of the changes over the size of the population."""
        changes = [update.control for update in updates if update.control is not None]
        share = [1 / population] * len(changes)
        self.server = add_updates(self.server, changes, {name: share for name in ["", *self.server.layers]})

    def state_dict(self) -> dict[str, Any]:
        """Return the server's variate as tensors."""
        return {"server": self.server.tensors()}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any], device: torch.device) -> "Controls":
        """Rebuild the variate on `device`."""
        return cls(AdapterState.from_tensors({n: v.to(device) for n, v in state["server"].items()}))
