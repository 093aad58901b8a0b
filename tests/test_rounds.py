"""Cohorts and batches are pure functions of (seed, round); every refusal names value and remedy."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pl_fed.errors import FederatedConfigError
from pl_fed.loaders import ClientLoader, RoundLoader, RoundPlan
from pl_fed.rounds import CohortConfig, LocalTraining, client_batches, derive_seed, epoch_batches, sample_cohort


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@given(seed=st.integers(0, 2**31), round_idx=st.integers(0, 10**6), population=st.integers(1, 10**9))
def test_cohort_is_a_pure_function_without_repeats(seed: int, round_idx: int, population: int) -> None:
    size = min(population, 7)
    cohort = sample_cohort(population, size, seed, round_idx)
    assert cohort == sample_cohort(population, size, seed, round_idx)
    assert len(set(cohort)) == size and all(0 <= k < population for k in cohort)


def test_uniform_cohorts_are_uniform() -> None:
    """4,000 rounds of 2 out of 5: each client in 1,600 +- 5 standard deviations (31)."""
    counts = Counter(k for r in range(4000) for k in sample_cohort(5, 2, 1, r))
    assert all(abs(count - 1600) < 155 for count in counts.values())


def test_weighted_cohorts_follow_the_weights() -> None:
    """One of three clients with 1, 2 and 5 examples: 4,000 draws give 500, 1,000 and 2,500 within 5 deviations."""
    weights = np.cumsum([1, 2, 5])
    counts = Counter(sample_cohort(3, 1, 1, r, weights)[0] for r in range(4000))
    assert all(abs(counts[k] - share) < 160 for k, share in enumerate([500, 1000, 2500]))
    assert set(sample_cohort(3, 3, 1, 0, weights)) == {0, 1, 2}


def test_weighted_sampling_refuses_too_few_clients_with_examples() -> None:
    with pytest.raises(FederatedConfigError, match="2 clients with examples to sample from but only 1"):
        sample_cohort(3, 2, 0, 0, np.cumsum([0, 4, 0]))


def test_seeds_do_not_collide() -> None:
    seeds = {derive_seed(s, r, k) for s in range(5) for r in range(20) for k in range(20)}
    assert len(seeds) == 2000


@given(count=st.integers(1, 60), batch_size=st.integers(1, 9), grouped=st.booleans())
def test_an_epoch_holds_every_example_once(count: int, batch_size: int, grouped: bool) -> None:
    shard, lengths = list(range(100, 100 + count)), [i % 7 for i in range(200)]
    batches = epoch_batches(shard, batch_size, generator(), lengths if grouped else None)
    assert sorted(i for batch in batches for i in batch) == shard
    assert sum(len(batch) == batch_size for batch in batches) == count // batch_size


def test_length_grouping_saves_padding() -> None:
    lengths = [int(x) for x in np.random.default_rng(0).integers(1, 200, 256)]

    def padded(batches: list[list[int]]) -> int:
        return sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)

    plain = padded(epoch_batches(range(256), 8, generator()))
    grouped = padded(epoch_batches(range(256), 8, generator(), lengths))
    assert grouped < 0.7 * plain and grouped < 1.1 * sum(lengths)


def test_local_steps_and_remainders() -> None:
    """5 examples in batches of 2 make 3 batches an epoch."""

    def count(local: LocalTraining, accumulate: int = 1) -> int:
        return len(client_batches(range(5), 2, local, generator(), accumulate))

    assert count(LocalTraining(epochs=3)) == 9
    assert count(LocalTraining(steps=7)) == 7
    assert count(LocalTraining(steps=4), accumulate=2) == 8
    assert count(LocalTraining(epochs=1, remainder="cut"), accumulate=2) == 2
    assert count(LocalTraining(epochs=1, remainder="pad"), accumulate=2) == 4
    assert count(LocalTraining(epochs=1, remainder="cut"), accumulate=4) == 4, "less than a window is padded"


def test_accumulation_that_does_not_divide_is_refused() -> None:
    plan = RoundPlan([[0, 1, 2, 3, 4]], batch_size=2)
    plan.bind(CohortConfig(), LocalTraining(), seed=0, accumulate=2)
    with pytest.raises(FederatedConfigError, match="Client 0: .*`accumulate_grad_batches`=2 divides but got 3"):
        len(plan)


class Million(Sequence[Sequence[int]]):
    """A population whose shards are made on demand; counts how many were."""

    def __init__(self) -> None:
        self.made = 0

    def __len__(self) -> int:
        return 10**6

    def __getitem__(self, client_id: int) -> Sequence[int]:  # type: ignore[override]
        self.made += 1
        return [client_id % 50, (client_id + 1) % 50]


def test_a_million_clients_cost_what_the_cohort_costs() -> None:
    shards = Million()
    loader = RoundLoader(list(range(50)), shards, batch_size=1)
    loader.plan.bind(CohortConfig(clients=5), LocalTraining(), seed=0)
    assert len(loader) == 10 and len(list(loader)) == 10
    assert shards.made == 5


def test_client_loader_never_mixes_clients() -> None:
    loader = ClientLoader(list(range(9)), [[0, 1, 2], [], [3, 4, 5, 6]], batch_size=2)
    assert [batch.tolist() for batch in loader] == [[0, 1], [2], [3, 4], [5, 6]]
    assert len(loader) == 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CohortConfig(clients=0), "`cohort.clients` to be at least 1 but got 0"),
        (lambda: CohortConfig(clients=2, fraction=0.5), "but got both, 2 and 0.5: set the other one to null"),
        (lambda: CohortConfig(fraction=1.5), r"`cohort.fraction` in \(0, 1\] but got 1.5"),
        (lambda: CohortConfig(dropout=1.0), r"`cohort.dropout` in \[0, 1\) but got 1.0"),
        (lambda: CohortConfig(min_survivors=0), "`cohort.min_survivors` of 1 or more but got 0"),
        (lambda: CohortConfig(clients=9).size(4), "at most the population's 4 clients but got `cohort.clients`=9"),
        (lambda: CohortConfig(clients=2, min_survivors=3).size(4), "at most the cohort's 2 clients but got 3"),
        (lambda: CohortConfig().size(0), "at least one client but the population is empty"),
        (lambda: LocalTraining(epochs=0), "`local.epochs` to be at least 1 but got 0"),
        (lambda: LocalTraining(steps=0), "`local.steps` to be at least 1 but got 0"),
        (lambda: RoundPlan([[0]], batch_size=0), "`batch_size` to be at least 1 but got 0"),
    ],
)
def test_refusals(make: object, message: str) -> None:
    with pytest.raises(FederatedConfigError, match=message):
        make()  # type: ignore[operator]


def test_empty_shard_is_named() -> None:
    plan = RoundPlan([[0], []], batch_size=1)
    plan.bind(CohortConfig(), LocalTraining(), seed=0)
    with pytest.raises(FederatedConfigError, match="the shard of client 1 is empty"):
        len(plan)
