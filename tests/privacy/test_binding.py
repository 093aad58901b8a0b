"""The hash of a received model: what changes it, what does not; and the echo among clients."""

import hashlib
import math
import struct

import pytest
import torch
from torch import nn

from pl_fed.errors import FederatedConfigError
from pl_fed.privacy.binding import HashEcho, model_hash, module_hash, tensor_bytes
from pl_fed.privacy.pairwise import TooFewSurvivorsError
from pl_fed.privacy.pairwise.errors import (
    ForgedMessageError,
    MalformedMessageError,
    MembershipError,
    ModelMismatchError,
    OutOfOrderError,
    WrongSessionError,
)
from pl_fed.privacy.pairwise.frames import Kind
from tests.helpers.secure import Parties, from_client


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.norm = nn.Linear(3, 2), nn.BatchNorm1d(2)
        self.register_buffer("table", torch.arange(3), persistent=False)
        self.tied = self.linear


def test_by_hand() -> None:
    """The bytes that are hashed, put together with `struct` alone."""

    def text(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    shape, values = struct.pack("<QQ", 1, 2), struct.pack("<ff", 1.5, -0.0)
    expected = hashlib.sha256(
        text(b"pl_fed model v1") + text(struct.pack("<Q", 5)) + text(b'{"a":1,"b":[true,null]}')
        + struct.pack("<Q", 1) + text(b"parameter") + text(b"w") + text(b"torch.float32") + text(shape) + text(values)
        + struct.pack("<Q", 0)
    ).digest()  # fmt: skip
    assert model_hash(5, {"w": torch.tensor([[1.5, -0.0]])}, {}, {"b": [True, None], "a": 1}) == expected


def test_equal_models_have_equal_hashes() -> None:
    """The order of dictionaries and the memory format do not count; neither does the device or who asks."""
    assert module_hash(0, Small()) == module_hash(0, Small())
    wide = torch.randn(4, 6)
    assert model_hash(0, {"w": wide.t()}) == model_hash(0, {"w": wide.t().contiguous()})
    a, b = torch.ones(1), torch.zeros(1)
    assert model_hash(0, {"a": a, "b": b}) == model_hash(0, {"b": b, "a": a})
    assert model_hash(0, {"a": a}, None, {"x": 1, "y": 2}) == model_hash(0, {"a": a}, {}, {"y": 2, "x": 1})


def change(name: str) -> Small:
    """A module with one thing changed."""
    model = Small()
    with torch.no_grad():
        if name == "one weight, by one bit":
            model.linear.weight[0, 0] = math.nextafter(float(model.linear.weight[0, 0]), 1e9) + 1e-8
        elif name == "the sign of a zero":
            model.norm.bias[0] = -0.0
        elif name == "a running mean":
            model.norm.running_mean[1] = 1e-6  # type: ignore[index]
        elif name == "a buffer that is not saved":
            model.table[0] = 7  # type: ignore[index, operator]
        elif name == "a type":
            model.norm.bias = nn.Parameter(model.norm.bias.bfloat16())
        elif name == "a shape":
            model.linear.weight = nn.Parameter(model.linear.weight.reshape(3, 2))
        elif name == "a name":
            model.other, model.linear = model.linear, model.norm  # type: ignore[assignment]
        elif name == "a tie":
            model.tied = nn.Linear(3, 2)
    return model


@pytest.mark.parametrize(
    "name",
    [
        "one weight, by one bit", "the sign of a zero", "a running mean", "a buffer that is not saved", "a type",
        "a shape", "a name", "a tie",
    ],
)  # fmt: skip
def test_every_difference_counts(name: str) -> None:
    assert module_hash(0, change(name)) != module_hash(0, Small())


def test_round_config_and_section_count() -> None:
    one = torch.ones(2)
    hashes = [
        model_hash(0, {"a": one}),
        model_hash(1, {"a": one}),
        model_hash(0, {"a": one}, {}, {"dropout": 0.1}),
        model_hash(0, {}, {"a": one}),
        model_hash(0, {"a": one}, {"a": one}),
        model_hash(0, {"ab": one}),
        model_hash(0, {"a": torch.ones(2, 1)}),
        model_hash(0, {"a": torch.ones(1, 2)}),
    ]
    assert len(set(hashes)) == len(hashes)


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.bool, torch.complex64]
)
def test_bytes_of_every_type(dtype: torch.dtype) -> None:
    value = torch.tensor([[0, 1], [1, 1]]).to(dtype)
    assert len(tensor_bytes(value)) == 4 * value.element_size()
    assert tensor_bytes(value[:0]) == b"" and len(tensor_bytes(value[0, 0])) == value.element_size()
    assert tensor_bytes(torch.tensor([1, 2], dtype=torch.int16)) == b"\1\0\2\0"


