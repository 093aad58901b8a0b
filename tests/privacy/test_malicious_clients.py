"""Malicious clients and the network, as the server sees them; settings that parties must share."""

import hashlib
from dataclasses import replace

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pl_fed.errors import FederatedConfigError
from pl_fed.privacy.pairwise import PairwiseClient, Session, Step
from pl_fed.privacy.pairwise import messages as wire
from pl_fed.privacy.pairwise.errors import (
    CorruptShareError,
    ForgedMessageError,
    InconsistentSurvivorsError,
    KeyAgreementError,
    MalformedMessageError,
    MembershipError,
    OutOfOrderError,
    ReplayedMessageError,
    StrangerError,
    UnexpectedRequestError,
    WrongSessionError,
)
from pl_fed.privacy.pairwise.frames import Kind, seal
from pl_fed.privacy.pairwise.session import SERVER_ID, Roster
from tests.helpers.secure import Parties, body_of, from_client


def test_strangers_forgers_replays_and_latecomers() -> None:
    parties = Parties.make(4)
    first, second, *_ = parties.ids
    hello = parties.clients[first].start()
    outsider = seal(Kind.ADVERTISE, bytes(96), 2**50, SERVER_ID, Ed25519PrivateKey.generate(), parties.session)
    forged = seal(Kind.ADVERTISE, body_of(hello), second, SERVER_ID, parties.identities[first], parties.session)
    other = Parties.make(4).session
    old = seal(Kind.ADVERTISE, body_of(hello), first, SERVER_ID, parties.identities[first], other)
    early = from_client(parties, first, Kind.SHARES, wire.encode_by_client({}))
    for message, error, match in (
        (outsider, StrangerError, f"member of the cohort but got client {2**50}"),
        (forged, ForgedMessageError, f"the signature of client {second}"),
        (old, WrongSessionError, "one of another"),
        (early, OutOfOrderError, f"Expected ADVERTISE but got SHARES from client {first}"),
    ):
        with pytest.raises(error, match=match):
            parties.server.receive(message)
    parties.server.receive(hello)
    with pytest.raises(ReplayedMessageError, match=f"client {first} sent a second"):
        parties.server.receive(hello)
    with pytest.raises(OutOfOrderError, match="Expected one start"):
        parties.clients[first].start()


def test_a_dropped_client_does_not_come_back() -> None:
    parties = Parties.make()
    late = parties.ids[0]
    inbox = parties.run(until=Step.ADVERTISE_KEYS)
    message = parties.clients[late].receive(inbox[late])
    for who in parties.ids[1:]:
        parties.server.receive(parties.clients[who].receive(inbox[who]))
    parties.server.advance()
    vector = from_client(parties, late, Kind.MASKED, bytes(8 * 4))
    with pytest.raises(MembershipError, match=f"client {late}: it dropped out"):
        parties.server.receive(vector)
    with pytest.raises(OutOfOrderError, match="Expected MASKED but got SHARES"):
        parties.server.receive(message)


def test_keys_that_would_stop_everybody_are_refused_at_the_door() -> None:
    """Low order, one key for both uses, the keys of somebody else: the client is left out, the round goes on."""
    parties = Parties.make(4)
    first, second, *_ = parties.ids
    hello = body_of(parties.clients[first].start())
    parties.server.receive(from_client(parties, first, Kind.ADVERTISE, hello))
    for body, match in (
        (bytes(32) + hello[32:], "full order"),
        (hello[:32] * 2 + hello[64:], "used twice"),
        (hello, "used twice"),
    ):
        with pytest.raises(KeyAgreementError, match=match):
            parties.server.receive(from_client(parties, second, Kind.ADVERTISE, body))
    for who in parties.ids[1:]:
        parties.server.receive(parties.clients[who].start())
    assert set(parties.server.advance()) == set(parties.ids)


def test_server_checks_what_clients_send_in_every_step() -> None:
    parties = Parties.make(4)
    who = parties.ids[0]
    parties.run(until=Step.ADVERTISE_KEYS)
    with pytest.raises(MembershipError, match="left some out"):
        parties.server.receive(from_client(parties, who, Kind.SHARES, wire.encode_by_client({})))
    parties = Parties.make(4)
    parties.run(until=Step.SHARE_KEYS)
    with pytest.raises(MalformedMessageError, match="a vector of 32 bytes but got 31"):
        parties.server.receive(from_client(parties, parties.ids[0], Kind.MASKED, bytes(31)))
    parties = Parties.make(4)
    parties.run(until=Step.MASKED_INPUT)
    with pytest.raises(InconsistentSurvivorsError, match="signed another"):
        parties.server.receive(from_client(parties, parties.ids[0], Kind.CONSISTENT, hashlib.sha256(b"").digest()))
    parties = Parties.make(4)
    parties.run(until=Step.CONSISTENCY_CHECK)
    wrong = {peer: (wire.ShareOf.MASK_KEY, bytes(32)) for peer in parties.ids}
    for shares in (wrong, {}):
        with pytest.raises(UnexpectedRequestError, match="the shares that were asked for"):
            parties.server.receive(from_client(parties, parties.ids[0], Kind.UNMASKED, wire.encode_shares(shares)))


@pytest.mark.parametrize("silent", [False, True], ids=["seed", "key"])
def test_false_shares_give_no_sum(silent: bool) -> None:
    """A client of the first `threshold` lies about one share: the secret is not the one that was committed to."""
    parties = Parties.make(5)
    victim, liar = (parties.ids[0] if silent else parties.ids[4]), parties.ids[1]
    inbox = parties.run(until=Step.CONSISTENCY_CHECK, silent={victim: Step.MASKED_INPUT} if silent else {})
    for who in inbox:
        message = parties.clients[who].receive(inbox[who])
        if who == liar:
            shares = wire.decode_shares(body_of(message))
            shares[victim] = (shares[victim][0], bytes(32))
            message = from_client(parties, who, Kind.UNMASKED, wire.encode_shares(shares))
        parties.server.receive(message)
    with pytest.raises(CorruptShareError, match=f"client {victim} committed to"):
        parties.server.advance()
    assert parties.server.result is None and parties.server.step is None


def test_parties_with_other_settings_do_not_understand_each_other() -> None:
    """Threshold, ring, length and roster are in the digest of the session."""
    parties = Parties.make()
    who, session = parties.ids[0], parties.session
    others = [
        replace(session, threshold=4),
        replace(session, num_values=9),
        replace(session, session_id=bytes(32)),
        replace(session, roster=Roster(session.roster.server, dict(list(session.roster.clients.items())[:-1]))),
    ]
    for other in others:
        hello = PairwiseClient(who, parties.identities[who], other, lambda: torch.zeros(8, dtype=torch.int64)).start()
        with pytest.raises(WrongSessionError):
            parties.server.receive(hello)


def test_rosters_and_sessions_are_checked() -> None:
    a, b, c = (bytes([i]) * 32 for i in range(3))
    for clients in ({-1: b, 2: c}, {1: b, SERVER_ID: c}):
        with pytest.raises(FederatedConfigError, match="client ids of 0 to"):
            Roster(a, clients)
    for server, clients in ((a, {1: a, 2: b}), (a, {1: b, 2: b}), (a[:31], {1: b, 2: c})):
        with pytest.raises(FederatedConfigError, match="32 bytes, all different"):
            Roster(server, clients)
    session = Parties.make().session
    with pytest.raises(FederatedConfigError, match="session id of 32 bytes but got 3"):
        Session(b"abc", session.roster, 3, session.ring, 1)
    with pytest.raises(FederatedConfigError, match="at least 1 value but got 0"):
        replace(session, num_values=0)
