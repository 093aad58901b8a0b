"""RoLoRA: train and average B in one round and A in the next, so that each average is exact.

Shuangyi Chen et al., "Robust Federated Finetuning of LLMs via Alternating Optimization of LoRA", NeurIPS 2025, arXiv
2502.01755, Algorithm 1. Unequal ranks are not part of the paper: here a slot that a client does not hold gets no change
from it.
"""

from pl_fed.rules.base import Rule


class RoLoRA(Rule):
    """B in the first round, A in the second, and so on. Up and down r d_out and r d_in in turn."""

    source = "arXiv 2502.01755"
    up, down = "r d_out, r d_in in turn", "r d_in, r d_out in turn"
    exact = True

    def sides(self, round_idx: int) -> frozenset[str]:
        """One factor."""
        return frozenset({"a"} if round_idx % 2 else {"b"})

    def optimizer_sides(self) -> frozenset[str]:
        """Both factors, over the rounds."""
        return frozenset({"a", "b"})
