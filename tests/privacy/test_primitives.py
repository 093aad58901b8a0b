"""The primitives against published vectors, so that a wrong use of a library is seen."""

import itertools

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from pl_fed.privacy.pairwise.errors import ForgedMessageError, KeyAgreementError
from pl_fed.privacy.pairwise.primitives import (
    CHUNK_BYTES,
    DOMAIN,
    NONCE_BYTES,
    TAG_BYTES,
    add_mask,
    agree,
    combine_secret,
    decrypt,
    derive_key,
    encrypt,
    hkdf,
    join,
    split_secret,
)


def test_x25519_of_rfc_7748() -> None:
    """Section 6.1: the keys of Alice and Bob and their shared secret."""
    alice = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    bob = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    bob_public = bytes.fromhex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
    assert X25519PrivateKey.from_private_bytes(bob).public_key().public_bytes_raw() == bob_public
    shared = agree(X25519PrivateKey.from_private_bytes(alice), bob_public)
    assert shared.hex() == "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"


@pytest.mark.parametrize("low", [bytes(32), b"\x01" + bytes(31), (2**255 - 20).to_bytes(32, "little")])
def test_public_keys_of_low_order_are_refused(low: bytes) -> None:
    """0, 1 and p - 1 have order 1, 4 or 2: the shared secret would be zero whatever the private key."""
    with pytest.raises(KeyAgreementError, match="full order"):
        agree(X25519PrivateKey.generate(), low)


@pytest.mark.parametrize(
    ("secret", "salt", "info", "expected"),
    [
        ("0b" * 22, "000102030405060708090a0b0c", "f0f1f2f3f4f5f6f7f8f9", "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"),  # noqa: E501
        (bytes(range(80)).hex(), bytes(range(0x60, 0xB0)).hex(), bytes(range(0xB0, 0x100)).hex(), "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c"),  # noqa: E501
    ],
)  # fmt: skip
def test_hkdf_of_rfc_5869(secret: str, salt: str, info: str, expected: str) -> None:
    """Appendices A.1 and A.2; the first 32 bytes do not depend on how many are asked for."""
    assert hkdf(bytes.fromhex(secret), bytes.fromhex(salt), bytes.fromhex(info)).hex() == expected


def test_derived_keys_differ_in_every_input() -> None:
    """Secret, session, label, each part, and where one part ends and the next begins."""
    base = (b"s" * 32, b"session", "label", b"ab", b"c")
    other = [
        (b"t" * 32, *base[1:]),
        (base[0], b"Session", *base[2:]),
        (*base[:2], "Label", *base[3:]),
        (*base[:3], b"a", b"bc"),
        (*base[:3], b"ab", b"c", b""),
        (*base[:3], b"abc"),
    ]
    keys = [derive_key(*arguments) for arguments in (base, *other)]
    assert len(set(keys)) == len(keys)
    assert keys[0] == hkdf(base[0], b"session", join(DOMAIN, b"label", b"ab", b"c"))


def test_mask_is_the_keystream_of_rfc_8439() -> None:
    """Appendix A.1, vectors 1 and 2: key and nonce zero, blocks 0 and 1, as little-endian words."""
    stream = bytes.fromhex(
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
        "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
        "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
        "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f"
    )
    for word in ("<u4", "<u8"):
        words = np.zeros(len(stream) // int(word[2]), dtype=word)
        add_mask(words, bytes(32), 1)
        assert words.tobytes() == stream


@pytest.mark.parametrize("word", ["<u4", "<u8"])
@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_masks_of_any_length_cancel_and_agree_on_their_prefix(word: str, extra: int) -> None:
    """Around the size of a piece, and with an odd end."""
    size = CHUNK_BYTES // int(word[2]) * 2 + extra
    start = np.arange(size, dtype=word)
    words, short = start.copy(), np.zeros(5, dtype=word)
    add_mask(words, b"k" * 32, 1)
    add_mask(short, b"k" * 32, 1)
    assert (words[:5] - start[:5] == short).all()
    assert (words != start).mean() > 0.999
    add_mask(words, b"k" * 32, -1)
    assert (words == start).all()


def test_encryption_is_authenticated() -> None:
    """Every bit counts, and so does what is associated; the same text never gives the same bytes."""
    sealed = encrypt(b"k" * 32, b"shares", b"0->1")
    assert len(sealed) == NONCE_BYTES + 6 + TAG_BYTES
    assert decrypt(b"k" * 32, sealed, b"0->1") == b"shares"
    assert sealed != encrypt(b"k" * 32, b"shares", b"0->1")
    broken = [bytes([*sealed[:i], sealed[i] ^ 1, *sealed[i + 1 :]]) for i in range(len(sealed))]
    for data, associated in [*((data, b"0->1") for data in broken), (sealed, b"1->0"), (sealed[:-1], b"0->1")]:
        with pytest.raises(ForgedMessageError, match="tag does not fit"):
            decrypt(b"k" * 32, data, associated)


def test_any_threshold_of_shares_gives_the_secret() -> None:
    """All 10 triples of 5 shares, in any order; pairs are refused, though the library would combine them."""
    secret = bytes(range(32))
    shares = dict(enumerate(split_secret(secret, 3, 5), start=1))
    for chosen in itertools.combinations(shares, 3):
        assert combine_secret({point: shares[point] for point in reversed(chosen)}, 3) == secret
    assert combine_secret(shares, 3) == secret
    with pytest.raises(ValueError, match="Expected at least 3 shares at points from 1 but got 2"):
        combine_secret({1: shares[1], 2: shares[2]}, 3)
    with pytest.raises(ValueError, match="points from 1"):
        combine_secret({0: shares[1], 1: shares[2], 2: shares[3]}, 3)


def test_shares_of_equal_halves_differ() -> None:
    """The two halves of 16 bytes have polynomials of their own."""
    shares = split_secret(b"h" * 32, 2, 4)
    assert all(share[:16] != share[16:] for share in shares)
    assert combine_secret({2: shares[1], 4: shares[3]}, 2) == b"h" * 32
