"""The ring against Python's integers, and the canonical order of named tensors."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pl_fed.errors import FederatedConfigError
from pl_fed.privacy.flatten import Layout, flatten, unflatten
from pl_fed.privacy.ring import Ring


@settings(max_examples=50, deadline=None)
@given(bits=st.sampled_from([32, 64]), data=st.data())
def test_words_add_like_integers_modulo_two_to_the_bits(bits: int, data: st.DataObject) -> None:
    half = 2 ** (bits - 1)
    integers = st.lists(st.integers(-half, half - 1), min_size=3, max_size=3)
    x, y = data.draw(integers), data.draw(integers)
    ring = Ring(bits)
    words = ring.words(torch.tensor(x)) + ring.words(torch.tensor(y))
    expected = [(a + b + half) % (2 * half) - half for a, b in zip(x, y, strict=True)]
    assert ring.values(words).tolist() == expected
    assert ring.wrap(torch.tensor(x) + torch.tensor(y)).tolist() == expected
    assert words.dtype == np.dtype(f"<u{bits // 8}")


def test_words_refuse_what_would_be_wrapped_in_silence() -> None:
    for value in (2**31, -(2**31) - 1):
        with pytest.raises(FederatedConfigError, match=r"Expected values in \[-2\^31, 2\^31\) .* a ring of 64 bits"):
            Ring(32).words(torch.tensor([0, value]))
    with pytest.raises(FederatedConfigError, match=r"int64 vector but got torch.int32"):
        Ring(32).words(torch.tensor([0], dtype=torch.int32))
    with pytest.raises(FederatedConfigError, match="32 or 64 but got 48"):
        Ring(48)


def test_order_does_not_depend_on_the_dictionary() -> None:
    """Names by code point: "B" before "a", "a.10" before "a.2"; an empty tensor and a scalar take 0 and 1 places."""
    tensors = {
        "a.2": torch.tensor([3.0, 4.0]),
        "B": torch.tensor(1.0),
        "a.10": torch.tensor([[2.0]]),
        "e": torch.ones(0),
    }
    layout = Layout.of(tensors)
    assert layout.names == ("B", "a.10", "a.2", "e")
    assert layout == Layout.of(dict(reversed(tensors.items())))
    vector = flatten(dict(reversed(tensors.items())), layout)
    assert vector.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert layout.num_values == 4


def test_there_and_back_keeps_shapes_types_and_values() -> None:
    """float64 beside bfloat16: the vector has the wider type, so nothing is lost; the copies are independent."""
    tensors = {"x": torch.randn(2, 3, dtype=torch.float64), "y": torch.randn(4).bfloat16(), "z": torch.randn(())}
    layout = Layout.of(tensors)
    vector = flatten(tensors, layout)
    assert vector.dtype == torch.float64
    back = unflatten(vector, layout)
    assert list(back) == ["x", "y", "z"]
    for name, value in tensors.items():
        assert back[name].dtype == value.dtype and torch.equal(back[name], value)
    vector.zero_()
    assert torch.equal(back["x"], tensors["x"])


def test_nothing_flattens_to_nothing() -> None:
    layout = Layout.of({})
    assert flatten({}, layout).numel() == 0
    assert unflatten(torch.zeros(0), layout) == {}


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        ({"a": torch.ones(2)}, "`b` is missing"),
        ({"a": torch.ones(2), "b": torch.ones(1), "c": torch.ones(1)}, "`c` is too many"),
        ({"a": torch.ones(2), "b": torch.ones(1, 1)}, r"`b` is \(1, 1\) in torch.float32 where \(1,\)"),
        ({"a": torch.ones(2).double(), "b": torch.ones(1)}, r"`a` is \(2,\) in torch.float64"),
    ],
)
def test_another_layout_is_named(tensors: dict[str, torch.Tensor], problem: str) -> None:
    layout = Layout.of({"a": torch.ones(2), "b": torch.ones(1)})
    with pytest.raises(FederatedConfigError, match=problem):
        flatten(tensors, layout)


def test_integers_and_wrong_lengths_are_refused() -> None:
    with pytest.raises(FederatedConfigError, match=r"`n` is torch.int64: leave it out"):
        Layout.of({"n": torch.ones(1, dtype=torch.int64)})
    with pytest.raises(FederatedConfigError, match="a vector of 2 values but got 3"):
        unflatten(torch.ones(3), Layout.of({"a": torch.ones(2)}))
