"""The server of the secure sum, as a state machine over bytes (Bonawitz et al., CCS 2017, Figure 4).

It holds the running sum of the masked vectors, never a list of them. What it learns is the sum over the survivors, and
who took part until when.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from jaxtyping import Int
from torch import Tensor

from pl_fed.privacy.pairwise import messages as wire
from pl_fed.privacy.pairwise.errors import (
    CorruptShareError,
    InconsistentSurvivorsError,
    KeyAgreementError,
    MembershipError,
    OutOfOrderError,
    ReplayedMessageError,
    TooFewSurvivorsError,
    UnexpectedRequestError,
)
from pl_fed.privacy.pairwise.frames import Frame, Kind, expect, open_frame, seal
from pl_fed.privacy.pairwise.masks import Peers, commitment, pair_sign, self_mask_key
from pl_fed.privacy.pairwise.primitives import add_mask, agree, combine_secret
from pl_fed.privacy.pairwise.session import SERVER_ID, Session, Step

KINDS = {
    Step.ADVERTISE_KEYS: Kind.ADVERTISE,
    Step.SHARE_KEYS: Kind.SHARES,
    Step.MASKED_INPUT: Kind.MASKED,
    Step.CONSISTENCY_CHECK: Kind.CONSISTENT,
    Step.UNMASKING: Kind.UNMASKED,
}


@dataclass(frozen=True)
class SecureTotal:
    """A modular sum.

    Args:
        total: The sum, as the representatives nearest to zero.
        survivors: Whose vectors are in it, ascending.
    """

    total: Int[Tensor, " values"]
    survivors: tuple[int, ...]


class PairwiseServer:
    """Collects messages with `receive`; `advance` ends a step, whoever is missing then has dropped out.

    A message that raises changes nothing: its sender may send a right one until the step ends.

    Args:
        identity: The server's Ed25519 key; the public part is in the roster.
        session: The sum that is going on, with the context that the server believes in.
    """

    def __init__(self, identity: Ed25519PrivateKey, session: Session) -> None:
        self.session = session
        self.step: Step | None = Step.ADVERTISE_KEYS
        self.result: SecureTotal | None = None
        self._identity = identity
        self._allowed: tuple[int, ...] = tuple(sorted(session.roster.clients))
        self._keys: set[bytes] = set()
        self._frames: dict[int, bytes] = {}
        self._answered: set[int] = set()
        self._relayed: dict[int, dict[int, bytes]] = {}
        self._sharing: tuple[int, ...] = ()  # U2
        self._survivors: tuple[int, ...] = ()  # U3
        self._shares: dict[int, dict[int, bytes]] = {}

    def receive(self, data: bytes) -> int:
        """Read a client's message and return who sent it.

        Raises:
            ProtocolError: One of its classes, by what is wrong with the message.
        """
        frame = open_frame(data, SERVER_ID, self.session)
        if self.step is None:
            raise OutOfOrderError(f"Expected no message but got {frame.kind.name}: this sum is over.")
        if frame.sender in self._answered and frame.kind == KINDS[self.step]:
            raise ReplayedMessageError(f"Expected one message but client {frame.sender} sent a second: ignore it.")
        expect(frame, KINDS[self.step])
        if frame.sender not in self._allowed:
            raise MembershipError(f"Expected a client of the last step but got client {frame.sender}: it dropped out.")
        handlers: dict[Step, Callable[[Frame, bytes], None]] = {
            Step.ADVERTISE_KEYS: self._take_keys,
            Step.SHARE_KEYS: self._take_shares,
            Step.MASKED_INPUT: self._take_vector,
            Step.CONSISTENCY_CHECK: self._take_signature,
            Step.UNMASKING: self._take_unmasked,
        }
        handlers[self.step](frame, data)
        self._answered.add(frame.sender)
        return frame.sender

    def advance(self) -> dict[int, bytes]:
        """End the step and return the next message for every client that is left; after the last one set `result`.

        Raises:
            TooFewSurvivorsError: If fewer clients than the threshold answered; the server forgets everything.
            CorruptShareError: If a secret could not be rebuilt.
        """
        if self.step is None:
            raise OutOfOrderError("Expected a sum that is going on but it is over: make a new server.")
        done, self._allowed = self.step, tuple(sorted(self._answered))
        if len(self._allowed) < self.session.threshold:
            self._forget()
            raise TooFewSurvivorsError(
                f"Expected at least {self.session.threshold} clients after {done.name} but got {len(self._allowed)}: "
                "nothing is revealed; start a new round with more clients or a lower threshold."
            )
        if done == Step.UNMASKING:
            try:
                self.result = self._reveal()
            finally:
                self._forget()
            return {}
        bodies = {
            Step.ADVERTISE_KEYS: self._begin_sharing,
            Step.SHARE_KEYS: self._begin_collection,
            Step.MASKED_INPUT: self._begin_check,
            Step.CONSISTENCY_CHECK: self._begin_unmasking,
        }
        kind, body_of = bodies[done]()
        self._frames, self._answered, self.step = {}, set(), Step(done + 1)
        return {who: seal(kind, body_of(who), SERVER_ID, who, self._identity, self.session) for who in self._allowed}

    def _take_keys(self, frame: Frame, data: bytes) -> None:
        found = wire.Advertised.decode(frame.body)
        for key in (found.cipher_key, found.mask_key):
            agree(X25519PrivateKey.generate(), key)  # a key of low order would end the round of every client
        keys = {found.cipher_key, found.mask_key}
        if len(keys) < 2 or keys & self._keys:
            raise KeyAgreementError(f"Expected new public keys but client {frame.sender} sent one that is used twice.")
        self._keys |= keys
        self._frames[frame.sender] = data

    def _begin_sharing(self) -> tuple[Kind, Callable[[int], bytes]]:
        advertised = {who: self._frames[who] for who in self._allowed}
        bodies = {who: open_frame(data, SERVER_ID, self.session).body for who, data in advertised.items()}
        self._peers = Peers(self.session, {who: wire.Advertised.decode(body) for who, body in bodies.items()})
        listed = wire.encode_frames(advertised.values())
        return Kind.KEYS, lambda who: listed

    def _take_shares(self, frame: Frame, data: bytes) -> None:
        shares = wire.decode_by_client(frame.body)
        if shares.keys() != set(self._allowed) - {frame.sender}:
            raise MembershipError(f"Expected shares for every other client but client {frame.sender} left some out.")
        self._relayed[frame.sender] = shares

    def _begin_collection(self) -> tuple[Kind, Callable[[int], bytes]]:
        relayed, self._relayed, self._sharing = self._relayed, {}, self._allowed
        self._sum = np.zeros(self.session.num_values, dtype=self.session.ring.dtype)

        def body_of(who: int) -> bytes:
            return wire.encode_by_client({sender: shares[who] for sender, shares in relayed.items() if sender != who})

        return Kind.RELAYED, body_of

    def _take_vector(self, frame: Frame, data: bytes) -> None:
        self._sum += wire.decode_words(frame.body, self.session)

    def _begin_check(self) -> tuple[Kind, Callable[[int], bytes]]:
        self._survivors = self._allowed
        return Kind.SURVIVORS, lambda who: wire.encode_ids(self._survivors)

    def _take_signature(self, frame: Frame, data: bytes) -> None:
        if frame.body != hashlib.sha256(wire.encode_ids(self._survivors)).digest():
            raise InconsistentSurvivorsError(
                f"Expected the list that was sent but client {frame.sender} signed another."
            )
        self._frames[frame.sender] = data

    def _begin_unmasking(self) -> tuple[Kind, Callable[[int], bytes]]:
        signatures = [self._frames[who] for who in self._allowed]
        request = wire.encode_request(self._survivors, set(self._sharing) - set(self._survivors), signatures)
        return Kind.UNMASK, lambda who: request

    def _take_unmasked(self, frame: Frame, data: bytes) -> None:
        shares = wire.decode_shares(frame.body)
        kinds = {who: kind for who, (kind, _) in shares.items()}
        if kinds != {who: self._needed(who) for who in self._sharing}:
            raise UnexpectedRequestError(
                f"Expected the shares that were asked for but client {frame.sender} sent others."
            )
        for who, (_, share) in shares.items():
            self._shares.setdefault(who, {})[self._peers.point(frame.sender)] = share

    def _needed(self, who: int) -> wire.ShareOf:
        return wire.ShareOf.SELF_MASK if who in self._survivors else wire.ShareOf.MASK_KEY

    def _reveal(self) -> SecureTotal:
        """Take the masks off the running sum: self masks of the survivors, pairwise masks with the dropped."""
        for who, shares in self._shares.items():
            secret = combine_secret(shares, self.session.threshold)
            if self._needed(who) == wire.ShareOf.SELF_MASK:
                self._check_secret(who, commitment(secret, who, self.session), self._peers.advertised[who].commitment)
                add_mask(self._sum, self_mask_key(secret, who, self.session), -1)
                continue
            private = X25519PrivateKey.from_private_bytes(secret)
            self._check_secret(who, private.public_key().public_bytes_raw(), self._peers.advertised[who].mask_key)
            for survivor in self._survivors:
                key = self._peers.pair_mask_key(private, who, survivor)
                add_mask(self._sum, key, -pair_sign(survivor, who))
        return SecureTotal(self.session.ring.values(self._sum), self._survivors)

    def _check_secret(self, who: int, found: bytes, promised: bytes) -> None:
        if found != promised:
            raise CorruptShareError(
                f"Expected the secret that client {who} committed to but its shares give another one: a client sent "
                "false shares; throw the round away."
            )

    def _forget(self) -> None:
        """Drop what was collected, on success and on failure alike."""
        self.step, self._frames, self._relayed, self._shares = None, {}, {}, {}
        self.__dict__.pop("_sum", None)
