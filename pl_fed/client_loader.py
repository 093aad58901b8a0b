"""Evaluation by client: a loader whose batches each belong to one client."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader, Sampler

from pl_fed.rounds import Shards


class _ClientBatches(Sampler[list[int]]):
    """Batches that never mix two clients."""

    def __init__(self, shards: Shards, batch_size: int) -> None:
        self.shards, self.batch_size = shards, batch_size
        self.process, self.num_processes = 0, 1

    def _batches(self) -> Iterator[list[int]]:
        for client_id in range(len(self.shards)):
            shard = list(self.shards[client_id])
            yield from (shard[i : i + self.batch_size] for i in range(0, len(shard), self.batch_size))

    def __iter__(self) -> Iterator[list[int]]:
        return islice(self._batches(), self.process, None, self.num_processes)

    def __len__(self) -> int:
        total = sum(-(-len(self.shards[k]) // self.batch_size) for k in range(len(self.shards)))
        return len(range(self.process, total, self.num_processes))


class ClientLoader(DataLoader[Any]):
    """An evaluation loader whose batches each belong to one client.

    Args:
        dataset: Map-style data set of all clients' held-out examples.
        shards: Held-out example indices by client; a client may have none.
        batch_size: Largest batch.
        personalised: Evaluate each client with the adapter that it keeps, instead of the server's.
        kwargs: Passed to `torch.utils.data.DataLoader`.
    """

    def __init__(
        self, dataset: Any, shards: Shards, batch_size: int = 32, personalised: bool = False, **kwargs: Any
    ) -> None:
        self._batches = _ClientBatches(shards, batch_size)
        super().__init__(dataset, batch_sampler=self._batches, **kwargs)
        self.personalised = personalised
        self.name = "personalised" if personalised else "clients"

    def divide(self, process: int, num_processes: int) -> None:
        """Leave this process every `num_processes`-th batch; with fewer batches than processes, all of them."""
        self._batches.process, self._batches.num_processes = 0, 1
        if len(self._batches) >= num_processes:
            self._batches.process, self._batches.num_processes = process, num_processes
