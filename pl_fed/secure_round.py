"""A round whose updates the server never sees: their weighted sum in fixed point is all that leaves the clients.

Every client scatters its update to the server's rank, so that all vectors have one layout, multiplies it by its integer
mass and appends the mass; the server learns the sum of each and divides. Rules whose mass differs by layer have one
such group a layer.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from pl_fed.errors import FederatedConfigError
from pl_fed.privacy import FixedPoint, IdealSum, PairwiseSum, SecureSum
from pl_fed.privacy.binding import model_hash, tensor_bytes
from pl_fed.privacy.fixed_point import choose_ring, decode_mean, encode, mean_error_bound
from pl_fed.privacy.flatten import Layout, flatten, unflatten
from pl_fed.privacy.pairwise.errors import TooFewSurvivorsError
from pl_fed.privacy.pairwise.session import Step, check_threshold, default_threshold
from pl_fed.privacy.ring import Ring
from pl_fed.rounds import derive_seed
from pl_fed.rules.base import Rule
from pl_fed.updates import AdapterState, Slots, Update

Backend = Literal["ideal", "pairwise"]

Group = tuple[str, Layout]  # a layer, or "" for everything of one mass; its tensors


@dataclass(frozen=True)
class SecureAggregation:
    """How the clients' updates are summed.

    Args:
        backend: ``ideal`` adds up what the protocol would, for simulations; ``pairwise`` runs the protocol.
        bits: Bits of one encoded value, its sign included.
        clip: Largest absolute value of an update that can be sent; larger ones are clipped and counted.
        stochastic: Round at random so that the expected error is zero.
        threshold: Fewest of a round's n clients that must answer in every step, more than half of them; None for
            floor(2 n / 3) + 1. A client that was chosen and sends nothing has dropped out of the protocol.
        binding: Bind every mask to the model that its client received, and let the clients compare signed hashes
            first: a server that sends one of them another model learns nothing, and the round is named. Without it the
            label-inference attack works. Needs `codecs.down: float32`, since a lossy broadcast differs by client.
    """

    backend: Backend = "ideal"
    bits: int = 22
    clip: float = 8.0
    stochastic: bool = True
    threshold: int | None = None
    binding: bool = True

    def __post_init__(self) -> None:
        """Check backend, bits, clip and threshold."""
        if self.backend not in get_args(Backend):
            raise FederatedConfigError(f"Expected `backend` out of {get_args(Backend)} but got `{self.backend}`.")
        if self.threshold is not None and self.threshold < 2:
            raise FederatedConfigError(
                f"Expected `threshold` of 2 or more, and above half of a cohort, but got {self.threshold}: null takes "
                "two thirds."
            )
        self.fixed_point  # noqa: B018

    @property
    def fixed_point(self) -> FixedPoint:
        """The encoding."""
        return FixedPoint(self.bits, self.clip, self.stochastic)

    def make(self) -> SecureSum:
        """Return the backend."""
        return (IdealSum if self.backend == "ideal" else PairwiseSum)(self.threshold, echo=self.binding)

    def check_survivors(self, round_idx: int, survivors: int, cohort: int) -> None:
        """Raise `TooFewSurvivorsError` if fewer of a cohort's clients have an update than the threshold asks for."""
        threshold = default_threshold(cohort) if self.threshold is None else self.threshold
        check_threshold(threshold, cohort)
        if survivors < threshold:
            raise TooFewSurvivorsError(
                f"Expected updates of at least {threshold} of the {cohort} clients of round {round_idx} "
                f"(`secure_aggregation.threshold`) but got {survivors}. Nothing of them is revealed, and the server is "
                f"unchanged: lower the dropout or enlarge the cohort; a threshold is at least {cohort // 2 + 1} here."
            )


class _Vectors(Mapping[int, Tensor]):
    """The cohort's encoded vectors, made on demand: one at a time is in memory. Clients that drop out have none."""

    def __init__(self, encoder: "_Encoder", updates: Sequence[Update], cohort: Sequence[int]) -> None:
        self.encoder, self.updates = encoder, {update.client_id: update for update in updates}
        self.cohort = cohort

    def __getitem__(self, client_id: int) -> Int[Tensor, " values"]:
        if client_id not in self.updates:
            return torch.zeros(0, dtype=torch.int64)  # never sent
        return self.encoder(self.updates[client_id])

    def __iter__(self) -> Iterator[int]:
        return iter(self.cohort)

    def __len__(self) -> int:
        return len(self.cohort)

    @property
    def silent(self) -> dict[int, Step]:
        """Who falls silent, and when."""
        return {who: Step.MASKED_INPUT for who in self.cohort if who not in self.updates}


