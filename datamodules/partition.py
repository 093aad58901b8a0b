"""From a table of examples to the shards of clients, with any partitioner of flwr-datasets.

Indices everywhere count rows of the one table that all splits share. A partitioner sees the rows in an order shuffled
by the seed, since some of them (`IidPartitioner`) cut the table where it stands.
"""

import copy
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
from flwr_datasets.partitioner import Partitioner

from pl_fed.datamodules.cells import check_ids, is_csv, lossless_numbers
from pl_fed.datamodules.config import SplitConfig
from pl_fed.errors import FederatedConfigError
from pl_fed.rounds import derive_seed

INDEX = "__index__"
Indices = list[int]


@dataclass(frozen=True)
class Partition:
    """Who holds which training examples; no example has two holders.

    Args:
        names: Name of every client.
        train: Indices of the training examples by client.
        validation: Indices of the validation examples by client; a small client may have none.
        test: Indices of the test examples by client; a small client may have none.
        public: Indices of the examples of the server.
    """

    names: list[str]
    train: list[Indices]
    validation: list[Indices]
    test: list[Indices]
    public: Indices

    @property
    def shards(self) -> list[Indices]:
        """All examples of each client."""
        return [[*a, *b, *c] for a, b, c in zip(self.train, self.validation, self.test, strict=True)]

    def holders(self, num_examples: int) -> np.ndarray:
        """Return the client of every example, -1 for those that no client holds."""
        client_ids = np.full(num_examples, -1)
        for client_id, shard in enumerate(self.shards):
            client_ids[shard] = client_id
        return client_ids


class _Rows(datasets.Dataset):  # type: ignore[misc]  # untyped
    """A table whose columns come as lists: partitioners turn whole columns into arrays, which lazy ones make slow."""

    def __getitem__(self, key: Any) -> Any:
        value = super().__getitem__(key)
        return value[:] if isinstance(key, str) else value


def choose(indices: Sequence[int], size: int, seed: int, groups: Sequence[str] | None = None) -> Indices:
    """Choose examples at random; with `groups`, every group in proportion to its size.

    Args:
        indices: What to choose from.
        size: Number of examples to choose.
        seed: Seed of the choice.
        groups: Group of each of `indices`.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(indices))
    if size == 0:
        return []
    if groups is None:
        return [int(indices[i]) for i in order[:size]]
    keys = np.unique(np.asarray(groups), return_inverse=True)[1]
    order = order[np.argsort(keys[order], kind="stable")]
    positions = (np.arange(size) * len(indices) + rng.integers(len(indices))) // size  # evenly over the sorted groups
    return [int(indices[i]) for i in order[positions]]


def split_shard(shard: Sequence[int], config: SplitConfig, client_id: int) -> tuple[Indices, Indices, Indices]:
    """Split a client's shard into training, validation and test examples; training is never empty."""
    order = np.random.default_rng(derive_seed(config.seed, client_id, 0x5B)).permutation(len(shard))
    mixed = [int(shard[i]) for i in order]
    num_validation = int(config.validation_fraction * len(shard) + 1e-9)
    num_test = int(config.test_fraction * len(shard) + 1e-9)
    held_out = num_validation + num_test
    return mixed[held_out:], mixed[:num_validation], mixed[num_validation:held_out]


_ADVICE = {
    "InnerDirichletPartitioner": "; it wants labels that are the numbers 0, 1, ... (DirichletPartitioner takes any)"
}


def _arguments(partitioner: Partitioner) -> str:
    """Return a partitioner's settings as it keeps them, as ``alpha=0.5, num_partitions=3``."""
    settings = {name.lstrip("_"): value for name, value in vars(partitioner).items()}
    plain = {name: value for name, value in settings.items() if isinstance(value, (bool, int, float, str, list))}
    return textwrap.shorten(", ".join(f"{name}={value!r}" for name, value in plain.items()), 300, placeholder=" ...")


