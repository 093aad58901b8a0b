"""10 000 random and adversarial messages: only named errors, no secret in their texts, and the sum stays right."""

import random
from collections.abc import Callable

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pl_fed.privacy.pairwise import PairwiseClient, PairwiseServer, Step
from pl_fed.privacy.pairwise.errors import ProtocolError
from pl_fed.privacy.pairwise.frames import HEADER, KINDS, Kind, seal
from pl_fed.privacy.pairwise.messages import ShareOf, decode_request, decode_shares, encode_request
from pl_fed.privacy.pairwise.session import SERVER_ID
from tests.helpers.secure import Parties, body_of, from_client, from_server

NUM_OUTSIDE, NUM_INSIDE, PER_DELIVERY = 9000, 1000, 25


def flip(rng: random.Random, message: bytes) -> bytes:
    changed = bytearray(message)
    for _ in range(rng.choice([1, 1, 2, 8])):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed) if changed != message else message[:-1]


def splice(rng: random.Random, message: bytes) -> bytes:
    """Cut out a piece, double it, or put noise in its place; the announced length is mended half of the time."""
    start, stop = sorted(rng.randrange(len(message) + 1) for _ in range(2))
    piece = rng.choice([b"", message[start:stop] * 2, rng.randbytes(rng.randrange(40))])
    changed = bytearray(message[:start] + piece + message[stop:])
    if rng.random() < 0.5 and len(changed) >= HEADER.size + 64:
        changed[54:62] = (len(changed) - HEADER.size - 64).to_bytes(8, "little")
    return bytes(changed) if changed != message else message + b"\0"


class Outsider:
    """Sees every message of this and of an older session, and has no key of theirs."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.key, self.seen, self.old = rng, Ed25519PrivateKey.generate(), [b"?"], [b"?"]

    def make(self, parties: Parties, recipient: int, genuine: bytes) -> bytes:
        rng = self.rng
        makers: list[Callable[[], bytes]] = [
            lambda: rng.randbytes(rng.randrange(400)),
            lambda: b"PLSS\1" + rng.randbytes(rng.randrange(400)),
            lambda: genuine[: rng.randrange(len(genuine))],
            lambda: genuine + rng.randbytes(1 + rng.randrange(9)),
            lambda: flip(rng, genuine),
            lambda: splice(rng, genuine),
            lambda: rng.choice(self.old),
            lambda: rng.choice([message for message in self.seen if message != genuine]),
            lambda: self.forge(parties, recipient, genuine),
        ]
        return rng.choice(makers)()

    def forge(self, parties: Parties, recipient: int, genuine: bytes) -> bytes:
        """Signed with a key of its own, in anybody's name."""
        sender = self.rng.choice([*parties.ids, SERVER_ID, 2**50])
        body = self.rng.choice([body_of(genuine), self.rng.randbytes(96)])
        return seal(Kind(self.rng.choice(sorted(KINDS))), body, sender, recipient, self.key, parties.session)


def material(parties: Parties) -> list[bytes]:
    """Every secret that a client holds just now, raw and as people would print it."""
    found: list[bytes] = []
    for client in parties.clients.values():
        state = vars(client)
        found += [state[name].private_bytes_raw() for name in ("_cipher_key", "_mask_key") if name in state]
        found += [state[name] for name in ("_seed",) if name in state]
        found += [share for share in state.get("_own_shares", ())]
    return found


def no_secret(text: str, parties: Parties) -> bool:
    """Say whether none of the secrets is in a text, not even 8 bytes of it in hexadecimal or as a Python literal."""
    return not any(secret.hex()[:16] in text or repr(secret)[2:20] in text for secret in material(parties))


def test_outsiders_can_neither_crash_nor_change_anything() -> None:
    """Before each genuine message 25 others are delivered; then the round still ends with the ideal sum."""
    rng, count, rounds = random.Random(0), 0, 0
    outsider = Outsider(rng)
    while count < NUM_OUTSIDE:
        parties = Parties.make(4, seed=rounds)

        def attack(parties: Parties, recipient: int | None, genuine: bytes) -> None:
            nonlocal count
            for _ in range(PER_DELIVERY):
                target = parties.server if recipient is None else parties.clients[recipient]
                message = outsider.make(parties, SERVER_ID if recipient is None else recipient, genuine)
                with pytest.raises(ProtocolError) as error:
                    target.receive(message)
                assert no_secret(str(error.value), parties) and error.value.__cause__ is None
                count += 1
            outsider.seen.append(genuine)

        silent = {rng.choice(parties.ids): rng.choice(list(Step))} if rounds % 2 else {}
        parties.run(silent=silent, before=attack)
        result = parties.server.result
        assert result is not None and torch.equal(result.total, parties.expected(result.survivors))
        outsider.old, outsider.seen = outsider.seen, [b"?"]
        rounds += 1