@dataclass
class _Encoder:
    rule: Rule
    server: AdapterState
    config: FixedPoint
    seed: int
    round_idx: int

    def __post_init__(self) -> None:
        self.clipped: dict[int, int] = {}

    def _group(self, name: str) -> str:
        layer = name.rpartition("/")[0]
        return layer if self.rule.layer_weights and layer in self.server.layers else ""

    def parts(self, update: Update) -> dict[str, dict[str, Tensor]]:
        """Return a client's contribution by group."""
        found: dict[str, dict[str, Tensor]] = {}
        for name, value in self.rule.contribution(self.server, update).items():
            found.setdefault(self._group(name), {})[name] = value
        return found

    def __call__(self, update: Update) -> Int[Tensor, " values"]:
        """Encode a client's contribution, each group followed by its mass."""
        seed = derive_seed(self.seed, self.round_idx, update.client_id, 0x5C)
        generator, clipped, encoded = torch.Generator().manual_seed(seed), 0, []
        for group, tensors in sorted(self.parts(update).items()):
            mass = self.rule.mass(self.server, update, group)
            part = encode(flatten(tensors, Layout.of(tensors)), mass, self.config, generator)
            clipped += part.num_clipped
            encoded.append(part.values)
        self.clipped[update.client_id] = clipped
        return torch.cat(encoded)

    def figures(self, num_values: int) -> dict[str, float]:
        """Return which share of so many values was clipped, and the bound of the mean's error."""
        return {
            "server/secure_clipped_share": sum(self.clipped.values()) / max(1, num_values),
            "server/secure_error_bound": mean_error_bound(self.config),
        }


def secure_aggregate(
    rule: Rule,
    server: AdapterState,
    updates: Sequence[Update],
    settings: SecureAggregation,
    round_idx: int,
    seed: int,
    cohort: Sequence[int],
) -> tuple[AdapterState, dict[str, float]]:
    """Return what the rule makes of the sum, and figures of the encoding.

    Args:
        rule: A rule with `sums_only`.
        server: The adapter that was broadcast.
        updates: The clients' updates; they go no further than into the sum.
        settings: How they are summed.
        round_idx: The round.
        seed: Seed of the federation, for the rounding.
        cohort: Who was chosen. Whoever has no update agreed on keys and then fell silent.

    Raises:
        TooFewSurvivorsError: If fewer updates arrived than the threshold asks for.
    """
    settings.check_survivors(round_idx, len(updates), len(cohort))
    encoder = _Encoder(rule, server, settings.fixed_point, seed, round_idx)
    layout = [(group, Layout.of(tensors)) for group, tensors in sorted(encoder.parts(updates[0]).items())]
    max_mass = max(rule.mass(server, update, group) for update in updates for group, _ in layout)
    ring = choose_ring(settings.fixed_point, len(cohort), max_mass)
    own = {u.client_id: bytes.fromhex(u.digest) for u in updates} if settings.binding else {}
    context = bytes.fromhex(broadcast_digest(round_idx, rule, published(server))) if settings.binding else b""
    vectors, backend = _Vectors(encoder, updates, cohort), settings.make()
    silent = vectors.silent
    found = backend.sum(vectors, ring, round_idx=round_idx, context=context, client_contexts=own, dropouts=silent)
    mean = _decoded(found.total, layout, settings.fixed_point, len(found.survivors), max_mass)
    return rule.absorb(server, mean), encoder.figures(sum(group.num_values for _, group in layout) * len(updates))


def _decoded(
    total: Int[Tensor, " values"], layout: Sequence[Group], config: FixedPoint, num_survivors: int, max_mass: int
) -> dict[str, Tensor]:
    mean, start = {}, 0
    for _, group in layout:
        end = start + group.num_values + 1  # with its mass
        values, _ = decode_mean(total[start:end], config, num_survivors, max_mass, torch.float64)
        mean.update(unflatten(values, group))
        start = end
    return mean


def message_bytes(rule: Rule, server: AdapterState, update: Update, ring: Ring | None = None) -> int:
    """Return the bytes of a client's masked vector, in a ring of 64 bits by default."""
    groups = 1 + (len(server.layers) if rule.layer_weights else 0)
    values = sum(value.numel() for value in rule.contribution(server, update).values())
    return (values + groups) * (ring or Ring()).word_bytes


def published(server: AdapterState) -> dict[str, str]:
    """Return the server's public list: a hash of every slot of every layer and of every other tensor."""
    hashes = {name: _hash(value) for name, value in {**server.dense, **_named(server.merged, "merged")}.items()}
    for name, layer in server.layers.items():
        hashes |= {f"{name}/{i}": _hash(layer.a[i], layer.b[:, i]) for i in range(layer.a.shape[0])}
    return hashes


def received(view: AdapterState, base: Mapping[str, Tensor], slots: Slots, known: Mapping[str, str]) -> dict[str, str]:
    """Return the list as a client sees it: its own hashes of what it received, the published ones of the rest.

    Args:
        view: What it starts from.
        base: Frozen tensors that it was sent; an honest server's list has none.
        slots: Its slots.
        known: The server's public list.
    """
    hashes = dict(known) | {name: _hash(value) for name, value in {**view.dense, **_named(base, "base")}.items()}
    hashes |= {name: _hash(value) for name, value in _named(view.merged, "merged").items()}
    for name, ids in slots.items():
        layer = view.layers[name]
        hashes |= {f"{name}/{i}": _hash(layer.a[i], layer.b[:, i]) for i in ids.tolist()}
    return hashes


def broadcast_digest(round_idx: int, rule: Rule, hashes: Mapping[str, str]) -> str:
    """Return one hash of a round, its rule and a list of hashes, as hexadecimal text."""
    return model_hash(round_idx, {}, config={"rule": rule.settings(), "hashes": dict(hashes)}).hex()


def _named(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    return {f"{name}/{part}": value for name, value in tensors.items()}


def _hash(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()
