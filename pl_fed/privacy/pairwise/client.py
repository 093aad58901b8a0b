"""A client of the secure sum, as a state machine over bytes.

Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017, Figure 4 with the
parts for active adversaries (signed keys and the ConsistencyCheck round). U1, U2, U3 are the paper's sets: who
advertised keys, who shared them, whose masked vectors arrived. Ours besides: every message is signed; the commitment to
the self mask's seed, so that false shares are noticed; the explicit request in UNMASK, so that it can be refused.
"""

import hashlib
import secrets
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from torch import Tensor

from pl_fed.errors import FederatedConfigError
from pl_fed.privacy.pairwise import messages as wire
from pl_fed.privacy.pairwise.errors import (
    BothSharesError,
    ForgedMessageError,
    InconsistentSurvivorsError,
    KeyAgreementError,
    MembershipError,
    OutOfOrderError,
    TooFewSurvivorsError,
    UnexpectedRequestError,
)
from pl_fed.privacy.pairwise.frames import Kind, expect, open_frame, seal
from pl_fed.privacy.pairwise.masks import Peers, commitment, pair_sign, self_mask_key
from pl_fed.privacy.pairwise.primitives import SECRET_BYTES, add_mask, decrypt, encrypt, split_secret
from pl_fed.privacy.pairwise.session import SERVER_ID, Session


