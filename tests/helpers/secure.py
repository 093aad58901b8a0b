"""Parties of a secure sum for tests, and a driver that lets a test touch every message."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import Tensor

from pl_fed.privacy.pairwise import PairwiseClient, PairwiseServer, Roster, Session, Step, public_key
from pl_fed.privacy.pairwise.errors import ReplayedMessageError
from pl_fed.privacy.pairwise.frames import HEADER, SIGNATURE_BYTES, Kind, seal
from pl_fed.privacy.pairwise.session import SERVER_ID
from pl_fed.privacy.ring import Ring

Deliver = Callable[["Parties", int | None, bytes], None]


def body_of(message: bytes) -> bytes:
    return message[HEADER.size : -SIGNATURE_BYTES]


def from_server(parties: "Parties", who: int, kind: Kind, body: bytes) -> bytes:
    """A message that a malicious server signs."""
    return seal(kind, body, SERVER_ID, who, parties.server_identity, parties.session)


def from_client(parties: "Parties", who: int, kind: Kind, body: bytes) -> bytes:
    """A message that a malicious client signs."""
    return seal(kind, body, who, SERVER_ID, parties.identities[who], parties.session)


def vectors(num_clients: int, num_values: int = 8, bits: int = 32, seed: int = 0) -> dict[int, Tensor]:
    """Vectors over the whole ring; ids are neither dense nor small."""
    generator = torch.Generator().manual_seed(seed)
    half = 2 ** (bits - 1)
    ids = [3 + 7 * k + (2**40 if k % 2 else 0) for k in range(num_clients)]
    return {who: torch.randint(-half, half - 1, (num_values,), generator=generator) for who in ids}


@dataclass
class Parties:
    """One session with all its keys, which only a test may hold together."""

    session: Session
    server: PairwiseServer
    clients: dict[int, PairwiseClient]
    server_identity: Ed25519PrivateKey
    identities: dict[int, Ed25519PrivateKey]
    vectors: dict[int, Tensor]

    @classmethod
    def make(
        cls,
        num_clients: int = 5,
        threshold: int = 3,
        ring: Ring | None = None,
        num_values: int = 8,
        contexts: dict[int, bytes] | None = None,
        seed: int = 0,
    ) -> "Parties":
        ring = ring or Ring(32)
        values = vectors(num_clients, num_values, ring.bits, seed)
        server_identity = Ed25519PrivateKey.generate()
        identities = {who: Ed25519PrivateKey.generate() for who in values}
        roster = Roster(public_key(server_identity), {who: public_key(key) for who, key in identities.items()})
        session = Session(secrets.token_bytes(32), roster, threshold, ring, num_values, b"model")
        clients = {
            who: PairwiseClient(
                who,
                key,
                replace(session, context=(contexts or {}).get(who, b"model")),
                lambda who=who: values[who],  # type: ignore[misc]
            )
            for who, key in identities.items()
        }
        server = PairwiseServer(server_identity, session)
        return cls(session, server, clients, server_identity, identities, values)

    @property
    def ids(self) -> list[int]:
        return sorted(self.clients)

    def expected(self, survivors: tuple[int, ...] | list[int]) -> Tensor:
        """The modular sum in Python integers."""
        modulus, half = 2**self.session.ring.bits, self.session.ring.half
        columns = zip(*(self.vectors[who].tolist() for who in survivors), strict=True)
        return torch.tensor([(sum(column) + half) % modulus - half for column in columns])

    def run(
        self,
        until: Step | None = None,
        silent: dict[int, Step] | None = None,
        before: Deliver | None = None,
    ) -> dict[int, bytes]:
        """Run the steps up to and with `until`; return what the server sends next.

        `before` sees every genuine message (with its recipient, None for the server) before it is delivered.
        """
        inbox: dict[int, bytes] = {}
        for step in Step:
            for who in self.ids if step == Step.ADVERTISE_KEYS else list(inbox):
                if (silent or {}).get(who, len(Step)) <= step:
                    continue
                if step == Step.ADVERTISE_KEYS:
                    message = self.clients[who].start()
                else:
                    if before:
                        before(self, who, inbox[who])
                    message = self.clients[who].receive(inbox[who])
                if before:
                    before(self, None, message)
                try:
                    assert self.server.receive(message) == who
                except ReplayedMessageError:  # `before` had another one taken in this client's name
                    assert before is not None
            inbox = self.server.advance()
            if step == until:
                return inbox
        return inbox
