"""Who holds what: hand-computed partitions, and what must hold for all of them."""

from collections import Counter
from typing import Any

import datasets
import pytest
from flwr_datasets.partitioner import (
    DirichletPartitioner,
    GroupedNaturalIdPartitioner,
    IidPartitioner,
    InnerDirichletPartitioner,
    NaturalIdPartitioner,
    Partitioner,
    PathologicalPartitioner,
    SizePartitioner,
    VerticalEvenPartitioner,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from pl_fed.datamodules.config import SplitConfig
from pl_fed.datamodules.partition import Partition, assign, choose, divide, split_shard
from pl_fed.errors import FederatedConfigError


def table(labels: list[Any], **columns: list[Any]) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": [f"text {i}" for i in range(len(labels))], "label": labels, **columns})


class Fixed(Partitioner):
    """Gives the rows at fixed places to clients."""

    def __init__(self, places: list[list[int]]) -> None:
        super().__init__()
        self.places = places

    def load_partition(self, partition_id: int) -> datasets.Dataset:
        return self.dataset.select(self.places[partition_id])

    @property
    def num_partitions(self) -> int:
        return len(self.places)


def test_natural_ids() -> None:
    """Users sorted by name are the clients; `assign` keeps the order it is given."""
    data = table([0, 0, 1, 1, 0], user=["zoe", "ann", "zoe", "ann", "bob"])
    assert assign(NaturalIdPartitioner("user"), data, [4, 3, 2, 1, 0]) == ([[3, 1], [4], [2, 0]], ["ann", "bob", "zoe"])


def test_grouped_natural_ids() -> None:
    data = table([0, 0, 1], user=["a", "b", "c"])
    partitioner = GroupedNaturalIdPartitioner("user", group_size=2, sort_unique_ids=True)
    assert assign(partitioner, data, [0, 1, 2]) == ([[0, 1], [2]], ["a + b", "c"])


def test_sizes() -> None:
    assert assign(SizePartitioner([1, 3]), table([0] * 9), [8, 6, 4, 2]) == ([[8], [6, 4, 2]], ["client 0", "client 1"])


def test_pathological() -> None:
    """Client k has the classes k and k + 1 modulo 3; each class is halved between its two clients, in order."""
    partitioner = PathologicalPartitioner(3, "label", 2, class_assignment_mode="deterministic", shuffle=False)
    shards, _ = assign(partitioner, table([0, 0, 1, 1, 2, 2]), range(6))
    assert shards == [[0, 2], [3, 4], [1, 5]]


def test_string_labels() -> None:
    shards, _ = assign(DirichletPartitioner(2, "label", 100.0, min_partition_size=1), table(["x", "y"] * 20), range(40))
    assert sorted(i for shard in shards for i in shard) == list(range(40))


def test_iid_does_not_follow_the_file() -> None:
    """`IidPartitioner` cuts the table where it stands; a file sorted by label must not make clients of one label."""
    labels = [0] * 50 + [1] * 50
    partition = divide(table(labels), range(100), IidPartitioner(2), SplitConfig())
    assert all(15 < sum(labels[i] for i in shard) < 35 for shard in partition.shards)


def test_split_shard_by_hand() -> None:
    """Of 25 examples, .1 and .2 are 2 and 5, rounded down; 18 remain."""
    train, validation, test = split_shard(range(100, 125), SplitConfig(validation_fraction=0.1, test_fraction=0.2), 3)
    assert [len(train), len(validation), len(test)] == [18, 2, 5]
    assert sorted(train + validation + test) == list(range(100, 125))
    assert split_shard([7], SplitConfig(validation_fraction=0.4, test_fraction=0.5), 0) == ([7], [], [])


def test_choose_in_proportion() -> None:
    """Of 60 a and 40 b, a tenth is 6 a and 4 b."""
    groups = ["a", "a", "a", "b", "b"] * 20
    chosen = choose(range(1000, 1100), 10, seed=1, groups=groups)
    assert Counter(groups[i - 1000] for i in chosen) == {"a": 6, "b": 4}
    assert len(set(chosen)) == 10
    assert choose([1, 2], 0, seed=1, groups=["a", "b"]) == []


def invariants(partition: Partition, used: set[int]) -> None:
    parts = [partition.public, *partition.train, *partition.validation, *partition.test]
    everything = [i for part in parts for i in part]
    assert len(everything) == len(set(everything)), "an example has two holders"
    assert set(everything) == used
    assert all(partition.train)


@settings(max_examples=40, deadline=None)
@given(
    num_examples=st.integers(6, 80),
    num_clients=st.integers(1, 5),
    fractions=st.tuples(st.floats(0, 0.45), st.floats(0, 0.45), st.floats(0, 0.1)),
    seed=st.integers(0, 2**40),
    data=st.data(),
)
def test_everybody_holds_something_and_nobody_the_same(
    num_examples: int, num_clients: int, fractions: tuple[float, float, float], seed: int, data: st.DataObject
) -> None:
    rows = table(data.draw(st.lists(st.integers(0, 3), min_size=num_examples, max_size=num_examples)))
    used = sorted(data.draw(st.sets(st.integers(0, num_examples - 1), min_size=num_clients + 1)))
    validation, test, public = fractions
    config = SplitConfig(validation, test, public, seed=seed)
    groups = [str(label) for label in rows["label"]]
    partition = divide(rows, used, IidPartitioner(num_clients), config, groups)
    invariants(partition, set(used))
    again = divide(rows, used, IidPartitioner(num_clients), config, groups)
    assert partition == again


def test_partition_is_a_function_of_the_seed() -> None:
    rows, partitioner = table([0, 1] * 50), DirichletPartitioner(4, "label", 0.5, min_partition_size=2)
    first = divide(rows, range(100), partitioner, SplitConfig(public_examples=10))
    assert (
        divide(rows, range(100), partitioner, SplitConfig(public_examples=10)) == first
    )  # the same object serves twice
    assert divide(rows, range(100), partitioner, SplitConfig(public_examples=10, seed=1)) != first
    invariants(first, set(range(100)))
    assert len(first.public) == 10


def test_holders() -> None:
    partition = Partition(["x", "y"], train=[[3], [0]], validation=[[1], []], test=[[], [5]], public=[2])
    assert partition.holders(7).tolist() == [1, 0, -1, 0, -1, 1, -1]


@pytest.mark.parametrize(
    ("partitioner", "message"),
    [
        (IidPartitioner(7), "at most as many clients as the 6 examples that are left to them but got 7"),
        (PathologicalPartitioner(7, "label", 1), "at most as many clients as the 6 examples .* but got 7"),
        (SizePartitioner([3, 4]), "Expected SizePartitioner to split 6 examples but it says: .*sizes"),
        (
            PathologicalPartitioner(2, "label", 4),
            "PathologicalPartitioner to split 6 .* says: .*: change its arguments, now .*",
        ),
        (NaturalIdPartitioner("user"), "`partitioner.partition_by` to be one of text, label but got 'user'"),
        (Fixed([[0, 1], [], [2]]), r"the shard of client 1 is empty \(1 of 3 clients\)"),
        (Fixed([]), "the shard of all clients is empty"),
        (Fixed([[0, 1], [1, 2]]), "every example to one client but some have several"),
        (VerticalEvenPartitioner(2), "whole examples but VerticalEvenPartitioner splits columns"),
    ],
)
def test_impossible(partitioner: Partitioner, message: str) -> None:
    with pytest.raises(FederatedConfigError, match=message):
        assign(partitioner, table([0, 0, 1, 1, 2, 2]), range(6))


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_a_partitioner_that_wants_numbers() -> None:
    message = "InnerDirichletPartitioner to split 6 .*partition_by='label'.*it wants labels that are the numbers 0, 1, "
    with pytest.raises(FederatedConfigError, match=message):
        assign(InnerDirichletPartitioner([3, 3], "label", 0.5), table(["a", "a", "b", "b", "c", "c"]), range(6))


def test_used_partitioner() -> None:
    partitioner = IidPartitioner(2)
    partitioner.dataset = table([0, 1])
    with pytest.raises(
        FederatedConfigError, match="a fresh `partitioner` but this IidPartitioner has split other data"
    ):
        assign(partitioner, table([0, 1]), range(2))


def test_missing_natural_ids() -> None:
    data = table([0, 1], user=["ann", None])
    with pytest.raises(FederatedConfigError, match="`partitioner.partition_by`='user' but 1 of 2 have none: fill"):
        assign(NaturalIdPartitioner("user"), data, range(2))
