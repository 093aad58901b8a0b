"""One client's part of a round: broadcast, load, and what becomes of its training."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pl_fed.accounting import training_flops
from pl_fed.clients import ClientState
from pl_fed.codecs import CodecName, make_codec
from pl_fed.context import ClientContext
from pl_fed.errors import ClientFailureError
from pl_fed.exchange import all_finite, fault_of, folded, kept_parts, restricted, view_of, with_kept
from pl_fed.progress import ClientInProgress
from pl_fed.rounds import derive_seed
from pl_fed.secure_round import broadcast_digest, message_bytes, received
from pl_fed.updates import AdapterState, Broadcast, LayerState, Update
from pl_fed.wire import Wire

if TYPE_CHECKING:
    from pl_fed.federation import Federation


def start_client(federation: "Federation", position: int) -> ClientInProgress:
    """Broadcast to a client and load it into the network; it is then the current one."""
    context, schedule, config = federation.context, federation.schedule, federation.config
    assert context is not None and schedule is not None and federation.cost is not None
    work = schedule.work[position]
    state = federation.client_state(work.client_id)
    cap = config.clients.rank_cap(work.client_id, federation.adapter.rank, federation.cost)
    slots = dict(state.slots)
    if config.rule.rotates:  # ordered by importance: a client of that many slots holds the first
        slots = {name: torch.arange(len(ids), device=ids.device) for name, ids in slots.items()}
    client = ClientContext(work.client_id, position, len(schedule.work), work.num_examples, cap, slots)
    current = ClientInProgress(client)
    federation.select(current)
    _fire_client(federation, "on_client_start")
    _broadcast(federation, client, state)
    _fire_client(federation, "on_broadcast")
    _keep_norms(federation, client.broadcast)
    client.download_bytes += sum(value.numel() * value.element_size() for value in client.broadcast.base.values())
    view = view_of(federation.server, client.broadcast)
    secure = config.secure_aggregation
    if secure is not None and secure.binding:
        hashes = received(view, client.broadcast.base, client.slots, federation.published)
        current.digest = broadcast_digest(context.round_idx, config.rule, hashes)
    view = with_kept(view, state.kept, client.slots)
    seed = derive_seed(config.seed, context.round_idx, work.client_id, 0x5E)
    federation.engine.check_base(client.broadcast.base)
    federation.frozen.put(client.broadcast.base)
    federation.engine.begin(view, client.slots, state, seed, config.local.optimizer == "kept")
    current.before = _held(federation) if federation.rounded else view
    current.start = start_values(federation, current)
    return current


def _held(federation: "Federation") -> AdapterState:
    """Return a copy of what the network holds, in the server's number formats; the base model is not copied."""
    server, layers = federation.server, {}
    for name, layer in federation.adapter.layers.items():
        known = server.layers[name]
        layers[name] = LayerState(_copied(layer.a, known.a), _copied(layer.b, known.b))
    dense = {name: _copied(value, server.dense[name]) for name, value in federation.adapter.dense.items()}
    return AdapterState(layers, dense, server.merged)


def _copied(value: Tensor, known: Tensor) -> Tensor:
    return value.detach().to(known.dtype, copy=True)


def start_values(federation: "Federation", current: ClientInProgress) -> dict[str, Tensor]:
    """Return the values that a client in training began with, for a correction of its gradients; else nothing."""
    if federation.config.local.correction is None:
        return {}
    ones = {
        f"{name}/diagonal": torch.zeros_like(value).index_fill_(0, current.client.slots[name], 1.0)
        for name, value in federation.adapter.diagonals().items()
    }
    return {**current.before.tensors(), **ones}


def _broadcast(federation: "Federation", client: ClientContext, state: ClientState) -> None:
    rule, config = federation.config.rule, federation.config
    assert federation.context is not None
    grown = any(not torch.equal(ids, state.slots[name]) for name, ids in client.slots.items())
    sides = frozenset(s for s, version in federation.versions.items() if grown or state.versions[s] != version)
    wire = _wire(federation, client.client_id, config.codecs.down, 0xD1, exact_a="a" not in rule.optimizer_sides())
    message = rule.broadcast(federation.server, client.slots, sides)
    _keep_norms(federation, message)
    client.broadcast = wire.broadcast(message)
    trained = rule.sides(federation.context.round_idx)
    controls = federation.controls
    if controls is not None:
        message = controls.message(client.slots, trained - rule.keeps, "dense" not in rule.keeps)
        federation.progress.control = controls.begin(wire.broadcast(message), state.control)
    client.download_bytes = wire.num_bytes + federation.missed_bytes(state)
    state.slots, state.num_merges = dict(client.slots), len(federation.merge_bytes)
    state.versions = {
        s: -1 if s in trained and not rule.reinitialises else version for s, version in federation.versions.items()
    }


def _keep_norms(federation: "Federation", message: Broadcast) -> None:
    """Let a client take no normalisation layer from the server, whatever it sends, if these stay on the clients."""
    for tensors in (message.dense, message.base):
        for name in federation.norms & tensors.keys():
            del tensors[name]


