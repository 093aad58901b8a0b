"""A malicious server, with its valid key, meets a named error of the clients and gets no shares."""

from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pl_fed.privacy.pairwise import Step, TooFewSurvivorsError
from pl_fed.privacy.pairwise import messages as wire
from pl_fed.privacy.pairwise.errors import (
    BothSharesError,
    ForgedMessageError,
    InconsistentSurvivorsError,
    KeyAgreementError,
    MalformedMessageError,
    MembershipError,
    OutOfOrderError,
    ProtocolError,
    UnexpectedRequestError,
    WrongRecipientError,
)
from pl_fed.privacy.pairwise.frames import Kind, open_frame, seal
from pl_fed.privacy.pairwise.session import SERVER_ID
from tests.helpers.secure import Parties, body_of, from_client, from_server


def refuses(parties: Parties, who: int, message: bytes, error: type[ProtocolError], match: str) -> None:
    """The client raises, is finished for good, and has no secret left."""
    with pytest.raises(error, match=match):
        parties.clients[who].receive(message)
    with pytest.raises(OutOfOrderError, match="does not wait for one"):
        parties.clients[who].receive(message)
    assert not {"_seed", "_mask_key", "_cipher_key"} & vars(parties.clients[who]).keys()


def test_server_that_changes_a_relayed_key_is_refused() -> None:
    """Unsigned relayed keys would let it sit between every two clients (a fault of deployed code)."""
    parties = Parties.make()
    first, second, *_ = parties.ids
    inbox = parties.run(until=Step.ADVERTISE_KEYS)
    frames = wire.decode_frames(body_of(inbox[first]))
    mine = seal(Kind.ADVERTISE, bytes(range(96)), second, SERVER_ID, parties.server_identity, parties.session)
    swapped = from_server(parties, first, Kind.KEYS, wire.encode_frames([frames[0], mine, *frames[2:]]))
    refuses(parties, first, swapped, ForgedMessageError, f"the signature of client {second}")


def keys_attack(change: Callable[[list[bytes], Parties], list[bytes]]) -> tuple[Parties, int, bytes]:
    parties = Parties.make()
    who = parties.ids[0]
    frames = wire.decode_frames(body_of(parties.run(until=Step.ADVERTISE_KEYS)[who]))
    return parties, who, from_server(parties, who, Kind.KEYS, wire.encode_frames(change(frames, parties)))


def copied_key(frames: list[bytes], parties: Parties) -> list[bytes]:
    """The second client (in league with the server) signs the keys of the third as its own."""
    return [frames[0], from_client(parties, parties.ids[1], Kind.ADVERTISE, body_of(frames[2])), *frames[2:]]


def low_order(frames: list[bytes], parties: Parties) -> list[bytes]:
    keys = bytes(32) + body_of(frames[1])[32:]
    return [frames[0], from_client(parties, parties.ids[1], Kind.ADVERTISE, keys), *frames[2:]]


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda frames, _: frames[1:], MembershipError, "my own keys"),
        (lambda frames, _: frames[:2], TooFewSurvivorsError, "at least 3 clients that advertised keys but got 2"),
        (lambda frames, _: [*frames, frames[1]], MembershipError, "every client once and in order"),
        (lambda frames, _: frames[::-1], MembershipError, "every client once and in order"),
        (copied_key, KeyAgreementError, "used twice"),
        (low_order, KeyAgreementError, "full order"),
    ],
)
def test_lists_of_keys_are_checked(
    change: Callable[[list[bytes], Parties], list[bytes]], error: type[ProtocolError], match: str
) -> None:
    refuses(*keys_attack(change), error, match)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda shares, ids: {ids[1]: shares[ids[1]]}, TooFewSurvivorsError, "that shared their keys but got 2"),
        (lambda shares, ids: {**shares, 999: bytes(wire.PAIR_BYTES)}, MembershipError, "clients that advertised keys"),
        (lambda shares, ids: {**shares, ids[0]: bytes(wire.PAIR_BYTES)}, MembershipError, "clients that advertised"),
    ],
)
def test_lists_of_shares_are_checked(
    change: Callable[[dict[int, bytes], list[int]], dict[int, bytes]], error: type[ProtocolError], match: str
) -> None:
    parties = Parties.make()
    who = parties.ids[0]
    shares = wire.decode_by_client(body_of(parties.run(until=Step.SHARE_KEYS)[who]))
    body = wire.encode_by_client(change(shares, parties.ids))
    refuses(parties, who, from_server(parties, who, Kind.RELAYED, body), error, match)


@pytest.mark.parametrize(
    ("survivors", "error", "match"),
    [
        ([0, 1], TooFewSurvivorsError, "that sent their vectors but got 2"),
        ([1, 2, 3, 4], MembershipError, "me among them"),
        ([0, 1, 2, 5], MembershipError, "out of those that shared keys"),
    ],
)
def test_lists_of_survivors_are_checked(survivors: list[int], error: type[ProtocolError], match: str) -> None:
    """0 to 4 are the clients, 5 a stranger."""
    parties = Parties.make()
    who = parties.ids[0]
    parties.run(until=Step.MASKED_INPUT)
    body = wire.encode_ids(sorted([*parties.ids, 2**50][index] for index in survivors))
    refuses(parties, who, from_server(parties, who, Kind.SURVIVORS, body), error, match)


