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
from pl_fed.updates import AdapterState, Broadcast, LayerSlots, Slots, Update, scattered


@dataclass
class Controls:
    """Control variates of server and client.

    Args:
        server: The server's variate, at its rank.
        drift: The server's variate minus the client's, by flat name, zero outside the client's slots.
        sums: Sum of the client's uncorrected gradients so far.
        steps: Number of its optimizer steps so far.
    """

    server: AdapterState
    drift: dict[str, Tensor] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0

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
            a, b = layer.a[ids] if "a" in sides else None, layer.b[:, ids] if "b" in sides else None
            layers[name] = LayerSlots(ids, a, b)
        return Broadcast(layers, dict(self.server.dense) if dense else {})

    def begin(self, message: Broadcast, own: Mapping[str, Tensor]) -> None:
        """Start a client with the variate that arrived and its own."""
        self.sums, self.steps, self.drift = {}, 0, {}
        for name, value in scattered(message.layers, message.dense, self.server).items():
            mask = self._mask(name, message.layers)
            known = own.get(name)
            self.drift[name] = value if known is None else (value - known.to(value)) * mask

    def _mask(self, name: str, layers: Mapping[str, LayerSlots]) -> Tensor:
        layer, _, side = name.rpartition("/")
        if layer not in layers:
            return torch.ones(())
        known, ids = self.server.layers[layer], layers[layer].slots
        mask = known.a.new_zeros(known.a.shape[0]).index_fill_(0, ids, 1.0)  # (rank,)
        return mask[:, None] if side == "a" else mask

    def record(self, trained: Mapping[str, Tensor]) -> None:
        """Add the gradients of one optimizer step."""
        self.steps += 1
        for name in self.drift:
            gradient = trained[name].grad
            if gradient is not None:
                known = self.sums.get(name)
                self.sums[name] = gradient.detach().clone() if known is None else known.add_(gradient)

    def update(self, client: ClientContext, own: Mapping[str, Tensor]) -> Update:
        """Return the change of the client's variate on the slots it still holds."""
        change = {}
        for name, drift in self.drift.items():
            mean = self.sums.get(name, torch.zeros_like(drift)) / max(1, self.steps)
            change[name] = mean - own.get(name, torch.zeros_like(mean)).to(mean)
        layers = {}
        for name, ids in client.slots.items():
            a, b = change.get(f"{name}/a"), change.get(f"{name}/b")
            layers[name] = LayerSlots(ids, None if a is None else a[ids], None if b is None else b[:, ids])
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
        """Return everything as tensors and primitives."""
        return {"server": self.server.tensors(), "drift": self.drift, "sums": self.sums, "steps": self.steps}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any], device: torch.device) -> "Controls":
        """Rebuild the variates on `device`."""
        parts = {key: {n: v.to(device) for n, v in state[key].items()} for key in ("server", "drift", "sums")}
        return cls(AdapterState.from_tensors(parts["server"]), parts["drift"], parts["sums"], state["steps"])
