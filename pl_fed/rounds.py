"""Which clients take part in a round and which batches they train on, as pure functions of (seed, round).

Nothing here touches a model. Everything costs O(cohort), never O(population): a shard is read only when its client is
in the cohort, so a population may have a million clients.
"""

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch

from pl_fed.corrections import Correction
from pl_fed.errors import FederatedConfigError, TooFewClientsError


@runtime_checkable
class Shards(Protocol):
    """The examples of every client: ``shards[client_id]`` is the sequence of its example indices."""

    def __len__(self) -> int:
        """Return the number of clients."""
        ...

    def __getitem__(self, client_id: int, /) -> Sequence[int]:
        """Return the example indices of one client."""
        ...


@dataclass(frozen=True)
class CohortConfig:
    """Who takes part in a round.

    Args:
        clients: Number of clients in each round; give this or `fraction`. None with no fraction means everybody.
        fraction: Share of the population in each round, in (0, 1]; at least one client.
        sampling: ``uniform``, or ``weighted`` by the number of examples (both without replacement).
        dropout: Probability that a chosen client fails to report, drawn for each (seed, round, client).
        min_survivors: Fewest clients whose updates make a round valid; below it the run stops with a checkpoint.
    """

    clients: int | None = None
    fraction: float | None = None
    sampling: Literal["uniform", "weighted"] = "uniform"
    dropout: float = 0.0
    min_survivors: int = 1

    def __post_init__(self) -> None:
        """Check the values that need no population."""
        if self.clients is not None and self.fraction is not None:
            raise FederatedConfigError(
                f"Expected `cohort.clients` or `cohort.fraction` but got both, {self.clients} and {self.fraction}: set "
                "the other one to null, on the command line with `--trainer.strategy.init_args.cohort.clients null`."
            )
        if self.clients is not None and self.clients < 1:
            raise FederatedConfigError(f"Expected `cohort.clients` to be at least 1 but got {self.clients}.")
        if self.fraction is not None and not 0.0 < self.fraction <= 1.0:
            raise FederatedConfigError(f"Expected `cohort.fraction` in (0, 1] but got {self.fraction}.")
        if not 0.0 <= self.dropout < 1.0:
            raise FederatedConfigError(f"Expected `cohort.dropout` in [0, 1) but got {self.dropout}.")
        if self.min_survivors < 1:
            raise FederatedConfigError(f"Expected `cohort.min_survivors` of 1 or more but got {self.min_survivors}.")

    def size(self, population: int) -> int:
        """Return the cohort's size for a population of that many clients."""
        if population < 1:
            raise FederatedConfigError("Expected at least one client but the population is empty: check the shards.")
        size = self.clients if self.clients is not None else max(1, round((self.fraction or 1.0) * population))
        if size > population:
            raise FederatedConfigError(
                f"Expected a cohort of at most the population's {population} clients but got `cohort.clients`={size}: "
                "lower it or partition the data into more clients."
            )
        if self.min_survivors > size:
            raise FederatedConfigError(
                f"Expected `cohort.min_survivors` of at most the cohort's {size} clients but got {self.min_survivors}."
            )
        return size

    def check_survivors(self, round_idx: int, survivors: int, failures: Mapping[int, str]) -> None:
        """Raise `TooFewClientsError` if a round has fewer usable clients than accepted."""
        if survivors < self.min_survivors:
            reasons = ", ".join(f"client {k}: {why}" for k, why in list(failures.items())[:10]) or "none chosen"
            raise TooFewClientsError(
                f"Expected at least {self.min_survivors} usable clients (`cohort.min_survivors`) in round {round_idx} "
                f"but got {survivors} ({reasons}): lower the dropout or the learning rate, raise the time budget, or "
                "enlarge the cohort. The server is unchanged."
            )


@dataclass(frozen=True)
class LocalTraining:
    """What a client does between broadcast and upload.

    Args:
        epochs: Passes over the client's shard.
        steps: Optimizer steps instead of epochs; the shard is repeated or cut to fit.
        optimizer: ``fresh`` resets the optimizer and the step-wise schedule for each client, ``kept`` carries both
            from a client's last round to its next.
        remainder: What to do when a client's batches are no multiple of `accumulate_grad_batches`: refuse
            (``error``), leave out the last batches (``cut``), or repeat the first ones (``pad``).
        correction: A correction of the gradients against drift: `FedProx` or `Scaffold`.
    """

    epochs: int = 1
    steps: int | None = None
    optimizer: Literal["fresh", "kept"] = "fresh"
    remainder: Literal["error", "cut", "pad"] = "error"
    correction: Correction | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        if self.epochs < 1:
            raise FederatedConfigError(f"Expected `local.epochs` to be at least 1 but got {self.epochs}.")
        if self.steps is not None and self.steps < 1:
            raise FederatedConfigError(f"Expected `local.steps` to be at least 1 but got {self.steps}.")