def assign(partitioner: Partitioner, data: datasets.Dataset, indices: Sequence[int]) -> tuple[list[Indices], list[str]]:
    """Let a partitioner give the rows `indices` of `data` to clients.

    Returns:
        The shard of every client, and the clients' names.

    Raises:
        FederatedConfigError: If it cannot, or if a shard is empty or shares an example with another.
    """
    kind = type(partitioner).__name__
    if partitioner.is_dataset_assigned():
        raise FederatedConfigError(
            f"Expected a fresh `partitioner` but this {kind} has split other data: make a new one."
        )
    wanted = getattr(partitioner, "_num_partitions", 1)
    if wanted > len(indices):
        raise FederatedConfigError(
            f"Expected at most as many clients as the {len(indices)} examples that are left to them but got {wanted}: "
            "lower `partitioner.num_partitions` or use more data."
        )
    fresh = copy.deepcopy(partitioner)  # it accepts one table only, and setup may run again
    fresh.dataset, index = _rows(fresh, data, indices)
    try:
        parts = [fresh.load_partition(k) for k in range(fresh.num_partitions)]
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise FederatedConfigError(
            f"Expected {kind} to split {len(indices)} examples but it says: {str(error).rstrip('. ')}: change its "
            f"arguments, now {_arguments(partitioner)}{_ADVICE.get(kind, '')}."
        ) from error
    shards = [_read_index(part, index, kind) for part in parts]
    names = _client_names(fresh, len(shards))
    _check_shards(shards, names)
    return shards, names


def divide(
    data: datasets.Dataset,
    indices: Sequence[int],
    partitioner: Partitioner,
    config: SplitConfig,
    groups: Sequence[str] | None = None,
) -> Partition:
    """Split training examples over the server and the clients.

    Args:
        data: The training rows, with the columns that the partitioner reads.
        indices: The rows to use.
        partitioner: Gives what is not public to clients.
        config: Sizes and seed.
        groups: Group of every row of `data`; the public split has them in proportion.
    """
    chosen_groups = None if groups is None else [groups[i] for i in indices]
    size = config.public_size(len(indices))
    public = choose(indices, size, derive_seed(config.seed, 0xB1), chosen_groups)
    taken = set(public)
    private = [i for i in indices if i not in taken]
    mixed = choose(private, len(private), derive_seed(config.seed, 0xA5))
    shards, names = assign(partitioner, data, mixed)
    parts = [split_shard(shard, config, client_id) for client_id, shard in enumerate(shards)]
    return Partition(names, [p[0] for p in parts], [p[1] for p in parts], [p[2] for p in parts], public)


def _rows(partitioner: Partitioner, data: datasets.Dataset, indices: Sequence[int]) -> tuple[datasets.Dataset, str]:
    """Copy what the partitioner reads, in the order of `indices`, with each row's index and that column's name."""
    column = getattr(partitioner, "_partition_by", None)
    if column is not None and column not in data.column_names:
        raise FederatedConfigError(
            f"Expected `partitioner.partition_by` to be one of {', '.join(data.column_names)} but got '{column}'."
        )
    columns = [column] if column is not None else data.column_names
    if column is None and type(partitioner).__module__.startswith("flwr_datasets."):
        columns = []  # looks at no content, so no text is copied
    content = data.select_columns(columns).with_format(None)[list(indices)] if columns else {}
    if column is not None:
        check_ids(content[column], column)
    if is_csv(data):
        content = {name: lossless_numbers(cells) for name, cells in content.items()}
    index = INDEX
    while index in content:
        index += "_"
    return _Rows.from_dict({**content, index: list(indices)}), index


def _read_index(part: datasets.Dataset, index: str, kind: str) -> Indices:
    if index not in part.column_names:
        raise FederatedConfigError(
            f"Expected a partitioner that gives each client whole examples but {kind} splits columns: use another one."
        )
    indices: Indices = part[index][:]
    return indices


def _client_names(partitioner: Partitioner, num_clients: int) -> list[str]:
    by_id = getattr(partitioner, "partition_id_to_natural_id", None)
    by_group = getattr(partitioner, "partition_id_to_natural_ids", None)
    if by_id:
        return [str(by_id[k]) for k in range(num_clients)]
    if by_group:
        return [" + ".join(map(str, by_group[k])) for k in range(num_clients)]
    return [f"client {k}" for k in range(num_clients)]


def _check_shards(shards: Sequence[Sequence[int]], names: Sequence[str]) -> None:
    empty = [name for shard, name in zip(shards, names, strict=True) if not shard]
    if empty or not shards:
        raise FederatedConfigError(
            f"Expected every client to have examples but the shard of {empty[0] if empty else 'all clients'} is empty "
            f"({len(empty)} of {len(shards)} clients): use fewer clients or a partitioner with a minimum size."
        )
    if len({i for shard in shards for i in shard}) < sum(map(len, shards)):
        raise FederatedConfigError(
            "Expected the partitioner to give every example to one client but some have several: one client would be "
            "tested on what another trains on."
        )
