"""The keys that client and server must derive alike: pairwise masks, self masks, commitments, encrypted shares."""

from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from pl_fed.privacy.pairwise.messages import U64, Advertised
from pl_fed.privacy.pairwise.primitives import agree, derive_key, join
from pl_fed.privacy.pairwise.session import Session


@dataclass(frozen=True)
class Peers:
    """Who advertised keys (U1 of the paper), and what.

    Args:
        session: The sum that is going on.
        advertised: By client id, in ascending order.
    """

    session: Session
    advertised: dict[int, Advertised]

    def point(self, who: int) -> int:
        """Return the point at which a client's shares are taken, from 1."""
        return list(self.advertised).index(who) + 1

    def pair_mask_key(self, private: X25519PrivateKey, owner: int, other: int) -> bytes:
        """Return the key of the mask that two clients share, from the private key of one of them."""
        secret = agree(private, self.advertised[other].mask_key)
        low, high = sorted((owner, other))
        parties = (U64.pack(low), U64.pack(high), self.advertised[low].mask_key, self.advertised[high].mask_key)
        return derive_key(secret, self.session.digest, "pairwise mask", *parties, self.session.context_digest)

    def cipher_key(self, private: X25519PrivateKey, owner: int, sender: int, recipient: int) -> bytes:
        """Return the key under which `sender` encrypts shares for `recipient`; `owner` is one of them."""
        other = recipient if owner == sender else sender
        secret = agree(private, self.advertised[other].cipher_key)
        keys = (self.advertised[sender].cipher_key, self.advertised[recipient].cipher_key)
        return derive_key(secret, self.session.digest, "encrypted shares", *keys, self.pair(sender, recipient))

    def pair(self, sender: int, recipient: int) -> bytes:
        """Return what encrypted shares are bound to."""
        return join(self.session.digest, U64.pack(sender), U64.pack(recipient))


def self_mask_key(seed: bytes, owner: int, session: Session) -> bytes:
    """Return the key of a client's own mask."""
    return derive_key(seed, session.digest, "self mask", U64.pack(owner), session.context_digest)


def commitment(seed: bytes, owner: int, session: Session) -> bytes:
    """Return what the server can compare a reconstructed seed with; it says nothing about the mask's key."""
    return derive_key(seed, session.digest, "self mask commitment", U64.pack(owner))


def pair_sign(owner: int, other: int) -> int:
    """Return +1 if `owner` adds the mask that it shares with `other` and -1 if it subtracts it."""
    return 1 if owner > other else -1
