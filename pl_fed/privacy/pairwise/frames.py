"""The envelope of every message: fixed header, body, Ed25519 signature; strict, versioned, length-checked.

    offset  bytes  meaning (little-endian)
    0       4      "PLSS"
    4       1      version
    5       1      kind of the message
    6       8      sender, 2^64 - 1 for the server
    14      8      recipient
    22      32     digest of the session
    54      8      length of the body
    62      n      body
    62 + n  64     signature of DOMAIN, "frame" and SHA-256(header, body)

Kind and session are under the signature, so a message of one step or session is worth nothing in another one.
"""

import hashlib
import struct
from dataclasses import dataclass
from enum import IntEnum

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from pl_fed.privacy.pairwise.errors import (
    ForgedMessageError,
    MalformedMessageError,
    OutOfOrderError,
    WrongRecipientError,
    WrongSessionError,
)
from pl_fed.privacy.pairwise.primitives import DOMAIN, join
from pl_fed.privacy.pairwise.session import SERVER_ID, Session

MAGIC, VERSION = b"PLSS", 1
HEADER = struct.Struct("<4sBBQQ32sQ")
SIGNATURE_BYTES = 64


class Kind(IntEnum):
    """What a message is."""

    ADVERTISE = 1  # client: its two public keys and a commitment
    KEYS = 2  # server: the ADVERTISE messages of everybody
    SHARES = 3  # client: encrypted shares for everybody
    RELAYED = 4  # server: the encrypted shares for one client
    MASKED = 5  # client: its masked vector
    SURVIVORS = 6  # server: whose vectors arrived
    CONSISTENT = 7  # client: signs that list
    UNMASK = 8  # server: the CONSISTENT messages, and whose shares it needs
    UNMASKED = 9  # client: one share of each
    HASH_ECHO = 10  # client: the hash of the model that it received


KINDS = frozenset(map(int, Kind))


@dataclass(frozen=True)
class Frame:
    """An opened message, its signature checked."""

    kind: Kind
    sender: int
    body: bytes


def _signed(header: bytes, body: bytes) -> bytes:
    digest = hashlib.sha256(header)
    digest.update(body)
    return join(DOMAIN, b"frame", digest.digest())


def seal(kind: Kind, body: bytes, sender: int, recipient: int, identity: Ed25519PrivateKey, session: Session) -> bytes:
    """Return a signed message."""
    header = HEADER.pack(MAGIC, VERSION, kind, sender, recipient, session.digest, len(body))
    return header + body + identity.sign(_signed(header, body))


def open_frame(data: bytes, recipient: int, session: Session) -> Frame:
    """Check a message and return what it holds.

    Args:
        data: The message as it arrived.
        recipient: Who reads it; for messages that the server relays, the server.
        session: The sum that is going on.

    Raises:
        MalformedMessageError: If format, version, kind or length is wrong.
        WrongSessionError: If it belongs to another session.
        WrongRecipientError: If it is for somebody else.
        StrangerError: If the sender does not take part.
        ForgedMessageError: If the signature is wrong.
    """
    if len(data) < HEADER.size + SIGNATURE_BYTES:
        raise MalformedMessageError(
            f"Expected a message of at least {HEADER.size + SIGNATURE_BYTES} bytes but got {len(data)}: send it again."
        )
    magic, version, kind, sender, to, digest, num_body_bytes = HEADER.unpack_from(data)
    if magic != MAGIC or version != VERSION:
        raise MalformedMessageError(
            f"Expected a secure-sum message of version {VERSION} but got other bytes: use the same version everywhere."
        )
    if kind not in KINDS or num_body_bytes != len(data) - HEADER.size - SIGNATURE_BYTES:
        raise MalformedMessageError(
            f"Expected a known kind and a body of the announced length but got kind {kind} and {len(data)} bytes in "
            "all: send it again."
        )
    if digest != session.digest:
        raise WrongSessionError("Expected a message of this session but got one of another: ignore it.")
    if to != recipient:
        raise WrongRecipientError(f"Expected a message for {name(recipient)} but got one for {name(to)}: ignore it.")
    return Frame(Kind(kind), sender, _verified(data, sender, session))


def _verified(data: bytes, sender: int, session: Session) -> bytes:
    """Return the body of a message whose signature is right."""
    body, signature = data[HEADER.size : -SIGNATURE_BYTES], data[-SIGNATURE_BYTES:]
    verifier = Ed25519PublicKey.from_public_bytes(session.roster.key_of(sender))
    try:
        verifier.verify(signature, _signed(data[: HEADER.size], body))
    except InvalidSignature:
        raise ForgedMessageError(
            f"Expected the signature of {name(sender)} but it does not fit the message: ignore it."
        ) from None
    return body


def expect(frame: Frame, kind: Kind) -> None:
    """Check that a message is of the kind that comes next, from the side that sends it.

    Raises:
        OutOfOrderError: If it is not.
    """
    from_server = kind in (Kind.KEYS, Kind.RELAYED, Kind.SURVIVORS, Kind.UNMASK)
    if frame.kind != kind or (frame.sender == SERVER_ID) != from_server:
        raise OutOfOrderError(f"Expected {kind.name} but got {frame.kind.name} from {name(frame.sender)}: ignore it.")


def name(party: int) -> str:
    """Return a party's name for people."""
    return "the server" if party == SERVER_ID else f"client {party}"
