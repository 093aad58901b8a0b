"""Sums that show the server nothing but themselves: an ideal one for simulations, and the real protocol."""

import hashlib
import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import Tensor

from pl_fed.errors import FederatedConfigError
from pl_fed.privacy.binding import HashEcho
from pl_fed.privacy.pairwise.client import PairwiseClient
from pl_fed.privacy.pairwise.errors import ModelMismatchError, TooFewSurvivorsError
from pl_fed.privacy.pairwise.primitives import DOMAIN, join
from pl_fed.privacy.pairwise.server import PairwiseServer, SecureTotal
from pl_fed.privacy.pairwise.session import Roster, Session, Step, check_threshold, default_threshold, public_key
from pl_fed.privacy.ring import Ring

Vectors = Mapping[int, Tensor]
"""int64 vectors of shape (values,) by client id; a mapping that makes them on demand keeps only one in memory."""
Dropouts = Mapping[int, Step]
"""By client id: the first step in which a client stays silent; it does not come back."""


class SecureSum(ABC):
    """The sum of the cohort's vectors modulo 2^bits, over those whose vectors arrived.

    Args:
        threshold: Fewest clients that must answer in every step, more than half of the cohort; None for
            floor(2 n / 3) + 1.
        echo: Let the clients compare the hashes of their contexts first, and stop if one differs.
    """

    def __init__(self, threshold: int | None = None, echo: bool = True) -> None:
        self.threshold = threshold
        self.echo = echo

    @abstractmethod
    def sum(
        self,
        vectors: Vectors,
        ring: Ring,
        *,
        round_idx: int = 0,
        context: bytes = b"",
        client_contexts: Mapping[int, bytes] | None = None,
        dropouts: Dropouts | None = None,
    ) -> SecureTotal:
        """Sum the vectors of one round.

        Args:
            vectors: The whole cohort's vectors, all of one length; that of a client that drops out before it sends one
                is not asked for.
            ring: Where the sum is taken; see `pl_fed.privacy.fixed_point.choose_ring`.
            round_idx: The round, for the session and for errors.
            context: What the server says the round is about; see `pl_fed.privacy.binding.model_hash`.
            client_contexts: The contexts of the clients that received something else.
            dropouts: Who falls silent when.

        Raises:
            TooFewSurvivorsError: If fewer clients than the threshold are left in a step.
            ModelMismatchError: If contexts differ and are compared.
            ProtocolError: If a party breaks the protocol.
        """

    def _survivors(self, clients: list[int], dropouts: Dropouts) -> tuple[int, ...]:
        """Return whose vectors arrive, and check that enough answer in every step."""
        check_threshold(threshold := self._threshold(clients), len(clients))
        for step in Step:
            left = [who for who in clients if who not in dropouts or dropouts[who] > step]
            if len(left) < threshold:
                raise TooFewSurvivorsError(
                    f"Expected at least {threshold} clients after {step.name} but got {len(left)}: nothing is "
                    "revealed; start a new round with more clients or a lower threshold."
                )
        return tuple(who for who in clients if who not in dropouts or dropouts[who] > Step.MASKED_INPUT)

    def _threshold(self, clients: list[int]) -> int:
        return default_threshold(len(clients)) if self.threshold is None else self.threshold


class IdealSum(SecureSum):
    """What the protocol computes, without the protocol; differing contexts are always refused."""

    def sum(
        self,
        vectors: Vectors,
        ring: Ring,
        *,
        round_idx: int = 0,
        context: bytes = b"",
        client_contexts: Mapping[int, bytes] | None = None,
        dropouts: Dropouts | None = None,
    ) -> SecureTotal:
        """Add up modulo 2^bits; see `SecureSum.sum`."""
        clients = sorted(vectors)
        if other := tuple(sorted(who for who, found in (client_contexts or {}).items() if found != context)):
            raise ModelMismatchError(round_idx, other, next((who for who in clients if who not in other), clients[0]))
        survivors = self._survivors(clients, dropouts or {})
        total = torch.zeros_like(vectors[survivors[0]])
        for who in survivors:
            ring.check(vector := vectors[who])
            if vector.shape != total.shape:
                raise FederatedConfigError(
                    f"Expected a vector of {total.numel()} values but got {vector.numel()}: use one layout."
                )
            total += vector
        return SecureTotal(ring.wrap(total), survivors)


class PairwiseSum(SecureSum):
    """The protocol of Bonawitz et al., CCS 2017, its clients and server in one process and bytes between them.

    Args:
        threshold: Fewest clients that must answer in every step; see `SecureSum`.
        echo: Compare the hashes of the contexts first; without it differing contexts give a sum of noise.
        identities: Ed25519 keys by client id, for those who have them; new ones are made for everybody else.
    """

    def __init__(
        self,
        threshold: int | None = None,
        echo: bool = True,
        identities: Mapping[int, Ed25519PrivateKey] | None = None,
    ) -> None:
        super().__init__(threshold, echo)
        self.identities = dict(identities or {})

    def sum(
        self,
        vectors: Vectors,
        ring: Ring,
        *,
        round_idx: int = 0,
        context: bytes = b"",
        client_contexts: Mapping[int, bytes] | None = None,
        dropouts: Dropouts | None = None,
    ) -> SecureTotal:
        """Run all steps; see `SecureSum.sum`."""
        clients, silent_from = sorted(vectors), dropouts or {}
        check_threshold(threshold := self._threshold(clients), len(clients))
        server_identity = Ed25519PrivateKey.generate()
        identities = {who: self.identities.get(who) or Ed25519PrivateKey.generate() for who in clients}
        roster = Roster(public_key(server_identity), {who: public_key(key) for who, key in identities.items()})
        session_id = hashlib.sha256(join(DOMAIN, round_idx.to_bytes(8, "little"), secrets.token_bytes(32))).digest()
        sends = (who for who in clients if silent_from.get(who, len(Step)) > Step.MASKED_INPUT)
        num_values = vectors[next(sends, clients[0])].numel()
        session = Session(session_id, roster, threshold, ring, num_values, context)
        views = {who: replace(session, context=(client_contexts or {}).get(who, context)) for who in clients}
        awake = [who for who in clients if silent_from.get(who, len(Step)) > Step.ADVERTISE_KEYS]
        if self.echo:
            echoes = {who: HashEcho(who, identities[who], session, round_idx, views[who].context) for who in awake}
            messages = [echo.message() for echo in echoes.values()]
            for echo in echoes.values():
                echo.check(messages)
        parties = {
            who: PairwiseClient(who, identities[who], views[who], partial(vectors.__getitem__, who)) for who in awake
        }
        return exchange(PairwiseServer(server_identity, session), parties, silent_from)


def exchange(server: PairwiseServer, clients: Mapping[int, PairwiseClient], dropouts: Dropouts) -> SecureTotal:
    """Pass messages between the parties until the server has the sum.

    Args:
        server: The server, before its first step.
        clients: The clients, not yet started.
        dropouts: Who falls silent when.
    """
    inbox: dict[int, bytes] = {}
    for step in Step:
        for who in clients if step == Step.ADVERTISE_KEYS else list(inbox):
            if dropouts.get(who, len(Step)) > step:
                server.receive(clients[who].receive(inbox.pop(who)) if inbox else clients[who].start())
        inbox = server.advance()
    assert server.result is not None
    return server.result
