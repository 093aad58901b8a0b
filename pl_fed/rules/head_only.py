"""A control: the adapter stays as it was made (zero), and only what is trained beside it, a head, is averaged.

It tells what the frozen base model gives by itself under the same federation: FedAvg (Brendan McMahan et al.,
"Communication-efficient Learning of Deep Networks", AISTATS 2017, arXiv 1602.05629) of the head.
"""

from pl_fed.rules.base import Rule
from pl_fed.updates import AdapterState, Broadcast, Slots


class HeadOnly(Rule):
    """Clients train no low-rank part; the server averages the dense tensors by examples. No bytes of the adapter."""

    source = "control"
    up, down = "0", "0"
    exact = True

    def sides(self, round_idx: int) -> frozenset[str]:
        """Nothing of the adapter."""
        return frozenset()

    def broadcast(self, server: AdapterState, slots: Slots, sides: frozenset[str] = frozenset()) -> Broadcast:
        """Return the dense tensors: the adapter is zero, which clients know."""
        return super().broadcast(server, slots, frozenset())