class PairwiseClient:
    """Sends one masked vector; call `start`, then `receive` with each message of the server.

    A message that does not come from the server of this session, or not now, raises and changes nothing: anybody could
    have sent it. A message of the server that breaks the protocol ends the client for good.

    Args:
        client_id: Who it is.
        identity: Its Ed25519 key; the public part is in the roster.
        session: The sum that is going on.
        load: Returns the int64 vector when it is needed.
    """

    def __init__(
        self, client_id: int, identity: Ed25519PrivateKey, session: Session, load: Callable[[], Tensor]
    ) -> None:
        self.client_id, self.session = client_id, session
        self._identity, self._load = identity, load
        self._expected: Kind | None = None
        self._started = False

    def start(self) -> bytes:
        """AdvertiseKeys: draw all secrets and return the public keys."""
        if self._started:
            raise OutOfOrderError("Expected one start but got a second one: make a new client for a new session.")
        self._started, self._expected = True, Kind.KEYS
        self._cipher_key, self._mask_key = X25519PrivateKey.generate(), X25519PrivateKey.generate()
        self._seed = secrets.token_bytes(SECRET_BYTES)
        advertised = wire.Advertised(
            self._cipher_key.public_key().public_bytes_raw(),
            self._mask_key.public_key().public_bytes_raw(),
            commitment(self._seed, self.client_id, self.session),
        )
        self._advertised = self._seal(Kind.ADVERTISE, advertised.encode())
        return self._advertised

    def receive(self, data: bytes) -> bytes:
        """Read the server's next message and return the answer.

        Raises:
            ProtocolError: One of its classes, by what is wrong with the message.
        """
        frame = open_frame(data, self.client_id, self.session)
        if self._expected is None:
            raise OutOfOrderError(f"Expected no message but got {frame.kind.name}: this client does not wait for one.")
        expect(frame, self._expected)
        steps = {
            Kind.KEYS: (self._share_keys, Kind.RELAYED),
            Kind.RELAYED: (self._mask, Kind.SURVIVORS),
            Kind.SURVIVORS: (self._check, Kind.UNMASK),
            Kind.UNMASK: (self._unmask, None),
        }
        step, following = steps[frame.kind]
        try:
            answer = step(frame.body)
        except BaseException:
            self._forget()
            raise
        self._expected = following
        if following is None:
            self._forget()
        return answer

    def _share_keys(self, body: bytes) -> bytes:
        """ShareKeys: check everybody's keys, and share both secrets with everybody."""
        frames = wire.decode_frames(body)
        if self._advertised not in frames:
            raise MembershipError("Expected my own keys among those of the cohort but they are missing or changed.")
        opened = [open_frame(frame, SERVER_ID, self.session) for frame in frames]
        for frame in opened:
            expect(frame, Kind.ADVERTISE)
        senders = [frame.sender for frame in opened]
        if senders != sorted(set(senders)):
            raise MembershipError("Expected every client once and in order but got another list: stop this round.")
        self._enough(len(senders), "advertised keys")
        advertised = {frame.sender: wire.Advertised.decode(frame.body) for frame in opened}
        keys = [key for peer in advertised.values() for key in (peer.cipher_key, peer.mask_key)]
        if len(set(keys)) != len(keys):
            raise KeyAgreementError("Expected all public keys to differ but one was used twice: stop this round.")
        self._peers = Peers(self.session, advertised)
        return self._seal(Kind.SHARES, wire.encode_by_client(self._encrypted_shares(advertised)))

    def _encrypted_shares(self, peers: dict[int, wire.Advertised]) -> dict[int, bytes]:
        threshold, own = self.session.threshold, self.client_id
        key_shares = split_secret(self._mask_key.private_bytes_raw(), threshold, len(peers))
        seed_shares = split_secret(self._seed, threshold, len(peers))
        encrypted = {}
        for peer, key_share, seed_share in zip(peers, key_shares, seed_shares, strict=True):
            if peer == own:
                self._own_shares = key_share, seed_share
                continue
            key = self._peers.cipher_key(self._cipher_key, own, own, peer)
            plain = wire.U64.pack(own) + wire.U64.pack(peer) + key_share + seed_share
            encrypted[peer] = encrypt(key, plain, self._peers.pair(own, peer))
        return encrypted

    def _mask(self, body: bytes) -> bytes:
        """MaskedInputCollection: add the self mask and one mask for every client that shared its keys."""
        received = wire.decode_by_client(body)
        if not received.keys() <= self._peers.advertised.keys() - {self.client_id}:
            raise MembershipError("Expected shares of clients that advertised keys but got others: stop this round.")
        self._sharing = frozenset(received) | {self.client_id}  # U2
        self._enough(len(self._sharing), "shared their keys")
        self._received = received
        words = self.session.ring.words(self._load())
        if words.size != self.session.num_values:
            raise FederatedConfigError(
                f"Expected a vector of {self.session.num_values} values but got {words.size}: use one layout."
            )
        keys = {who: self._peers.pair_mask_key(self._mask_key, self.client_id, who) for who in received}
        add_mask(words, self_mask_key(self._seed, self.client_id, self.session), 1)
        for who, key in keys.items():
            add_mask(words, key, pair_sign(self.client_id, who))
        return self._seal(Kind.MASKED, wire.encode_words(words))

    def _check(self, body: bytes) -> bytes:
        """ConsistencyCheck: sign the list of survivors."""
        survivors = wire.decode_ids(body)
        if not set(survivors) <= self._sharing or self.client_id not in survivors:
            raise MembershipError("Expected survivors out of those that shared keys, me among them: stop this round.")
        self._enough(len(survivors), "sent their vectors")
        self._survivors = survivors  # U3
        return self._seal(Kind.CONSISTENT, hashlib.sha256(body).digest())

    def _unmask(self, body: bytes) -> bytes:
        """Unmasking: if enough clients signed the same list, give one share of each client, never both."""
        survivors, dropped, frames = wire.decode_request(body)
        if both := sorted(set(survivors) & set(dropped)):
            raise BothSharesError(
                f"Expected a request for one share of each client but got one for both of client {both[0]}: the server "
                "could read its vector; stop this round and ask who runs the server why."
            )
        if survivors != self._survivors or set(dropped) != self._sharing - set(survivors):
            raise UnexpectedRequestError("Expected a request that fits the signed survivors but got another: stop.")
        self._check_signatures(frames)
        shares = {who: self._share_of(who, who in survivors) for who in sorted(self._sharing)}
        return self._seal(Kind.UNMASKED, wire.encode_shares(shares))

    def _check_signatures(self, frames: list[bytes]) -> None:
        opened = [open_frame(frame, SERVER_ID, self.session) for frame in frames]
        signed = hashlib.sha256(wire.encode_ids(self._survivors)).digest()
        for frame in opened:
            expect(frame, Kind.CONSISTENT)
            if frame.body != signed:
                raise InconsistentSurvivorsError(
                    f"Expected one list of survivors for everybody but client {frame.sender} signed another one: stop "
                    "this round and ask who runs the server why."
                )
        signers = {frame.sender for frame in opened}
        if len(signers) != len(opened) or not signers <= set(self._survivors):
            raise MembershipError("Expected one signature of each survivor but got others: stop this round.")
        self._enough(len(signers), "signed the list of survivors")

    def _share_of(self, who: int, alive: bool) -> tuple[wire.ShareOf, bytes]:
        """Return this client's share of the self mask of a survivor, or of the mask key of a dropped client."""
        kind = wire.ShareOf.SELF_MASK if alive else wire.ShareOf.MASK_KEY
        if who == self.client_id:
            return kind, self._own_shares[alive]
        key = self._peers.cipher_key(self._cipher_key, self.client_id, who, self.client_id)
        plain = decrypt(key, self._received[who], self._peers.pair(who, self.client_id))
        if plain[:16] != wire.U64.pack(who) + wire.U64.pack(self.client_id):
            raise ForgedMessageError(f"Expected shares from client {who} for me but they name others: stop this round.")
        key_share, seed_share = plain[16 : 16 + SECRET_BYTES], plain[16 + SECRET_BYTES :]
        return kind, seed_share if alive else key_share

    def _enough(self, count: int, what: str) -> None:
        if count < self.session.threshold:
            raise TooFewSurvivorsError(
                f"Expected at least {self.session.threshold} clients that {what} but got {count}: my vector stays "
                "secret; start a new round with more clients."
            )

    def _seal(self, kind: Kind, body: bytes) -> bytes:
        return seal(kind, body, self.client_id, SERVER_ID, self._identity, self.session)

    def _forget(self) -> None:
        """Drop every secret; Python cannot promise that no copy of it stays in memory."""
        self._expected = None
        for secret in ("_cipher_key", "_mask_key", "_seed", "_own_shares", "_received", "_peers", "_load"):
            self.__dict__.pop(secret, None)