def test_server_that_tells_two_lists_of_survivors_gets_no_shares() -> None:
    """The attack that the consistency check is for: client 0 is alive for some and dropped for others."""
    parties = Parties.make(6, threshold=4)
    parties.run(until=Step.MASKED_INPUT)
    everybody, fewer = wire.encode_ids(parties.ids), wire.encode_ids(parties.ids[1:])
    signed = []
    for who in parties.ids:
        told = fewer if who in parties.ids[3:] else everybody
        signed.append(parties.clients[who].receive(from_server(parties, who, Kind.SURVIVORS, told)))
    alive, dropped = parties.ids[1:], parties.ids[:1]
    for who in parties.ids[3:]:
        request = from_server(parties, who, Kind.UNMASK, wire.encode_request(alive, dropped, signed[1:]))
        refuses(parties, who, request, InconsistentSurvivorsError, "signed another one")
    request = from_server(parties, parties.ids[1], Kind.UNMASK, wire.encode_request(parties.ids, [], signed))
    refuses(parties, parties.ids[1], request, InconsistentSurvivorsError, "signed another one")
    too_few = wire.encode_request(parties.ids, [], signed[:3])
    refuses(
        parties, parties.ids[2], from_server(parties, parties.ids[2], Kind.UNMASK, too_few),
        TooFewSurvivorsError, "that signed the list of survivors but got 3",
    )  # fmt: skip


def unmask_request(parties: Parties, silent: bool = False) -> list[bytes]:
    """Run up to the request; return the clients' signatures of the survivors."""
    first = parties.ids[0]
    inbox = parties.run(until=Step.CONSISTENCY_CHECK, silent={first: Step.MASKED_INPUT} if silent else {})
    return wire.decode_request(body_of(inbox[parties.ids[1]]))[2]


def test_both_shares_of_one_client_are_refused() -> None:
    parties = Parties.make()
    frames, who, ids = unmask_request(parties), parties.ids[1], parties.ids
    request = from_server(parties, who, Kind.UNMASK, wire.encode_request(ids, ids[:1], frames))
    refuses(parties, who, request, BothSharesError, f"got one for both of client {ids[0]}: the server could read")


def test_the_other_share_is_refused_in_a_second_request() -> None:
    """After the first answer the client has finished, and has forgotten the shares."""
    parties = Parties.make()
    frames, who, ids = unmask_request(parties), parties.ids[1], parties.ids
    parties.clients[who].receive(from_server(parties, who, Kind.UNMASK, wire.encode_request(ids, [], frames)))
    second = from_server(parties, who, Kind.UNMASK, wire.encode_request(ids[1:], ids[:1], frames))
    with pytest.raises(OutOfOrderError, match="Expected no message but got UNMASK"):
        parties.clients[who].receive(second)


@pytest.mark.parametrize("case", ["dropped is alive", "alive is dropped", "dropped is left out", "a stranger"])
def test_requests_that_do_not_fit_the_signed_survivors_are_refused(case: str) -> None:
    parties = Parties.make()
    frames, ids, who = unmask_request(parties, silent=True), parties.ids, parties.ids[1]
    alive, dropped = {
        "dropped is alive": (ids, []),
        "alive is dropped": (ids[1:4], [ids[0], ids[4]]),
        "dropped is left out": (ids[1:], []),
        "a stranger": (ids[1:], [ids[0], 2**50]),
    }[case]
    request = from_server(parties, who, Kind.UNMASK, wire.encode_request(alive, sorted(dropped), frames))
    refuses(parties, who, request, UnexpectedRequestError, "fits the signed survivors")


def test_signatures_of_survivors_count_once() -> None:
    parties = Parties.make()
    frames, ids, who = unmask_request(parties), parties.ids, parties.ids[1]
    request = from_server(parties, who, Kind.UNMASK, wire.encode_request(ids, [], [frames[0]] * 3))
    refuses(parties, who, request, MembershipError, "one signature of each survivor")


@pytest.mark.parametrize("step", [Step.ADVERTISE_KEYS, Step.SHARE_KEYS, Step.MASKED_INPUT, Step.CONSISTENCY_CHECK])
def test_what_anybody_could_have_sent_changes_nothing(step: Step) -> None:
    """Noise, another recipient's message, one of another client: the genuine message is still answered."""
    parties = Parties.make()
    inbox = parties.run(until=step)
    first, second, *_ = parties.ids
    client = parties.clients[first]
    kind = open_frame(inbox[first], first, parties.session).kind
    imposter = seal(kind, body_of(inbox[first]), second, first, parties.identities[second], parties.session)
    forged = seal(kind, body_of(inbox[first]), SERVER_ID, first, Ed25519PrivateKey.generate(), parties.session)
    for message, error, match in (
        (b"", MalformedMessageError, "at least 126 bytes but got 0"),
        (inbox[first] + b"\0", MalformedMessageError, "a body of the announced length"),
        (inbox[second], WrongRecipientError, f"for client {first} but got one for client {second}"),
        (imposter, OutOfOrderError, f"{kind.name} from client {second}"),
        (forged, ForgedMessageError, "the signature of the server"),
    ):
        with pytest.raises(error, match=match):
            client.receive(message)
    assert client.receive(inbox[first])


def test_encrypted_shares_are_bound_to_sender_and_recipient() -> None:
    """A server that hands one client's shares on as another's is noticed when they are opened."""
    parties = Parties.make()
    inbox = parties.run(until=Step.SHARE_KEYS)
    who, a, b, *_ = parties.ids
    shares = wire.decode_by_client(body_of(inbox[who]))
    shares[a], shares[b] = shares[b], shares[a]
    inbox[who] = from_server(parties, who, Kind.RELAYED, wire.encode_by_client(shares))
    for step in (Step.MASKED_INPUT, Step.CONSISTENCY_CHECK):
        for client in parties.ids:
            parties.server.receive(parties.clients[client].receive(inbox[client]))
        inbox = parties.server.advance()
        assert parties.server.step == step + 1
    refuses(parties, who, inbox[who], ForgedMessageError, "the tag does not fit")
