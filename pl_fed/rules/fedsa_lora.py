"""FedSA-LoRA: share A, let each client keep its B.

Pengxin Guo et al., "Selective Aggregation for Low-Rank Adaptation in Federated Learning", ICLR 2025, arXiv 2410.01463.
The models are personalised: there is no global one, so only per-client figures may be compared. Unequal ranks are not
part of the paper: here a slot that a client does not hold gets no change from it.
"""

from pl_fed.rules.base import Rule
from pl_fed.rules.robust import RobustMean


class FedSALoRA(Rule):
    """Clients train A and B; the server averages A. Up and down r d_in.

    Args:
        keep_head: Dense tensors (a classification head) also stay on the client.
        mean: A robust mean in place of the weighted one.
    """

    source = "arXiv 2410.01463"
    up, down = "r d_in", "r d_in"

    def __init__(self, keep_head: bool = True, mean: RobustMean | None = None) -> None:
        super().__init__(mean)
        self.keep_head = keep_head
        self.keeps = frozenset({"b", "dense"} if keep_head else {"b"})

    def sides(self, round_idx: int) -> frozenset[str]:
        """Both factors; only A is sent."""
        return frozenset({"a", "b"})
