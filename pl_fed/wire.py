"""Puts broadcasts and updates through a codec: what arrives, and the bytes that were really sent.

A factor A that a rule never trains is sent in full precision, so that it is bit-identical on every client. Slot ids
travel as int16, with rules that need them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pl_fed.codecs import Codec, CodecName, check_codec, make_codec, payload_bytes
from pl_fed.updates import Broadcast, LayerSlots, Update

SLOT_ID_BYTES = 2


@dataclass(frozen=True)
class Codecs:
    """Formats on the wire.

    Args:
        up: Format of updates.
        down: Format of broadcasts.
    """

    up: CodecName = "float32"
    down: CodecName = "float32"

    def __post_init__(self) -> None:
        """Check the names."""
        check_codec(self.up)
        check_codec(self.down)


class Wire:
    """One direction of one client's link.

    Args:
        codec: Name of the format.
        generator: Source of the codec's rounding noise; None for a codec without.
        sends_slots: Whether slot ids travel.
        exact_a: Whether A is sent in full precision whatever the format.
    """

    def __init__(self, codec: CodecName, generator: torch.Generator | None, sends_slots: bool, exact_a: bool) -> None:
        self.codec, self.generator, self.sends_slots = make_codec(codec), generator, sends_slots
        self.codec_a = make_codec("float32") if exact_a else self.codec
        self.num_bytes = 0

    def broadcast(self, message: Broadcast) -> Broadcast:
        """Return the broadcast as it arrives."""
        return Broadcast(self._layers(message.layers), self._dense(message.dense))

    def update(self, message: Update) -> Update:
        """Return the update as it arrives."""
        layers, dense = self._layers(message.layers), self._dense(message.dense)
        control = None if message.control is None else self.update(message.control)
        return Update(message.client_id, message.num_examples, layers, dense, control)

    def _layers(self, layers: dict[str, LayerSlots]) -> dict[str, LayerSlots]:
        arrived = {}
        for name, part in layers.items():
            a = None if part.a is None else self._send(part.a, 0, self.codec_a)
            b = None if part.b is None else self._send(part.b, 1, self.codec)
            sent = part.a is not None or part.b is not None
            self.num_bytes += SLOT_ID_BYTES * part.rank if self.sends_slots and sent else 0
            arrived[name] = LayerSlots(part.slots, a, b)
        return arrived

    def _dense(self, dense: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: self._send(value, None, self.codec) for name, value in dense.items()}

    def _send(self, value: Tensor, rank_dim: int | None, codec: Codec) -> Tensor:
        payload = codec.encode(value, rank_dim, self.generator)
        self.num_bytes += payload_bytes(payload)
        return codec.decode(payload, value.dtype)
