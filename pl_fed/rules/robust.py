"""Robust means: what a rule may put in place of the weighted mean of its clients' updates.

Coordinate-wise median and trimmed mean: Dong Yin et al., "Byzantine-Robust Distributed Learning", ICML 2018, arXiv
1803.01498, definitions 1 and 2. Krum and multi-Krum: Peva Blanchard et al., "Machine Learning with Adversaries",
NeurIPS 2017. A slot is averaged over the clients that hold it. The server must see every update, so none of them works
under secure aggregation.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pl_fed.errors import FederatedConfigError
from pl_fed.updates import AdapterState, Update


class RobustMean(ABC):
    """A mean that a minority of faulty clients cannot move far."""

    def chosen(self, server: AdapterState, updates: Sequence[Update]) -> Sequence[Update]:
        """Return the updates that take part; by default all."""
        return updates

    @abstractmethod
    def mean(self, values: Float[Tensor, "clients ..."]) -> Float[Tensor, "..."]:
        """Return the mean over the first dimension, one entry for each client that holds the values."""


@dataclass(frozen=True)
class Median(RobustMean):
    """The coordinate-wise median; of an even number of clients the mean of the two in the middle."""

    def mean(self, values: Float[Tensor, "clients ..."]) -> Float[Tensor, "..."]:
        """Return the median."""
        ordered = values.sort(dim=0).values
        middle = values.shape[0] // 2
        return ordered[middle] if values.shape[0] % 2 else (ordered[middle - 1] + ordered[middle]) / 2


@dataclass(frozen=True)
class TrimmedMean(RobustMean):
    """The coordinate-wise mean without the largest and the smallest values.

    Args:
        share: Share of the clients that is left out at each end, rounded down.
    """

    share: float = 0.1

    def __post_init__(self) -> None:
        """Check the share."""
        if not 0 <= self.share < 0.5:
            raise FederatedConfigError(f"Expected `share` of TrimmedMean in [0, 0.5) but got {self.share}.")

    def mean(self, values: Float[Tensor, "clients ..."]) -> Float[Tensor, "..."]:
        """Return the mean of what is left."""
        cut = int(self.share * values.shape[0] + 1e-9)
        return values.sort(dim=0).values[cut : values.shape[0] - cut].mean(dim=0)


@dataclass(frozen=True)
class Krum(RobustMean):
    """The mean of the updates that lie closest to their neighbours.

    Args:
        num_faulty: Number of clients that may be faulty, f; an update's score is the sum of its squared distances to
            its ``clients - f - 2`` nearest neighbours.
        num_chosen: Number of updates that are averaged: 1 is Krum, more is multi-Krum.
    """

    num_faulty: int = 1
    num_chosen: int = 1

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.num_faulty < 0 or self.num_chosen < 1:
            raise FederatedConfigError(
                f"Expected `num_faulty` >= 0 and `num_chosen` >= 1 of Krum but got {self.num_faulty} and "
                f"{self.num_chosen}."
            )

    def chosen(self, server: AdapterState, updates: Sequence[Update]) -> Sequence[Update]:
        """Return the updates of lowest score.

        Raises:
            FederatedConfigError: If the round has fewer than f + 3 clients, or fewer than `num_chosen`.
        """
        neighbours = len(updates) - self.num_faulty - 2
        if neighbours < 1 or self.num_chosen > len(updates):
            raise FederatedConfigError(
                f"Expected at least {max(self.num_faulty + 3, self.num_chosen)} clients in a round for Krum with "
                f"`num_faulty`={self.num_faulty} and `num_chosen`={self.num_chosen} but got {len(updates)}: enlarge "
                "the cohort or lower them."
            )
        flat = torch.stack([_flat(server, update) for update in updates])  # (clients, values)
        square = torch.stack([(flat - row).square().sum(1) for row in flat])  # (clients, clients)
        nearest = square.sort(dim=1).values[:, 1 : neighbours + 1]  # without the distance to itself
        order = torch.argsort(nearest.sum(1), stable=True)[: self.num_chosen]
        return [updates[i] for i in sorted(order.tolist())]

    def mean(self, values: Float[Tensor, "clients ..."]) -> Float[Tensor, "..."]:
        """Return the plain mean of the chosen."""
        return values.mean(dim=0)


def _flat(server: AdapterState, update: Update) -> Tensor:
    """Return an update as one vector at the server's rank, zero where the client holds no slot."""
    parts = []
    for name, layer in server.layers.items():
        part = update.layers[name]
        for value, known, dim in ((part.a, layer.a, 0), (part.b, layer.b, 1)):
            if value is not None:
                parts.append(torch.zeros_like(known).index_copy_(dim, part.slots, value).flatten())
    parts += [update.dense[name].flatten() for name in server.dense if name in update.dense]
    return torch.cat([value.double() for value in parts])


def add_robust(server: AdapterState, updates: Sequence[Update], robust: RobustMean) -> AdapterState:
    """Return the server's adapter plus the robust mean of the updates; every client counts alike."""
    chosen, result = robust.chosen(server, updates), server.clone()
    for name, layer in result.layers.items():
        parts = [update.layers[name] for update in chosen]
        for side, target in (("a", layer.a), ("b", layer.b.T)):  # (rank, d), shares the state's memory
            held: dict[int, list[Tensor]] = {}
            for part in parts:
                value = getattr(part, side)
                rows = () if value is None else (value if side == "a" else value.T)
                for slot, row in zip(part.slots.tolist(), rows, strict=False):
                    held.setdefault(slot, []).append(row)
            for slot, rows in held.items():
                target[slot] += robust.mean(torch.stack(rows))
    for name, value in result.dense.items():
        found = [update.dense[name] for update in chosen if name in update.dense]
        if found:
            value += robust.mean(torch.stack(found))
    result.merged = server.merged
    return result