def test_what_has_no_canonical_bytes_is_refused() -> None:
    with pytest.raises(FederatedConfigError, match="`w` is torch.strided on meta"):
        model_hash(0, {"w": torch.empty(2, device="meta")})
    with pytest.raises(FederatedConfigError, match="`w` is torch.sparse_coo"):
        model_hash(0, {"w": torch.eye(2).to_sparse()})
    for config in ({"a": math.nan}, {"a": object()}):
        with pytest.raises(FederatedConfigError, match="a `config` of JSON values"):
            model_hash(0, {}, {}, config)


def echoes(parties: Parties, round_idx: int = 3, odd: dict[int, bytes] | None = None) -> dict[int, HashEcho]:
    return {
        who: HashEcho(who, key, parties.session, round_idx, (odd or {}).get(who, b"model"))
        for who, key in parties.identities.items()
    }


def test_echo_of_equal_models_passes() -> None:
    parties = Parties.make(5)
    clients = echoes(parties)
    messages = [client.message() for client in clients.values()]
    assert all(client.check(messages) == tuple(parties.ids) for client in clients.values())
    own = clients[parties.ids[0]]
    assert own.check(messages[1:3]) == tuple(sorted({own.client_id, *list(clients)[1:3]}))


def test_every_client_notices_another_model() -> None:
    """The fished client sees everybody else, everybody else sees the fished client."""
    parties = Parties.make(4)
    odd = parties.ids[2]
    clients = echoes(parties, odd={odd: b"fishing"})
    messages = [client.message() for client in clients.values()]
    for who, client in clients.items():
        with pytest.raises(ModelMismatchError, match="in round 3 but client .* do not send updates") as error:
            client.check(messages)
        assert error.value.client_ids == (tuple(i for i in parties.ids if i != odd) if who == odd else (odd,))
    clients = echoes(parties)
    late = echoes(parties, round_idx=2)[odd].message()  # the right model of the last round
    with pytest.raises(ModelMismatchError, match=f"round 3 .* client {odd}"):
        clients[parties.ids[0]].check([late])


def test_echoes_cannot_be_withheld_forged_or_replayed() -> None:
    parties = Parties.make(5)
    first, second, *_ = parties.ids
    clients = echoes(parties)
    genuine = clients[second].message()
    forged = genuine[:-1] + bytes([genuine[-1] ^ 1])
    other_kind = parties.clients[second].start()
    for messages, error, match in (
        ([genuine], TooFewSurvivorsError, "echoes of at least 3 clients in round 3 but got 2"),
        ([genuine, genuine], MembershipError, f"two of client {second}"),
        ([forged], ForgedMessageError, f"client {second}"),
        ([other_kind], OutOfOrderError, "Expected HASH_ECHO but got ADVERTISE"),
        ([echoes(Parties.make(5))[second].message()], WrongSessionError, "another"),
        ([from_client(parties, second, Kind.HASH_ECHO, bytes(41))], MalformedMessageError, "40 bytes but got 41"),
    ):
        with pytest.raises(error, match=match):
            clients[first].check(messages)
