"""FedEx-LoRA: average A and B, and add what the average misses to the base model.

Raghav Singhal et al., "FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of Foundation Models", ACL
2025, arXiv 2410.09432, eqs. 9-13. Unequal ranks are not part of the paper: here a slot that a client does not hold gets
no change from it.
"""

from collections.abc import Sequence

from pl_fed.rules.base import Rule, add_updates
from pl_fed.rules.factors import dense_update
from pl_fed.updates import AdapterState, Update


class FedExLoRA(Rule):
    """Clients train A and B. Up r D; down r D and the residual: a stack of all factors, or dense if smaller."""

    source = "arXiv 2410.09432"
    up, down = "r D", "r D + residual"
    exact, sums_only, averages, merges = True, False, False, True
    why_not_averages = "the residual corrects the plain mean"

    def sides(self, round_idx: int) -> frozenset[str]:
        """Both factors."""
        return frozenset({"a", "b"})

    def aggregate(self, server: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the mean factors, and the residual ``mean(B_k A_k) - B A`` on top of what is merged."""
        weights = self.weights(server, updates)
        result = add_updates(server, updates, weights)
        merged = {}
        for name, old in server.layers.items():
            wanted = old.b @ old.a + dense_update(old, [update.layers[name] for update in updates], weights[name])
            merged[name] = server.merged[name] + wanted - result.layers[name].b @ result.layers[name].a
        return AdapterState(result.layers, result.dense, merged)
