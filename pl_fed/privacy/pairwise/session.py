"""What all parties of one secure sum know before it starts: who takes part, with which key, and the settings."""

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pl_fed.errors import FederatedConfigError
from pl_fed.privacy.pairwise.errors import StrangerError
from pl_fed.privacy.pairwise.primitives import DOMAIN, join
from pl_fed.privacy.ring import Ring

SERVER_ID = 2**64 - 1
KEY_BYTES = 32


class Step(IntEnum):
    """The rounds of the protocol; "step" because a round is one of the federation here."""

    ADVERTISE_KEYS = 0
    SHARE_KEYS = 1
    MASKED_INPUT = 2
    CONSISTENCY_CHECK = 3
    UNMASKING = 4


def default_threshold(num_clients: int) -> int:
    """Return floor(2 n / 3) + 1, the paper's least threshold where up to a third may collude with the server."""
    return 2 * num_clients // 3 + 1


def check_threshold(threshold: int, num_clients: int) -> None:
    """Check that two disjoint parts of the cohort can never both reach the threshold.

    Raises:
        FederatedConfigError: If they can, or if the whole cohort cannot.
    """
    if num_clients < 2:
        raise FederatedConfigError(
            f"Expected at least 2 clients in a secure sum but got {num_clients}: the sum would be its input."
        )
    if not (num_clients < 2 * threshold and threshold <= num_clients):
        raise FederatedConfigError(
            f"Expected `threshold` to be more than half of {num_clients} clients and at most all of them but got "
            f"{threshold}: {default_threshold(num_clients)} is the usual one."
        )


@dataclass(frozen=True)
class Roster:
    """The Ed25519 public keys (32 bytes) of everybody who may speak, known before the round and not from the server.

    Args:
        server: The server's key.
        clients: The cohort's keys by client id.
    """

    server: bytes
    clients: Mapping[int, bytes]

    def __post_init__(self) -> None:
        """Check ids and keys."""
        if not all(0 <= who < SERVER_ID for who in self.clients):
            raise FederatedConfigError("Expected client ids of 0 to 2^64 - 2: number the clients anew.")
        keys = [self.server, *self.clients.values()]
        if any(len(key) != KEY_BYTES for key in keys) or len(set(keys)) != len(keys):
            raise FederatedConfigError("Expected keys of 32 bytes, all different: give every party its own identity.")

    def key_of(self, sender: int) -> bytes:
        """Return the public key of a party.

        Raises:
            StrangerError: If it does not take part.
        """
        if sender == SERVER_ID:
            return self.server
        if sender not in self.clients:
            raise StrangerError(f"Expected a message from a member of the cohort but got client {sender}: ignore it.")
        return self.clients[sender]


@dataclass(frozen=True)
class Session:
    """One secure sum, as one party sees it.

    Args:
        session_id: 32 bytes that are never used again.
        roster: Who takes part.
        threshold: How many clients must be left in every step, more than half of the cohort.
        ring: Where the sum is taken.
        num_values: Length of the vectors.
        context: What this party believes the round is about, in general the hash of the received model and the round
            (see `pl_fed.privacy.binding`); it goes into every mask, and differing contexts leave masks in the sum.
    """

    session_id: bytes
    roster: Roster
    threshold: int
    ring: Ring
    num_values: int
    context: bytes = field(default=b"")

    def __post_init__(self) -> None:
        """Check the values."""
        check_threshold(self.threshold, len(self.roster.clients))
        if len(self.session_id) != 32:
            raise FederatedConfigError(f"Expected a session id of 32 bytes but got {len(self.session_id)}.")
        if self.num_values < 1:
            raise FederatedConfigError(f"Expected vectors of at least 1 value but got {self.num_values}.")

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of everything but the context: in every message, and the salt of every key."""
        members = [struct.pack("<Q", who) + key for who, key in sorted(self.roster.clients.items())]
        settings = struct.pack("<QQQ", self.threshold, self.ring.bits, self.num_values)
        return hashlib.sha256(join(DOMAIN, self.session_id, settings, self.roster.server, *members)).digest()

    @cached_property
    def context_digest(self) -> bytes:
        """SHA-256 of the context, in the derivation of every mask."""
        return hashlib.sha256(join(DOMAIN, b"context", self.context)).digest()


def public_key(identity: Ed25519PrivateKey) -> bytes:
    """Return the 32 bytes of an identity that go into a roster."""
    return identity.public_key().public_bytes_raw()
