"""What travels in a round: the adapter as plain tensors, and a client's update on its slots.

``update`` always means *adapter after local training minus adapter before it*. Low-rank layers are kept as their two
factors; everything else that clients train (a classification head, say) is ``dense``.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

Slots = dict[str, Tensor]
"""Active slot ids of a client: layer name -> int64 tensor of shape (active,), ascending."""


@dataclass
class LayerState:
    """The two factors of one adapted layer at the server's rank; the layer adds ``scale * b @ a @ x``."""

    a: Float[Tensor, "rank d_in"]
    b: Float[Tensor, "d_out rank"]


@dataclass
class AdapterState:
    """All federated tensors, without the network around them.

    Args:
        layers: Low-rank factors by layer name.
        dense: Every other trained tensor by parameter name.
        merged: What a rule has merged into the base model, by layer name, (d_out, d_in): the layer adds
            ``scale * merged @ x``. Empty with rules that leave the base model alone.
    """

    layers: dict[str, LayerState] = field(default_factory=dict)
    dense: dict[str, Tensor] = field(default_factory=dict)
    merged: dict[str, Tensor] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor under a flat name: ``<layer>/a``, ``/b``, ``/merged`` and the dense names."""
        flat: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            flat[f"{name}/a"], flat[f"{name}/b"] = layer.a, layer.b
        return {**flat, **{f"{name}/merged": value for name, value in self.merged.items()}, **self.dense}

    @classmethod
    def from_tensors(cls, flat: dict[str, Tensor]) -> "AdapterState":
        """Rebuild a state from `tensors`."""
        names = [name[:-2] for name in flat if name.endswith("/a")]
        layers = {name: LayerState(flat[f"{name}/a"], flat[f"{name}/b"]) for name in names}
        merged = {name: flat[f"{name}/merged"] for name in names if f"{name}/merged" in flat}
        known = {f"{name}/{part}" for name in names for part in ("a", "b", "merged")}
        return cls(layers, {name: value for name, value in flat.items() if name not in known}, merged)

    def clone(self) -> "AdapterState":
        """Return a copy that shares no memory with this state."""
        return AdapterState.from_tensors({name: value.detach().clone() for name, value in self.tensors().items()})

    def to(self, device: torch.device) -> "AdapterState":
        """Return the state on `device`."""
        return AdapterState.from_tensors({name: value.to(device) for name, value in self.tensors().items()})


@dataclass
class LayerSlots:
    """The slots of one layer that travel, up or down; a side that is not sent is None."""

    slots: Int[Tensor, " active"]
    a: Float[Tensor, "active d_in"] | None = None
    b: Float[Tensor, "d_out active"] | None = None

    @property
    def rank(self) -> int:
        """Number of slots that were sent."""
        return int(self.slots.numel())


@dataclass
class Broadcast:
    """What the server sends to one client at the start of its round.

    Args:
        layers: Low-rank values by layer name, on the client's slots; ``a`` is None where the client has it already.
        dense: Values of the dense tensors.
        base: Values for frozen parameters, by name. An honest server sends none: its clients have the base model. They
            hold for this client and round only.
    """

    layers: dict[str, LayerSlots] = field(default_factory=dict)
    dense: dict[str, Tensor] = field(default_factory=dict)
    base: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Update:
    """What one client sends to the server at the end of its local training.

    Args:
        client_id: The sender.
        num_examples: Size of the client's shard, the weight of FedAvg.
        layers: Low-rank updates by layer name.
        dense: Updates of the dense tensors.
        control: The change of its control variate, with SCAFFOLD.
        digest: Hash of the broadcast that it started from, with secure aggregation and binding.
    """

    client_id: int
    num_examples: int
    layers: dict[str, LayerSlots] = field(default_factory=dict)
    dense: dict[str, Tensor] = field(default_factory=dict)
    control: "Update | None" = None
    digest: str = ""

    def values(self) -> Iterator[Tensor]:
        """Yield every floating-point tensor that is sent."""
        for layer in self.layers.values():
            yield from (side for side in (layer.a, layer.b) if side is not None)
        yield from self.dense.values()
        if self.control is not None:
            yield from self.control.values()

    def state_dict(self) -> dict[str, Any]:
        """Return the update as tensors and primitives, for a checkpoint."""
        layers = {name: {"slots": u.slots, "a": u.a, "b": u.b} for name, u in self.layers.items()}
        return {
            "client_id": self.client_id,
            "num_examples": self.num_examples,
            "layers": layers,
            "dense": dict(self.dense),
            "digest": self.digest,
            "control": None if self.control is None else self.control.state_dict(),
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any], device: torch.device) -> "Update":
        """Rebuild an update from `state_dict` on `device`."""

        def move(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.to(device)

        layers = {
            name: LayerSlots(parts["slots"].to(device), move(parts["a"]), move(parts["b"]))
            for name, parts in state["layers"].items()
        }
        dense = {name: value.to(device) for name, value in state["dense"].items()}
        control = None if state["control"] is None else cls.from_state_dict(state["control"], device)
        return cls(state["client_id"], state["num_examples"], layers, dense, control, state["digest"])


def prefix_slots(state: AdapterState, rank: int) -> Slots:
    """Return the first `rank` slots of every layer, the slots a client holds before any pruning."""
    return {
        name: torch.arange(min(rank, layer.a.shape[0]), device=layer.a.device) for name, layer in state.layers.items()
    }


def gather_rows(values: Float[Tensor, "rank d_in"], slots: Int[Tensor, " active"]) -> Float[Tensor, "active d_in"]:
    """Return a copy of the rows of the active slots."""
    return values.clone() if len(slots) == values.shape[0] else values[slots]  # all of them: ids are ascending


def gather_columns(values: Float[Tensor, "d_out rank"], slots: Int[Tensor, " active"]) -> Float[Tensor, "d_out active"]:
    """Return a copy of the columns of the active slots."""
    return values.clone() if len(slots) == values.shape[1] else values[:, slots]


def scatter_columns(
    values: Float[Tensor, "d_out active"], slots: Int[Tensor, " active"], rank: int
) -> Float[Tensor, "d_out rank"]:
    """Put columns back to their slot ids and zeros elsewhere (lossless expansion to the server's rank)."""
    if len(slots) == rank:
        return values.clone()
    return values.new_zeros(values.shape[0], rank).index_copy_(1, slots, values)


def scatter_rows(
    values: Float[Tensor, "active d_in"], slots: Int[Tensor, " active"], rank: int
) -> Float[Tensor, "rank d_in"]:
    """Put rows back to their slot ids and zeros elsewhere."""
    if len(slots) == rank:
        return values.clone()
    return values.new_zeros(rank, values.shape[1]).index_copy_(0, slots, values)


def scattered(layers: Mapping[str, LayerSlots], dense: Mapping[str, Tensor], server: AdapterState) -> dict[str, Tensor]:
    """Return what travelled as flat tensors at the server's rank, zero in other slots; sides not sent are left out."""
    flat = dict(dense)
    for name, part in layers.items():
        rank = server.layers[name].a.shape[0]
        if part.a is not None:
            flat[f"{name}/a"] = scatter_rows(part.a, part.slots, rank)
        if part.b is not None:
            flat[f"{name}/b"] = scatter_columns(part.b, part.slots, rank)
    return flat
