"""The cryptographic primitives as the protocol uses them; every one comes from `cryptography` or `pycryptodome`.

X25519 (RFC 7748), HKDF-SHA256 (RFC 5869), ChaCha20 and ChaCha20-Poly1305 (RFC 8439), Shamir's secret sharing over
GF(2^128). Every derived key has its own label, the session and the two parties in its HKDF input, and is used for one
purpose and one message only. What must be random comes from the operating system.
"""

import os
import struct
from collections.abc import Mapping

import numpy as np
from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from pl_fed.privacy.pairwise.errors import ForgedMessageError, KeyAgreementError
from pl_fed.privacy.ring import Words

DOMAIN = b"pl_fed secure sum v1"
SECRET_BYTES = 32
BLOCK_BYTES = 16  # what Shamir's scheme of pycryptodome takes
NONCE_BYTES, TAG_BYTES = 12, 16
CHUNK_BYTES = 1 << 16  # the keystream is made and added in pieces that stay in the cache
MAX_MASK_BYTES = 2**32 * 64  # the block counter of ChaCha20 has 32 bits


def join(*parts: bytes) -> bytes:
    """Return the parts with their lengths before them, so that no two lists of parts give the same bytes."""
    return b"".join(struct.pack("<Q", len(part)) + part for part in parts)


def hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    """Return 32 bytes of HKDF-SHA256."""
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=info).derive(secret)


def derive_key(secret: bytes, session: bytes, label: str, *parts: bytes) -> bytes:
    """Return 32 bytes of HKDF-SHA256 for one purpose.

    Args:
        secret: Input key material.
        session: Digest of the session, the salt.
        label: The purpose.
        parts: What the key is bound to besides: parties, public keys, the model.
    """
    return hkdf(secret, session, join(DOMAIN, label.encode(), *parts))


def agree(private: X25519PrivateKey, public: bytes) -> bytes:
    """Return the shared secret of X25519.

    Raises:
        KeyAgreementError: If the public key is of low order, so that the secret would be known to everybody.
    """
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise KeyAgreementError(
            "Expected a public key of full order but the shared secret is zero: leave its owner out of the round."
        ) from None


def add_mask(words: Words, key: bytes, sign: int) -> None:
    """Add the keystream of ChaCha20 under `key`, as ring elements, to `words` in place.

    Args:
        words: Little-endian unsigned words.
        key: 32 bytes, used for this mask only; therefore the nonce is zero.
        sign: +1 to add, -1 to subtract.
    """
    if words.nbytes > MAX_MASK_BYTES:
        raise ValueError(f"Expected at most 2^38 bytes under one mask but got {words.nbytes}: split the vector.")
    cipher = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()
    zeros, stream = bytes(CHUNK_BYTES), bytearray(CHUNK_BYTES)
    mask = np.frombuffer(stream, dtype=words.dtype)
    for start in range(0, words.size, mask.size):
        part = words[start : start + mask.size]
        cipher.update_into(zeros, stream)
        if sign > 0:
            part += mask[: part.size]
        else:
            part -= mask[: part.size]


def encrypt(key: bytes, plaintext: bytes, associated: bytes) -> bytes:
    """Return nonce, ciphertext and tag of ChaCha20-Poly1305."""
    nonce = os.urandom(NONCE_BYTES)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, plaintext, associated)


def decrypt(key: bytes, ciphertext: bytes, associated: bytes) -> bytes:
    """Return the plaintext.

    Raises:
        ForgedMessageError: If the tag does not fit.
    """
    try:
        return ChaCha20Poly1305(key).decrypt(ciphertext[:NONCE_BYTES], ciphertext[NONCE_BYTES:], associated)
    except InvalidTag:
        raise ForgedMessageError(
            "Expected shares that their sender encrypted but the tag does not fit: stop this round."
        ) from None


def split_secret(secret: bytes, threshold: int, num_shares: int) -> list[bytes]:
    """Return `num_shares` shares of 32 bytes; share i belongs to the point i + 1.

    pycryptodome shares 16 bytes, so the two halves are shared with polynomials of their own.
    """
    halves = (secret[:BLOCK_BYTES], secret[BLOCK_BYTES:])
    first, second = (Shamir.split(threshold, num_shares, half) for half in halves)
    return [a + b for (_, a), (_, b) in zip(first, second, strict=True)]


def combine_secret(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Return the secret from shares by their point, of which `threshold` are used.

    The library does not know the threshold: with fewer shares it would return a wrong secret without a word, so the
    caller must compare the secret with what its owner committed to.
    """
    if len(shares) < threshold or min(shares) < 1:
        raise ValueError(f"Expected at least {threshold} shares at points from 1 but got {len(shares)}.")
    used = sorted(shares.items())[:threshold]
    halves = (
        [(point, share[:BLOCK_BYTES]) for point, share in used],
        [(point, share[BLOCK_BYTES:]) for point, share in used],
    )
    return b"".join(Shamir.combine(half) for half in halves)