def _wire(federation: "Federation", client_id: int, codec: CodecName, purpose: int, exact_a: bool) -> Wire:
    """Return a link; it costs nothing to seed where the format draws no random numbers."""
    generator = _generator(federation, client_id, purpose) if make_codec(codec).is_random else None
    return Wire(codec, generator, federation.config.rule.sends_slots, exact_a)


def _generator(federation: "Federation", client_id: int, purpose: int) -> torch.Generator:
    assert federation.context is not None
    seed = derive_seed(federation.config.seed, federation.context.round_idx, client_id, purpose)
    return torch.Generator().manual_seed(seed)


def _fire_client(federation: "Federation", hook: str) -> None:
    """Call a hook; a `ClientFailureError` in it leaves the client out."""
    context = federation.context
    assert context is not None and context.client is not None
    try:
        federation.fire(hook, context)
    except ClientFailureError as failure:
        context.failures[failure.client_id] = failure.reason


def finish_client(federation: "Federation") -> None:
    """Turn the current client's training into an update, or leave the client out."""
    context, current = federation.context, federation.progress
    assert context is not None
    client, rule = current.client, federation.config.rule
    client.after = _held(federation)
    federation.frozen.restore()
    client.diagonals = {name: value.clone() for name, value in federation.adapter.diagonals().items()}
    client.slots = rule.prune(current.before, folded(client.after, client.diagonals), client.slots)
    if client.client_id not in context.failures:
        _fire_client(federation, "on_client_end")
    if client.client_id not in context.failures:
        _upload(federation, client)
    _clock(federation, client)
    if client.client_id not in context.failures:
        _fire_client(federation, "on_upload")
    reason = context.failures.get(client.client_id) or _fault(federation, client)
    if reason:
        context.failures[client.client_id] = reason
    else:
        _accept(federation, client)
    client.broadcast, client.after, client.diagonals, client.update = Broadcast(), None, {}, None
    context.finished.append(client)
    federation.select(None)


def _accept(federation: "Federation", client: ClientContext) -> None:
    """Take the update, and let the client keep what it keeps."""
    context, config = federation.context, federation.config
    assert context is not None and client.update is not None and client.after is not None
    state = federation.states[client.client_id]
    state.slots = client.slots
    federation.engine.finish(state, config.local.optimizer == "kept")
    if config.clients.keep_adapters or config.rule.keeps or federation.norms:
        own = restricted(folded(client.after, client.diagonals), client.slots)
        state.kept = _on_cpu(kept_parts(own, config.rule.keeps, federation.norms))
        if config.clients.keep_adapters:
            state.adapter = _on_cpu(own.tensors())
    if client.update.control is not None:
        assert federation.controls is not None
        state.control = federation.controls.client_control(client.update.control, state.control)
    (context.updates if config.secure_aggregation is None else federation.sealed).append(client.update)
    context.num_updates += 1


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in tensors.items()}


def _upload(federation: "Federation", client: ClientContext) -> None:
    rule, before, after = federation.config.rule, federation.progress.before, client.after
    assert federation.context is not None and after is not None
    sides = rule.sides(federation.context.round_idx)
    layers = rule.update(before, after, client.diagonals, client.slots, sides)
    sent = {} if "dense" in rule.keeps else after.dense
    dense = {name: value - before.dense[name] for name, value in sent.items() if name not in federation.norms}
    update = Update(client.client_id, _trained_examples(federation, client), layers, dense)
    if federation.controls is not None:
        update.control = federation.controls.update(
            client, federation.progress.control, federation.states[client.client_id].control
        )
    wire = _wire(federation, client.client_id, federation.config.codecs.up, 0x0B, exact_a=False)
    client.update, client.upload_bytes = wire.update(update), wire.num_bytes
    if federation.config.secure_aggregation is not None:
        client.upload_bytes = message_bytes(rule, federation.server, update)
        client.update.digest = federation.progress.digest


def _trained_examples(federation: "Federation", client: ClientContext) -> int:
    """Return the client's weight: its shard's size, or the share of it that `limit_train_batches` left."""
    assert federation.schedule is not None
    share = federation.progress.step / len(federation.schedule.work[client.position].batches)
    return client.num_examples if share >= 1 else max(1, round(client.num_examples * share))


def _clock(federation: "Federation", client: ClientContext) -> None:
    """Count the client's operations and, with a device, its simulated seconds."""
    assert federation.context is not None
    sides = federation.config.rule.sides(federation.context.round_idx)
    trained = federation.states[client.client_id].slots
    client.flops = training_flops(federation.size, federation.adapter, trained, sides, client.num_tokens)
    device = federation.config.clients.device(client.client_id)
    if device is not None:
        noise = float(torch.randn((), generator=_generator(federation, client.client_id, 0x7C)))
        steady = device.seconds(client.flops, client.download_bytes, client.upload_bytes)
        client.seconds = steady * math.exp(device.jitter * noise)


def _fault(federation: "Federation", client: ClientContext) -> str:
    budget = federation.config.clients.round_seconds
    if budget is not None and client.seconds > budget:
        return "timeout"
    fault, keeps = fault_of(client.update, federation.server), federation.config.rule.keeps
    if fault or not (keeps or federation.norms) or client.after is None:
        return fault
    kept = kept_parts(
        folded(client.after, client.diagonals), keeps, federation.norms
    )  # a client would start from it next time
    return "" if all_finite(kept.values()) else "not_finite"
