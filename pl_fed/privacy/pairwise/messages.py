"""The bodies of the messages as bytes and back; every reader checks counts, order and the exact length.

Integers are little-endian; ids and counts have 8 bytes. Lists are in strictly ascending order of client ids, so that
there is one encoding of each list and nobody is in it twice.
"""

import struct
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from pl_fed.privacy.pairwise.errors import MalformedMessageError
from pl_fed.privacy.pairwise.primitives import NONCE_BYTES, SECRET_BYTES, TAG_BYTES
from pl_fed.privacy.pairwise.session import KEY_BYTES, SERVER_ID, Session
from pl_fed.privacy.ring import Words

U64 = struct.Struct("<Q")
PAIR_BYTES = NONCE_BYTES + 2 * U64.size + 2 * SECRET_BYTES + TAG_BYTES
"""Bytes of the encrypted shares that one client sends to another."""


class ShareOf(IntEnum):
    """Which secret of a client a share belongs to."""

    MASK_KEY = 1  # the private key of the pairwise masks; asked for when its owner dropped out
    SELF_MASK = 2  # the seed of its own mask; asked for when its vector is in the sum


@dataclass(frozen=True)
class Advertised:
    """What a client announces: two X25519 public keys and a commitment to the seed of its own mask."""

    cipher_key: bytes
    mask_key: bytes
    commitment: bytes

    def encode(self) -> bytes:
        """Return the body of ADVERTISE."""
        return self.cipher_key + self.mask_key + self.commitment

    @classmethod
    def decode(cls, body: bytes) -> "Advertised":
        """Read the body of ADVERTISE."""
        reader = Reader(body)
        advertised = cls(reader.take(KEY_BYTES), reader.take(KEY_BYTES), reader.take(KEY_BYTES))
        reader.finish()
        return advertised


class Reader:
    """Takes a body apart and refuses one that is too short or too long."""

    def __init__(self, body: bytes) -> None:
        self._body, self._at = body, 0

    def take(self, num_bytes: int) -> bytes:
        """Return the next bytes."""
        if num_bytes > len(self._body) - self._at:
            raise MalformedMessageError(
                f"Expected {num_bytes} more bytes of a body but {len(self._body) - self._at} are left: send it again."
            )
        self._at += num_bytes
        return self._body[self._at - num_bytes : self._at]

    def integer(self) -> int:
        """Return the next integer."""
        return int(U64.unpack(self.take(U64.size))[0])

    def ids(self) -> tuple[int, ...]:
        """Return the next list of client ids."""
        count = self.integer()
        found = struct.unpack(f"<{count}Q", self.take(8 * count)) if count <= len(self._body) // 8 else None
        if found is None or list(found) != sorted(set(found)) or SERVER_ID in found:
            raise MalformedMessageError("Expected ascending client ids but got another list: send it again.")
        return tuple(found)

    def finish(self) -> None:
        """Check that nothing is left."""
        if self._at != len(self._body):
            raise MalformedMessageError(
                f"Expected a body of {self._at} bytes but got {len(self._body)}: send it again."
            )


def encode_ids(ids: Collection[int]) -> bytes:
    """Return a list of client ids, ascending."""
    return struct.pack(f"<{len(ids) + 1}Q", len(ids), *sorted(ids))


def decode_ids(body: bytes) -> tuple[int, ...]:
    """Read the body of SURVIVORS."""
    reader = Reader(body)
    ids = reader.ids()
    reader.finish()
    return ids


def encode_by_client(items: Mapping[int, bytes]) -> bytes:
    """Return byte strings of one common length by client id: the body of SHARES and RELAYED."""
    return encode_ids(items) + b"".join(items[who] for who in sorted(items))


def decode_by_client(body: bytes, num_bytes: int = PAIR_BYTES) -> dict[int, bytes]:
    """Read the body of SHARES or RELAYED."""
    reader = Reader(body)
    items = {who: reader.take(num_bytes) for who in reader.ids()}
    reader.finish()
    return items


def encode_frames(frames: Iterable[bytes]) -> bytes:
    """Return whole messages with their lengths: the body of KEYS."""
    listed = list(frames)
    return U64.pack(len(listed)) + b"".join(U64.pack(len(frame)) + frame for frame in listed)


def decode_frames(body: bytes) -> list[bytes]:
    """Read the body of KEYS."""
    reader = Reader(body)
    frames = _frames(reader)
    reader.finish()
    return frames


def _frames(reader: Reader) -> list[bytes]:
    return [reader.take(reader.integer()) for _ in range(reader.integer())]


def encode_request(survivors: Collection[int], dropped: Collection[int], frames: Iterable[bytes]) -> bytes:
    """Return the body of UNMASK: whose self masks and whose mask keys are needed, and the CONSISTENT messages."""
    return encode_ids(survivors) + encode_ids(dropped) + encode_frames(frames)


def decode_request(body: bytes) -> tuple[tuple[int, ...], tuple[int, ...], list[bytes]]:
    """Read the body of UNMASK."""
    reader = Reader(body)
    request = reader.ids(), reader.ids(), _frames(reader)
    reader.finish()
    return request


def encode_words(words: Words) -> bytes:
    """Return the body of MASKED; its length follows from the session."""
    return words.tobytes()


def decode_words(body: bytes, session: Session) -> Words:
    """Read the body of MASKED, without a copy."""
    num_bytes = session.num_values * session.ring.word_bytes
    if len(body) != num_bytes:
        raise MalformedMessageError(f"Expected a vector of {num_bytes} bytes but got {len(body)}: send it again.")
    return np.frombuffer(body, dtype=session.ring.dtype)


def encode_shares(shares: Mapping[int, tuple[ShareOf, bytes]]) -> bytes:
    """Return the body of UNMASKED."""
    return encode_by_client({who: bytes([kind]) + share for who, (kind, share) in shares.items()})


def decode_shares(body: bytes) -> dict[int, tuple[ShareOf, bytes]]:
    """Read the body of UNMASKED."""
    items = decode_by_client(body, 1 + SECRET_BYTES)
    if any(item[0] not in (ShareOf.MASK_KEY, ShareOf.SELF_MASK) for item in items.values()):
        raise MalformedMessageError("Expected shares of known secrets but got another kind: send it again.")
    return {who: (ShareOf(item[0]), item[1:]) for who, item in items.items()}
