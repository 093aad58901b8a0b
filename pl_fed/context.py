"""What federated hooks receive: one object for the round, one for the client in it.

Any callback may define ``on_round_start``, ``on_client_start``, ``on_broadcast``, ``on_client_end``, ``on_upload``,
``on_aggregate`` and ``on_round_end``, or ``on_round_failed`` in place of these two where too few clients were left;
each is called as ``hook(trainer, pl_module, context)``. A plain Trainer never calls them.
"""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pl_fed.updates import AdapterState, Broadcast, Slots, Update


@dataclass
class ClientContext:
    """One client in the middle of its round.

    Args:
        client_id: The client.
        position: Its place in the round, from 0.
        num_clients: Number of clients that train in this round.
        num_examples: Size of its shard.
        rank_cap: Largest rank its resources allow.
        slots: Active slots by layer. ``on_client_start`` may grow them (up to the cap), ``on_client_end`` may prune.
        broadcast: What the server sends; ``on_broadcast`` may edit it.
        diagonals: The learned diagonal by layer (rank,) after local training, for rules that have one.
        after: The adapter after local training, at the server's rank; zero outside `slots`.
        update: What the client sends; ``on_upload`` may edit it.
        num_tokens: Tokens (or examples, where a batch has no tokens) in forward passes so far, padding included.
        download_bytes: Bytes of the broadcast as encoded.
        upload_bytes: Bytes of the update as encoded.
        flops: Floating-point operations of the local training (estimate).
        seconds: Simulated seconds of download, training and upload on the client's device; 0 without one.
        figures: What hooks want to remember of the client until the end of the round. Another process may have trained
            it, so what a callback counts over clients belongs here, and not into the callback.
    """

    client_id: int
    position: int
    num_clients: int
    num_examples: int
    rank_cap: int
    slots: Slots
    broadcast: Broadcast = field(default_factory=Broadcast)
    diagonals: dict[str, Tensor] = field(default_factory=dict)
    after: AdapterState | None = None
    update: Update | None = None
    num_tokens: int = 0
    download_bytes: int = 0
    upload_bytes: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def mean_rank(self) -> float:
        """Mean number of active slots over the layers; 0 without low-rank layers."""
        return sum(len(ids) for ids in self.slots.values()) / max(1, len(self.slots))

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: the slots and every figure, not the tensors in between."""
        dropped = {"broadcast", "diagonals", "after", "update"}
        return {key: value for key, value in vars(self).items() if key not in dropped}


@dataclass
class RoundContext:
    """One round, from broadcast to aggregate.

    Args:
        round_idx: The round, from 0.
        num_rounds: Rounds of the whole run, or None when it has no such limit.
        seed: Seed of the federation.
        cohort: Chosen clients.
        population: Number of all clients.
        time_budget: Seconds after which the server waits no longer, if limited.
        server: The server's adapter. Until ``on_aggregate`` the one that was broadcast, from then on the new one;
            the module holds it too, and what ``on_aggregate`` changes in the module becomes the server's.
        previous: The adapter that was broadcast, from ``on_aggregate`` on.
        aggregate: What the rule made of the updates, before the server's optimizer, from ``on_aggregate`` on.
        failures: Why clients were left out, by client.
        updates: The updates that are aggregated, in training order; none with secure aggregation, where the server
            sees only their sum.
        num_updates: How many updates were accepted.
        finished: Clients that finished training, with what they cost (their tensors are dropped).
        client: The client in training, None between clients.
        metrics: Figures that hooks want logged for this round, by name.
    """

    round_idx: int
    num_rounds: int | None
    seed: int
    cohort: tuple[int, ...]
    server: AdapterState
    time_budget: float | None = None
    population: int = 0
    previous: AdapterState | None = None
    aggregate: AdapterState | None = None
    failures: dict[int, str] = field(default_factory=dict)
    updates: list[Update] = field(default_factory=list)
    num_updates: int = 0
    finished: list[ClientContext] = field(default_factory=list)
    client: ClientContext | None = None
    metrics: dict[str, float] = field(default_factory=dict)
