"""Model binding: one hash of the model that a client received, for every mask and for an echo among the clients.

A malicious server can send another model to one client, so that the sum reveals that client's part. Two answers:
the hash goes into the derivation of every pairwise mask (`Session.context`), so that masks of clients with different
models do not cancel and not one coordinate of the sum is right; and `HashEcho` lets the clients compare signed hashes
beforehand, name the round and send nothing. The defence of Pasquini et al., "Eluding Secure Aggregation in Federated
Learning via Model Inconsistency", CCS 2022, arXiv 2111.07380, section 5, with a hash of everything that decides the
model's behaviour.
"""

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import Tensor, nn

from pl_fed.errors import FederatedConfigError
from pl_fed.privacy.pairwise.errors import MembershipError, ModelMismatchError, TooFewSurvivorsError
from pl_fed.privacy.pairwise.frames import Kind, expect, open_frame, seal
from pl_fed.privacy.pairwise.messages import U64, Reader
from pl_fed.privacy.pairwise.primitives import join
from pl_fed.privacy.pairwise.session import SERVER_ID, Session

LABEL = b"pl_fed model v1"
HASH_BYTES = 32


def tensor_bytes(tensor: Tensor) -> bytes:
    """Return the values in C order as little-endian bytes; bit patterns count, so -0.0 is not 0.0."""
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    raw = flat.view(torch.uint8)
    if sys.byteorder == "big":
        item = flat.element_size() // (2 if flat.is_complex() else 1)
        raw = raw.reshape(-1, item).flip(1).reshape(-1)
    return raw.numpy().tobytes()


def canonical_bytes(section: str, tensors: Mapping[str, Tensor]) -> Iterator[bytes]:
    """Yield section, name, dtype, shape and values of every tensor, by ascending name, each with its length.

    Raises:
        FederatedConfigError: If a tensor has no values of its own (meta, sparse).
    """
    for name in sorted(tensors):
        tensor = tensors[name]
        if tensor.is_meta or tensor.layout != torch.strided:
            raise FederatedConfigError(
                f"Expected dense tensors with values but `{name}` is {tensor.layout} on {tensor.device}: load it first."
            )
        shape = b"".join(U64.pack(size) for size in tensor.shape)
        yield join(section.encode(), name.encode(), str(tensor.dtype).encode(), shape, tensor_bytes(tensor))


def model_hash(
    round_idx: int,
    parameters: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor] | None = None,
    config: Mapping[str, Any] | None = None,
) -> bytes:
    """Return the SHA-256 of a received model and its round, 32 bytes.

    Args:
        round_idx: The round, from 0.
        parameters: Every parameter by name.
        buffers: Every buffer by name, also those that are not saved.
        config: What else decides how the model behaves, as JSON values.

    Raises:
        FederatedConfigError: If the config is not JSON or a tensor has no values.

    Example:
        >>> one = model_hash(0, {"w": torch.zeros(2)})
        >>> one == model_hash(0, {"w": torch.zeros(2)}), one == model_hash(1, {"w": torch.zeros(2)})
        (True, False)
    """
    try:
        text = json.dumps(dict(config or {}), sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise FederatedConfigError(f"Expected a `config` of JSON values but got {error}: convert it.") from None
    digest = hashlib.sha256(join(LABEL, U64.pack(round_idx), text.encode()))
    for section, tensors in (("parameter", parameters), ("buffer", buffers or {})):
        digest.update(U64.pack(len(tensors)))
        for part in canonical_bytes(section, tensors):
            digest.update(part)
    return digest.digest()


def module_hash(round_idx: int, module: nn.Module, config: Mapping[str, Any] | None = None) -> bytes:
    """Return `model_hash` of a module with all its parameters and buffers, shared ones under each of their names."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    return model_hash(round_idx, parameters, dict(module.named_buffers(remove_duplicate=False)), config)


class HashEcho:
    """One client's part in comparing the received models before anything is sent.

    Every client gives its signed `message` to the server, which hands all of them to all; `check` refuses the round if
    one differs. A server can withhold messages but not change them.

    Args:
        client_id: Who it is.
        identity: Its Ed25519 key; the public part is in the roster.
        session: The sum that is going on.
        round_idx: The round, from 0.
        digest: `model_hash` of the model that this client received.
    """

    def __init__(
        self, client_id: int, identity: Ed25519PrivateKey, session: Session, round_idx: int, digest: bytes
    ) -> None:
        self.client_id, self.session, self.round_idx, self.digest = client_id, session, round_idx, digest
        self._identity = identity

    def message(self) -> bytes:
        """Return the signed hash."""
        body = U64.pack(self.round_idx) + hashlib.sha256(self.digest).digest()
        return seal(Kind.HASH_ECHO, body, self.client_id, SERVER_ID, self._identity, self.session)

    def check(self, messages: Iterable[bytes]) -> tuple[int, ...]:
        """Return the clients that echoed the same hash, this one among them.

        Raises:
            ModelMismatchError: If a client received another model, or the model of another round.
            TooFewSurvivorsError: If fewer clients than the threshold echoed.
            ProtocolError: If a message is forged, malformed, or of another session.
        """
        found: dict[int, tuple[int, bytes]] = {}
        for data in messages:
            frame = open_frame(data, SERVER_ID, self.session)
            expect(frame, Kind.HASH_ECHO)
            if frame.sender in found:
                raise MembershipError(f"Expected one echo of each client but got two of client {frame.sender}.")
            reader = Reader(frame.body)
            found[frame.sender] = reader.integer(), reader.take(HASH_BYTES)
            reader.finish()
        own = self.round_idx, hashlib.sha256(self.digest).digest()
        if other := tuple(sorted(who for who, echo in found.items() if echo != own)):
            raise ModelMismatchError(self.round_idx, other, self.client_id)
        same = {*found, self.client_id}
        if len(same) < self.session.threshold:
            raise TooFewSurvivorsError(
                f"Expected echoes of at least {self.session.threshold} clients in round {self.round_idx} but got "
                f"{len(same)}: nothing is sent; start a new round."
            )
        return tuple(sorted(same))
