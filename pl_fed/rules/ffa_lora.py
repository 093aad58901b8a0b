"""FFA-LoRA: freeze A at its start, average B.

Youbang Sun et al., "Improving LoRA in Privacy-preserving Federated Learning", ICLR 2024, arXiv 2403.12313.
With A shared and fixed, the mean of B is the mean of the products: aggregation is exact. Unequal ranks are not part of
the paper: here a slot that a client does not hold gets no change from it.
"""

from pl_fed.rules.base import Rule


class FFALoRA(Rule):
    """Clients train B only; A stays as it was initialised. Upload and download r d_out."""

    source = "arXiv 2403.12313"
    up, down = "r d_out", "r d_out"
    exact = True

    def sides(self, round_idx: int) -> frozenset[str]:
        """B only."""
        return frozenset({"b"})
