"""The audit's batches: the clients' own shards, labels under many names, noise of the same shape."""

import pytest
import torch
from torch.utils.data import TensorDataset

from pl_fed.callbacks._audit_batches import count_labels, draw_batches, find_labels, noise_like
from pl_fed.errors import FederatedConfigError
from pl_fed.loaders import RoundLoader


def test_clients_of_a_federation_keep_their_shards() -> None:
    """A loader whose batch sampler knows shards: nobody is given an example of another client."""
    shards = [list(range(0, 40)), list(range(40, 50)), list(range(50, 100))]
    data = RoundLoader(TensorDataset(torch.zeros(100, 2), torch.arange(100)), shards, batch_size=8)
    drawn = [torch.cat([batch[1] for batch in client]) for client in draw_batches(data, 3, 2)]
    owners = [{next(k for k, s in enumerate(shards) if int(i) in s) for i in ids} for ids in drawn]
    assert sorted(owners, key=min) == [{0}, {1}, {2}] and all(len(ids) == 16 for ids in drawn)
    with pytest.raises(FederatedConfigError, match="examples for 4 clients"):
        draw_batches(data, 4, 1)


def test_labels_and_noise() -> None:
    with pytest.raises(FederatedConfigError, match="override `LabelInferenceAttack.labels`"):
        find_labels({"digit": torch.zeros(2)})
    with pytest.raises(FederatedConfigError, match="a classification loss"):
        count_labels(torch.tensor([0.5, 1.5]), 3)
    assert count_labels(torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]), 3).tolist() == [1, 0, 2]
    noise = noise_like({"ids": torch.tensor([[3, 9]]), "mask": torch.tensor([[1, 0]]), "x": torch.zeros(1, 2)})
    assert noise["mask"].tolist() == [[1, 0]] * 2 and int(noise["ids"].max()) < 10 and bool(noise["x"].all())
    assert not torch.equal(noise["x"][0], noise["x"][1])  # two examples, although the batch has one
    assert noise_like([torch.zeros(3, 2), torch.ones(1)])[1].shape == (1,)
