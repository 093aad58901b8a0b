"""What a client starts from, what it ends with, and whether what it sends can be used; pure functions on tensors."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from pl_fed.updates import (
    AdapterState,
    Broadcast,
    LayerState,
    Slots,
    Update,
    gather_columns,
    gather_rows,
    scatter_columns,
    scatter_rows,
)


def view_of(server: AdapterState, broadcast: Broadcast) -> AdapterState:
    """Return the adapter that a client starts from, at the server's rank: zero outside its slots.

    A side that was not sent is the server's: the client has it from an earlier round.
    """
    layers = {}
    for name, part in broadcast.layers.items():
        known = server.layers[name]
        rank = known.a.shape[0]
        a = gather_rows(known.a, part.slots) if part.a is None else part.a
        b = gather_columns(known.b, part.slots) if part.b is None else part.b
        layers[name] = LayerState(scatter_rows(a, part.slots, rank), scatter_columns(b, part.slots, rank))
    return AdapterState(layers, {**server.dense, **broadcast.dense}, server.merged)


def with_kept(view: AdapterState, kept: Mapping[str, Tensor], slots: Slots) -> AdapterState:
    """Return what a client starts from, with the parts that it keeps to itself (flat tensors) in place."""
    flat = view.tensors()
    flat.update({name: value.to(flat[name]) for name, value in kept.items()})
    return restricted(AdapterState.from_tensors(flat), slots) if kept else view


def kept_parts(own: AdapterState, keeps: frozenset[str], names: frozenset[str] = frozenset()) -> dict[str, Tensor]:
    """Return the parts that stay on the client (any of ``a``, ``b``, ``dense``; dense `names`) as flat tensors."""
    low_rank = {
        f"{name}/{side}": getattr(layer, side) for name, layer in own.layers.items() for side in "ab" if side in keeps
    }
    return {**low_rank, **{name: value for name, value in own.dense.items() if "dense" in keeps or name in names}}


def like(state: AdapterState, server: AdapterState) -> AdapterState:
    """Return a state in the server's number formats; a network may hold less precise ones."""
    formats = {name: value.dtype for name, value in server.tensors().items()}
    return AdapterState.from_tensors({name: value.to(formats[name]) for name, value in state.tensors().items()})


def folded(state: AdapterState, diagonals: Mapping[str, Tensor]) -> AdapterState:
    """Return a state with its diagonals folded into B: the same function with diagonals of one."""
    layers = {
        name: LayerState(layer.a, layer.b * diagonals[name] if name in diagonals else layer.b)
        for name, layer in state.layers.items()
    }
    return AdapterState(layers, state.dense, state.merged)


def restricted(state: AdapterState, slots: Slots) -> AdapterState:
    """Return a state with zeros outside `slots`."""
    layers = {}
    for name, layer in state.layers.items():
        ids, rank = slots[name], layer.a.shape[0]
        layers[name] = LayerState(scatter_rows(layer.a[ids], ids, rank), scatter_columns(layer.b[:, ids], ids, rank))
    return AdapterState(layers, state.dense, state.merged)


def fault_of(update: Update | None, server: AdapterState) -> str:
    """Return why an update cannot be aggregated (``no_update``, ``wrong_shape``, ``not_finite``); empty if it can."""
    if update is None:
        return "no_update"
    for name, part in update.layers.items():
        layer = server.layers[name]
        if part.a is not None and part.a.shape != (part.rank, layer.a.shape[1]):
            return "wrong_shape"
        if part.b is not None and part.b.shape != (layer.b.shape[0], part.rank):
            return "wrong_shape"
    if any(value.shape != server.dense[name].shape for name, value in update.dense.items()):
        return "wrong_shape"
    return "" if all_finite(update.values()) else "not_finite"


def all_finite(values: Iterable[Tensor]) -> bool:
    """Tell whether there is no NaN and no infinity.

    A finite sum has only finite terms, so one look at the sum of all is enough unless it is beyond its format.
    """
    tensors = list(values)
    if not tensors or math.isfinite(torch.stack([value.sum() for value in tensors]).sum()):
        return True
    return all(bool(torch.isfinite(value).all()) for value in tensors)
