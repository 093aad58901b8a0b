"""Data loaders of a federation: one epoch of `RoundLoader` is one round.

A datamodule returns a `RoundLoader` over the pooled examples and the clients' shards. `FederatedStrategy` binds the
round's settings to it; without that strategy it is an ordinary shuffled loader over all clients' examples, which is
centralised training.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from pl_fed.chunks import Grouped, GroupedCollate, chunk_batches, chunks_of
from pl_fed.client_loader import ClientLoader as ClientLoader  # offered here too
from pl_fed.errors import FederatedConfigError
from pl_fed.processes import share_out
from pl_fed.rounds import (
    ClientWork,
    CohortConfig,
    LocalTraining,
    RoundSchedule,
    Shards,
    client_batches,
    derive_seed,
    drops_out,
    epoch_batches,
    sample_cohort,
)


class RoundPlan(Sampler[list[int]]):
    """Batch sampler whose epoch `r` is round `r`: every client's batches, one client after the other.

    Args:
        shards: Example indices by client.
        batch_size: Examples in a client's batch.
        lengths: Length of every example, to put examples of like length together.
    """

    def __init__(self, shards: Shards, batch_size: int, lengths: Sequence[int] | None = None) -> None:
        if batch_size < 1:
            raise FederatedConfigError(f"Expected `batch_size` to be at least 1 but got {batch_size}.")
        self.shards, self.batch_size, self.lengths = shards, batch_size, lengths
        self.cohort: CohortConfig | None = None
        self.local = LocalTraining()
        self.seed, self.accumulate = 0, 1
        self.clients_per_chunk: int | None = None  # with the packed engine
        self.round_idx = 0
        self.skip = 0  # batches to leave out at the next start, after a resume
        self.committed = 0  # batches of this round that were trained; fetched ones may be more
        self.ended = False  # whether this round is over, also before its last batch
        self.sampler = self  # Lightning calls `set_epoch` on `loader.sampler` and `batch_sampler.sampler` only
        self.process, self.num_processes = 0, 1
        self.schedule: Callable[[int], RoundSchedule] = lru_cache(maxsize=2)(self._schedule)
        self.own_schedule: Callable[[int], RoundSchedule] = lru_cache(maxsize=2)(self._own_schedule)

    def bind(
        self,
        cohort: CohortConfig,
        local: LocalTraining,
        seed: int,
        accumulate: int = 1,
        clients_per_chunk: int | None = None,
    ) -> None:
        """Set what a round is; called by the strategy before the first batch.

        With `clients_per_chunk` batches are those of a chunk of clients (`PackedBatch`), not of one client.
        """
        cohort.size(len(self.shards))
        self.cohort, self.local, self.seed, self.accumulate = cohort, local, seed, accumulate
        self.clients_per_chunk = clients_per_chunk
        self.schedule = lru_cache(maxsize=2)(self._schedule)
        self.own_schedule = lru_cache(maxsize=2)(self._own_schedule)

    def set_epoch(self, epoch: int) -> None:
        """Choose the round of the next pass; Lightning calls it at the start of every epoch."""
        if epoch != self.round_idx:
            self.skip, self.committed, self.ended = 0, 0, False
        self.round_idx = epoch

    def _weights(self) -> np.ndarray | None:
        if self.cohort is None or self.cohort.sampling == "uniform":
            return None
        sizes = getattr(self.shards, "sizes", None)  # a lazy population states its sizes instead of building shards
        return np.cumsum([len(self.shards[k]) for k in range(len(self.shards))] if sizes is None else sizes)

    def _schedule(self, round_idx: int) -> RoundSchedule:
        """Return the work of a round; a pure function of the seed and the round."""
        if self.cohort is None:
            raise FederatedConfigError("Expected a bound round plan: use it with `FederatedStrategy`.")
        size = self.cohort.size(len(self.shards))
        chosen = sample_cohort(len(self.shards), size, self.seed, round_idx, self._weights())
        failures, work = {}, []
        for client_id in chosen:
            if drops_out(self.cohort.dropout, self.seed, round_idx, client_id):
                failures[client_id] = "dropout"
            else:
                work.append(self._client_work(round_idx, client_id))
        return RoundSchedule(round_idx, chosen, tuple(work), failures, self._chunks(work))

    def _chunks(self, work: Sequence[ClientWork]) -> tuple[tuple[int, ...], ...]:
        """Return who is trained together; nothing means everybody alone."""
        return chunks_of(work, self.clients_per_chunk) if self.clients_per_chunk is not None else ()

    def _own_schedule(self, round_idx: int) -> RoundSchedule:
        """Return a round with the work of this process alone."""
        schedule = self.schedule(round_idx)
        if self.num_processes == 1:
            return schedule
        work = share_out(schedule.work, self.num_processes)[self.process]
        return replace(schedule, work=work, chunks=self._chunks(work))

    def fingerprint(self) -> str:
        """Return a hash of the population: its size and the shards of up to 32 clients, spread evenly over it."""
        size, digest = len(self.shards), hashlib.sha256()
        digest.update(str(size).encode())
        for client_id in sorted({i * size // 32 for i in range(32)}):
            digest.update(np.asarray(self.shards[client_id], dtype=np.int64).tobytes() + b"|")
        return digest.hexdigest()

    def _client_work(self, round_idx: int, client_id: int) -> ClientWork:
        shard = self.shards[client_id]
        if len(shard) == 0:
            raise FederatedConfigError(
                f"Expected every client to have examples but the shard of client {client_id} is empty: "
                "use a partitioner with a minimum size, or fewer clients."
            )
        generator = torch.Generator().manual_seed(derive_seed(self.seed, round_idx, client_id))
        try:
            batches = client_batches(shard, self.batch_size, self.local, generator, self.accumulate, self.lengths)
        except FederatedConfigError as error:
            raise FederatedConfigError(f"Client {client_id}: {error}") from None
        return ClientWork(client_id, len(shard), batches)

    def _pooled(self) -> list[list[int]]:
        examples = [i for client_id in range(len(self.shards)) for i in self.shards[client_id]]
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.round_idx))
        return epoch_batches(examples, self.batch_size, generator, self.lengths)

    def __iter__(self) -> Iterator[list[Any]]:
        """Iterate over the round's batches, without those that were trained before a resume."""
        if self.cohort is None:
            return iter(self._pooled())
        schedule = self.own_schedule(self.round_idx)
        flat = [step for chunk in schedule.chunks for step in chunk_batches(schedule.work, chunk)]
        left = flat[self.skip :]  # does not use `skip` up: torch calls this twice when there are workers
        return iter(left if self.clients_per_chunk is not None else [step[0] for step in left])

    def __len__(self) -> int:
        """Return the number of batches of the current round, in this process."""
        if self.cohort is None:
            return -(-sum(len(self.shards[k]) for k in range(len(self.shards))) // self.batch_size)
        return self.own_schedule(self.round_idx).num_batches


class RoundLoader(DataLoader[Any]):
    """A resumable loader that yields the batches of one round per epoch.

    Args:
        dataset: Map-style data set of all clients' training examples.
        shards: Example indices by client; may be lazy. With a ``sizes`` attribute, weighted sampling reads no shard.
        batch_size: Examples in a client's batch.
        lengths: Length of every example (tokens), to batch examples of like length.
        kwargs: Passed to `torch.utils.data.DataLoader` (`collate_fn`, `num_workers`, `pin_memory`, ...).

    Example:
        >>> loader = RoundLoader(range(6), shards=[[0, 1, 2], [3, 4, 5]], batch_size=2)
        >>> len(loader)  # not bound to a strategy: all clients' examples, shuffled together
        3
    """

    batch_sampler: RoundPlan

    def __init__(
        self,
        dataset: Any,
        shards: Shards,
        batch_size: int = 8,
        lengths: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        # an own generator, since every new iterator would otherwise draw from the global one
        kwargs.setdefault("generator", torch.Generator())
        super().__init__(dataset, batch_sampler=RoundPlan(shards, batch_size, lengths), **kwargs)

    @property
    def plan(self) -> RoundPlan:
        """The batch sampler, which knows the rounds."""
        return self.batch_sampler

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a generator, see below
        """Iterate lazily: on resume Lightning asks for the iterator before it sets the epoch."""
        self.generator.manual_seed(derive_seed(self.plan.seed, self.plan.round_idx, 0xDA))
        packed = self.plan.cohort is not None and self.plan.clients_per_chunk is not None
        iterator = iter(self._grouped()) if packed else super().__iter__()
        self.plan.skip = 0
        yield from iterator

    def _grouped(self) -> DataLoader[Any]:
        """Return a loader of the same settings for the batches of chunks."""
        return DataLoader(
            Grouped(self.dataset),
            batch_sampler=self.plan,
            num_workers=self.num_workers,
            collate_fn=GroupedCollate(self.collate_fn),
            pin_memory=self.pin_memory,
            timeout=self.timeout,
            worker_init_fn=self.worker_init_fn,
            multiprocessing_context=self.multiprocessing_context,
            generator=self.generator,
            prefetch_factor=self.prefetch_factor,
        )

    def state_dict(self) -> dict[str, int]:
        """Return where the round stands, counted in trained batches; after the last one, the next round.

        So a round that has ended has ended for any number of processes that go on from here.
        """
        plan = self.plan
        if plan.cohort is not None and (plan.ended or plan.committed >= len(plan)):
            return {"round_idx": plan.round_idx + 1, "committed": 0}
        return {"round_idx": plan.round_idx, "committed": plan.committed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue a round; a state with all batches trained continues with the next round."""
        plan, done = self.plan, state["committed"]
        if plan.cohort is not None and not done and state["round_idx"] == plan.round_idx + 1:
            # Lightning is still in the round that has ended: it asks for its length, and no batch is left
            plan.ended, plan.skip, plan.committed = True, len(plan), len(plan)
            return
        plan.ended, plan.round_idx = False, state["round_idx"]
        if done >= len(plan):
            plan.round_idx, done = plan.round_idx + 1, 0
        plan.skip = plan.committed = done
