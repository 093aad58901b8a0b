"""A chunk's part of a round: its clients begin together, train together and end together."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from pl_fed.client_round import finish_client, start_client
from pl_fed.progress import ClientInProgress
from pl_fed.rules.base import TrainedLayer

if TYPE_CHECKING:
    from pl_fed.federation import Federation


def start_chunk(federation: "Federation", chunk_idx: int) -> None:
    """Broadcast to the clients of a chunk and load them."""
    assert federation.schedule is not None
    chunk = federation.schedule.chunks[chunk_idx]
    federation.chunk_idx = chunk_idx
    federation.engine.open(len(chunk))
    federation.chunk = [start_client(federation, position) for position in chunk]
    select_only(federation)


def select_only(federation: "Federation") -> None:
    """Let the only client of a chunk be the current one while it trains; of several none is."""
    federation.select(federation.chunk[0] if len(federation.chunk) == 1 else None)


def finish_chunk(federation: "Federation") -> None:
    """Turn the training of a chunk's clients into updates, or leave clients out."""
    for slot, client in enumerate(federation.chunk):
        federation.select(client)
        federation.engine.load(slot)
        finish_client(federation)
    federation.chunk = []
    federation.engine.drop()


def num_active(federation: "Federation") -> int:
    """Return how many clients of the chunk have batches left; they are its first."""
    assert federation.schedule is not None
    work, step = federation.schedule.work, federation.chunk[0].step
    return sum(len(work[client.client.position].batches) > step for client in federation.chunk)


def count(federation: "Federation", tokens: Sequence[int]) -> None:
    """Note a trained batch of each client of the chunk that had one, with so many tokens."""
    for client, number in zip(federation.chunk, tokens, strict=False):
        client.step += 1
        client.client.num_tokens += number


def before_step(federation: "Federation") -> None:
    """Add the rule's penalty and the correction to the gradients of each client with a batch in this step."""
    if federation.config.rule.has_penalty or federation.config.local.correction is not None:
        for slot, client in enumerate(federation.chunk[: num_active(federation)]):
            _correct(federation, client, federation.engine.views(slot))


def _correct(federation: "Federation", client: ClientInProgress, views: Mapping[str, Tensor]) -> None:
    rule, correction, slots = federation.config.rule, federation.config.local.correction, client.client.slots
    if rule.has_penalty:
        layers = {n: (views[f"{n}/a"], views[f"{n}/b"], views.get(f"{n}/diagonal")) for n in slots}
        rule.add_penalty({name: TrainedLayer(*parts, slots[name]) for name, parts in layers.items()})
    if correction is not None:
        trained = {name: views[name] for name in federation.adapter.trained()}
        if correction.has_controls:
            client.control.record(trained)
        correction.correct(trained, client.start, client.control.drift)
