"""FedIT: average A and B separately.

Jianyi Zhang et al., "Towards Building the Federated GPT: Federated Instruction Tuning", ICASSP 2024, arXiv 2305.05644.
The mean of products is not the product of means, so the aggregate is inexact. Unequal ranks are not part of the paper:
here a slot that a client does not hold gets no change from it.
"""

from pl_fed.rules.base import Rule


class FedIT(Rule):
    """Clients train A and B; the server adds the example-weighted mean of each. Up and down r (d_in + d_out)."""

    source = "arXiv 2305.05644"
    up, down = "r D", "r D"

    def sides(self, round_idx: int) -> frozenset[str]:
        """Both factors."""
        return frozenset({"a", "b"})
