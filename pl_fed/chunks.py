"""Clients that train together: how a round is cut into chunks, and the batches of a chunk.

The s-th batch of a chunk is the s-th batch of every client that still has one, each collated as it would be alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.utils.data import Dataset

from pl_fed.errors import FederatedConfigError
from pl_fed.rounds import ClientWork

TOKENS_ON_CPU, TOKENS_ELSEWHERE = 1024, 16384


@dataclass(frozen=True)
class Packing:
    """How many clients train together.

    Args:
        clients: Clients in a chunk: so many adapters, gradients and optimizer states are in memory at once.
        tokens: Most tokens of one forward and backward pass, which bounds the activations in memory. A step with more
            takes several passes, each of whole clients, so a client with more tokens than that passes alone. None means
            1024 on a CPU, which more do not make faster, and 16384 elsewhere.
    """

    clients: int = 16
    tokens: int | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        for key in ("clients", "tokens"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise FederatedConfigError(f"Expected `engine.{key}` to be at least 1 but got {value}.")

    def tokens_on(self, device: torch.device) -> int:
        """Return the most tokens of a pass on a device."""
        default = TOKENS_ON_CPU if device.type == "cpu" else TOKENS_ELSEWHERE
        return default if self.tokens is None else self.tokens


def chunks_of(work: Sequence[ClientWork], clients: int) -> tuple[tuple[int, ...], ...]:
    """Return the places of the clients of each chunk: those with like numbers of batches together, longest first.

    Example:
        >>> chunks_of([ClientWork(7, 1, [[0]]), ClientWork(8, 3, [[1], [2]]), ClientWork(9, 1, [[4]])], clients=2)
        ((1, 0), (2,))
    """
    order = sorted(range(len(work)), key=lambda i: -len(work[i].batches))  # stable
    return tuple(tuple(order[i : i + clients]) for i in range(0, len(order), clients))


def chunk_batches(work: Sequence[ClientWork], chunk: Sequence[int]) -> list[list[list[int]]]:
    """Return the batches of a chunk: step, client, example index."""
    longest = len(work[chunk[0]].batches)
    return [[work[i].batches[s] for i in chunk if s < len(work[i].batches)] for s in range(longest)]


@dataclass
class PackedBatch:
    """One batch of each client in training, as each would come alone; the clients are the first of the chunk."""

    batches: list[Any]

    def to(self, device: torch.device, **kwargs: Any) -> "PackedBatch":
        """Return the batches on `device`; Lightning calls it."""
        return type(self)(apply_to_collection(self.batches, Tensor, lambda value: value.to(device, **kwargs)))

    def pin_memory(self) -> "PackedBatch":
        """Return the batches in pinned memory; the loader calls it."""
        return type(self)(apply_to_collection(self.batches, Tensor, lambda value: value.pin_memory()))


class Grouped(Dataset[list[Any]]):
    """A data set whose index is a list of indices."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, indices: list[int]) -> list[Any]:
        """Return the examples of one client's batch."""
        fetch = getattr(self.dataset, "__getitems__", None)
        return cast(list[Any], fetch(indices)) if fetch else [self.dataset[i] for i in indices]


@dataclass
class GroupedCollate:
    """Collates each client's examples by themselves."""

    collate: Callable[[list[Any]], Any]

    def __call__(self, groups: list[list[Any]]) -> PackedBatch:
        """Return the batches of one step."""
        return PackedBatch([self.collate(examples) for examples in groups])
