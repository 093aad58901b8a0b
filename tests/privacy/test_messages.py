"""The binary format: one encoding of everything, and a named error for everything else."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pl_fed.privacy.pairwise import messages as wire
from pl_fed.privacy.pairwise.errors import MalformedMessageError, ProtocolError
from pl_fed.privacy.pairwise.frames import HEADER, SIGNATURE_BYTES, Kind, open_frame, seal
from pl_fed.privacy.pairwise.session import SERVER_ID
from tests.helpers.secure import Parties

IDS = st.sets(st.integers(0, SERVER_ID - 1), max_size=6)
SHARES = st.tuples(st.sampled_from(wire.ShareOf), st.binary(min_size=32, max_size=32))
READERS: list[Callable[[bytes], Any]] = [
    wire.decode_ids,
    wire.decode_by_client,
    wire.decode_frames,
    wire.decode_request,
    wire.decode_shares,
    wire.Advertised.decode,
]


@settings(max_examples=60, deadline=None)
@given(alive=IDS, dropped=IDS, frames=st.lists(st.binary(max_size=30), max_size=4), data=st.data())
def test_there_and_back(alive: set[int], dropped: set[int], frames: list[bytes], data: st.DataObject) -> None:
    ids = tuple(sorted(alive))
    assert wire.decode_ids(wire.encode_ids(alive)) == ids
    assert wire.decode_frames(wire.encode_frames(frames)) == frames
    request = wire.decode_request(wire.encode_request(alive, dropped, frames))
    assert request == (ids, tuple(sorted(dropped)), frames)
    pairs = {who: data.draw(st.binary(min_size=wire.PAIR_BYTES, max_size=wire.PAIR_BYTES)) for who in list(alive)[:2]}
    assert wire.decode_by_client(wire.encode_by_client(pairs)) == pairs
    shares = {who: data.draw(SHARES) for who in alive}
    assert wire.decode_shares(wire.encode_shares(shares)) == shares


@settings(max_examples=300, deadline=None)
@given(body=st.binary(max_size=300), small=st.integers(0, 4), reader=st.sampled_from(READERS))
def test_anything_else_is_malformed(body: bytes, small: int, reader: Callable[[bytes], Any]) -> None:
    """Random bytes, as they are and after a plausible count: a value or the named error, and nothing else."""
    for data in (body, wire.U64.pack(small) + body):
        try:
            reader(data)
        except MalformedMessageError as error:
            assert str(error).startswith("Expected")


def test_huge_counts_and_lengths_cost_nothing() -> None:
    """A count of 2^63 must not make anybody allocate or loop."""
    for reader in READERS[:5]:
        for count in (2**63, 2**64 - 1, 10**6):
            with pytest.raises(MalformedMessageError):
                reader(wire.U64.pack(count) + bytes(64))


def test_lists_have_one_encoding() -> None:
    for ids in ([2, 1], [1, 1], [1, SERVER_ID]):
        body = b"".join(wire.U64.pack(value) for value in [len(ids), *ids])
        with pytest.raises(MalformedMessageError, match="ascending client ids"):
            wire.decode_ids(body)
    with pytest.raises(MalformedMessageError, match="a body of 8 bytes but got 9"):
        wire.decode_ids(wire.encode_ids([]) + b"\0")
    with pytest.raises(MalformedMessageError, match="known secrets"):
        wire.decode_shares(wire.encode_by_client({1: b"\3" + bytes(32)}))
    with pytest.raises(MalformedMessageError, match="32 more bytes of a body but 31 are left"):
        wire.Advertised.decode(bytes(95))


def test_layout_of_the_envelope() -> None:
    """The table in `frames`: offsets, little-endian, and the length at the end of the header."""
    parties = Parties.make(3)
    who = parties.ids[1]
    message = seal(Kind.MASKED, b"body", who, SERVER_ID, parties.identities[who], parties.session)
    assert (message[:4], message[4], message[5]) == (b"PLSS", 1, Kind.MASKED)
    assert int.from_bytes(message[6:14], "little") == who
    assert message[14:22] == b"\xff" * 8
    assert message[22:54] == parties.session.digest
    assert message[54:62] == (4).to_bytes(8, "little")
    assert message[62:66] == b"body" and len(message) == HEADER.size + 4 + SIGNATURE_BYTES


def test_every_bit_of_a_message_counts() -> None:
    """Flip each bit, cut at each length: always a named error."""
    parties = Parties.make(3)
    message = parties.clients[parties.ids[0]].start()
    for position in range(len(message)):
        for bit in range(8):
            changed = bytearray(message)
            changed[position] ^= 1 << bit
            with pytest.raises(ProtocolError):
                open_frame(bytes(changed), SERVER_ID, parties.session)
        with pytest.raises(MalformedMessageError):
            open_frame(message[:position], SERVER_ID, parties.session)
    assert parties.server.receive(message) == parties.ids[0]
