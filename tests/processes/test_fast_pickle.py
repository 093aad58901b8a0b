"""Tensors that travel between processes keep every bit."""

import pickle

import pytest
import torch

from pl_fed.fast_pickle import dumps


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool]
)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (4, 5)])
def test_round_trip(dtype, shape):
    value = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = pickle.loads(dumps(value))
    assert found.dtype == dtype and found.shape == value.shape and torch.equal(found, value)


def test_bits_of_odd_numbers():
    value = torch.tensor([float("nan"), -0.0, float("inf"), 1e-45])
    assert pickle.loads(dumps(value)).view(torch.int32).tolist() == value.view(torch.int32).tolist()


def test_views_and_structures():
    whole = torch.arange(12.0).reshape(3, 4)
    sent = {"column": whole[:, 1], "list": [whole.t(), None, 3], "parameter": torch.nn.Parameter(whole)}
    found = pickle.loads(dumps(sent))
    assert found["column"].tolist() == [1.0, 5.0, 9.0]
    assert torch.equal(found["list"][0], whole.t()) and found["list"][1:] == [None, 3]
    assert isinstance(found["parameter"], torch.nn.Parameter) and found["parameter"].requires_grad
    found["column"][0] = 7  # memory of its own, and writable
    assert whole[0, 1] == 1