@dataclass(frozen=True)
class ClientWork:
    """One client's part of a round: its batches of example indices and the size of its shard."""

    client_id: int
    num_examples: int
    batches: list[list[int]]


@dataclass(frozen=True)
class RoundSchedule:
    """A round before it starts: the cohort, the work of those who report, who fails to, and who trains together.

    `chunks` has places in `work`, those with more batches first; by default every client is alone.
    """

    round_idx: int
    cohort: tuple[int, ...]
    work: tuple[ClientWork, ...]
    failures: dict[int, str] = field(default_factory=dict)
    chunks: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        """Let every client train alone by default."""
        object.__setattr__(self, "chunks", self.chunks or tuple((i,) for i in range(len(self.work))))

    @property
    def num_batches(self) -> int:
        """Number of Lightning's batches of the whole round: those of the longest client of every chunk."""
        return sum(len(self.work[chunk[0]].batches) for chunk in self.chunks)

    def fingerprint(self) -> str:
        """Return a hash of every client's batches, in order, and of the chunks."""
        plan = [(work.client_id, work.num_examples, work.batches) for work in self.work], self.chunks
        return hashlib.sha256(repr((self.round_idx, plan)).encode()).hexdigest()


def derive_seed(*parts: int) -> int:
    """Mix integers into one 63-bit seed; the same parts always give the same seed, other parts an unrelated one."""
    words = np.array([part & 0xFFFFFFFF for part in parts], dtype=np.uint32)  # a list would be converted word by word
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0]) >> 1


def sample_cohort(
    population: int, size: int, seed: int, round_idx: int, weights: np.ndarray | None = None
) -> tuple[int, ...]:
    """Choose the clients of a round without replacement, in training order.

    Args:
        population: Number of clients.
        size: Number of clients to choose.
        seed: Seed of the federation.
        round_idx: The round, from 0.
        weights: Cumulative sums of each client's weight, for weighted sampling.

    Raises:
        FederatedConfigError: If fewer than `size` clients have a positive weight.
    """
    rng = random.Random(derive_seed(seed, round_idx, 0xC0))
    if weights is None:
        return tuple(rng.sample(range(population), size))
    positive = int(np.count_nonzero(np.diff(weights, prepend=0)))
    if positive < size:
        raise FederatedConfigError(
            f"Expected {size} clients with examples to sample from but only {positive} have any."
        )
    chosen: dict[int, None] = {}
    while len(chosen) < size:  # drawing again those already chosen is exactly sequential sampling without replacement
        chosen[int(np.searchsorted(weights, rng.random() * weights[-1], side="right"))] = None
    return tuple(chosen)


def drops_out(probability: float, seed: int, round_idx: int, client_id: int) -> bool:
    """Tell whether the simulation lets a client fail to report."""
    return probability > 0 and random.Random(derive_seed(seed, round_idx, client_id, 0xD0)).random() < probability


def epoch_batches(
    shard: Sequence[int], batch_size: int, generator: torch.Generator, lengths: Sequence[int] | None = None
) -> list[list[int]]:
    """Shuffle one pass over a shard and cut it into batches; with `lengths`, batches hold examples of like length.

    Lengths are sorted within windows of 32 batches only, so the order stays random where it matters.
    """
    order = [shard[i] for i in torch.randperm(len(shard), generator=generator).tolist()]
    if lengths is not None:
        window = 32 * batch_size
        order = [
            i
            for start in range(0, len(order), window)
            for i in sorted(order[start : start + window], key=lengths.__getitem__)
        ]
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    if lengths is not None:
        batches = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
    return batches


def client_batches(
    shard: Sequence[int],
    batch_size: int,
    local: LocalTraining,
    generator: torch.Generator,
    accumulate: int = 1,
    lengths: Sequence[int] | None = None,
) -> list[list[int]]:
    """Return all batches of a client's local training.

    Raises:
        FederatedConfigError: If the batches do not fill whole accumulation windows and `local.remainder` is ``error``.
    """
    batches: list[list[int]] = []
    if local.steps is not None:
        while len(batches) < local.steps * accumulate:
            batches += epoch_batches(shard, batch_size, generator, lengths)
        return batches[: local.steps * accumulate]
    for _ in range(local.epochs):
        batches += epoch_batches(shard, batch_size, generator, lengths)
    rest = len(batches) % accumulate
    if rest and local.remainder == "error":
        raise FederatedConfigError(
            f"Expected a number of local batches that `accumulate_grad_batches`={accumulate} divides but got "
            f"{len(batches)}: an accumulation window may not mix clients. Set `local.steps`, or `local.remainder` to "
            "`cut` or `pad`."
        )
    if rest and local.remainder == "cut" and len(batches) > accumulate:
        return batches[: len(batches) - rest]
    missing = (accumulate - rest) % accumulate  # a client with less than one window is padded even under `cut`
    return batches + [batches[i % len(batches)] for i in range(missing)]
