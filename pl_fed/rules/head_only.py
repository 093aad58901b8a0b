"""A control: the adapter stays as it was made (zero), and only what is trained beside it, a head, is averaged.

It tells what the frozen base model gives by itself under the same federation: FedAvg (Brendan McMahan et al.,
"Communication-efficient Learning of Deep Networks", AISTATS 2017, arXiv 1602.05629) of the head.
"""

from pl_fed.rules.base import Rule


class HeadOnly(Rule):
    """Clients train no low-rank part; the server averages the dense tensors by examples."""

    def sides(self, round_idx: int) -> frozenset[str]:
        """Nothing of the adapter."""
        return frozenset()