def insider(rng: random.Random, parties: Parties, recipient: int | None, genuine: bytes) -> bytes:
    """The genuine message with another body, rightly signed by a party that is malicious."""
    sender = int.from_bytes(genuine[6:14], "little")
    if genuine[5] == Kind.UNMASK and recipient is not None and rng.random() < 0.7:
        return from_server(parties, recipient, Kind.UNMASK, other_request(rng, body_of(genuine)))
    body = rng.choice([flip, splice])(rng, body_of(genuine) or b"\0")
    kind = Kind(genuine[5]) if rng.random() < 0.8 else Kind(rng.choice(sorted(KINDS)))
    if recipient is None:
        return from_client(parties, sender, kind, body)
    return from_server(parties, recipient, kind, body)


def other_request(rng: random.Random, body: bytes) -> bytes:
    """A survivor is called dropped, or both, or the signatures are others: what a server must never get shares for."""
    survivors, dropped, frames = decode_request(body)
    one = rng.choice(survivors)
    others = [who for who in survivors if who != one]
    return rng.choice(
        [
            encode_request(others, sorted([*dropped, one]), frames),
            encode_request(survivors, sorted([*dropped, one]), frames),
            encode_request(others, dropped, frames),
            encode_request(survivors, dropped, frames[:2]),
            encode_request(survivors, dropped, [frames[0]] * len(frames)),
        ]
    )


class Loot:
    """What a malicious server has got out of one session."""

    def __init__(self) -> None:
        self.kinds: dict[int, set[ShareOf]] = {}  # by client: of which of its secrets there are shares
        self.believed = False  # whether it took a malicious client's key, share or vector

    def take(self, answer: bytes, parties: Parties) -> None:
        """Read a client's answer to a request for shares; it holds one share of each client and nothing else."""
        try:
            shares = decode_shares(body_of(answer))
        except ProtocolError:
            pytest.fail("an answer with something else in it than shares")
        for who, (kind, _) in shares.items():
            self.kinds.setdefault(who, set()).add(kind)
        for client in parties.clients.values():
            secrets = [vars(client)[name] for name in ("_seed", "_mask_key") if name in vars(client)]
            raw = [each if isinstance(each, bytes) else each.private_bytes_raw() for each in secrets]
            assert not any(secret in answer for secret in raw)


def test_insiders_get_named_errors_or_are_believed() -> None:
    """Valid signatures over mutated bodies: no other exception, and never shares of both secrets of one client.

    A client may send a vector of its choice; if nobody has, a sum is the sum, whatever shares came later.
    """
    rng, count, sums = random.Random(1), 0, 0
    while count < NUM_INSIDE:
        parties, begin = Parties.make(4, num_values=2), rng.choice(list(Step))  # late steps need honest early ones
        loot, server_is_honest = Loot(), rng.random() < 0.5
        villain = rng.choice(parties.ids).to_bytes(8, "little")  # of an honest server's clients

        def strike(target: PairwiseServer | PairwiseClient, message: bytes) -> bytes | None:
            """Return the answer to what a malicious party sent, None if it was refused by name."""
            nonlocal count
            count += 1
            try:
                return target.receive(message)  # type: ignore[return-value]
            except ProtocolError as error:
                assert no_secret(str(error), parties)  # noqa: B023  # called in this pass of the loop only
                return None

        def attack(
            parties: Parties,
            recipient: int | None,
            genuine: bytes,
            begin: Step = begin,
            loot: Loot = loot,
            server_is_honest: bool = server_is_honest,
            villain: bytes = villain,
        ) -> None:
            if recipient is None and genuine[5] == Kind.UNMASKED:
                loot.take(genuine, parties)
            if parties.server.step is None or parties.server.step < begin:
                return
            if recipient is not None and server_is_honest:
                return
            if recipient is not None:  # a client that is told nonsense by its server stops: one try
                answer = strike(parties.clients[recipient], insider(rng, parties, recipient, genuine))
                if answer is not None and answer[5] == Kind.UNMASKED:
                    loot.take(answer, parties)
            while recipient is None and (not server_is_honest or genuine[6:14] == villain):
                step = parties.server.step
                if strike(parties.server, insider(rng, parties, None, genuine)) is not None:
                    loot.believed |= step <= Step.MASKED_INPUT
                    break
                if rng.random() < 0.3:
                    break

        try:
            parties.run(before=attack)
        except ProtocolError as error:  # somebody stopped, or the sum cannot be had
            assert no_secret(str(error), parties)
        assert all(len(kinds) == 1 for kinds in loot.kinds.values())
        result = parties.server.result
        if result is not None and not loot.believed:
            assert torch.equal(result.total, parties.expected(result.survivors))
            sums += 1
    assert sums > 5
