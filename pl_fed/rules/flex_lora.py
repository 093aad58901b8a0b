"""FlexLoRA: average the dense products, decompose the mean, give every client the part of its rank.

Jiamu Bai et al., "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client Resources",
NeurIPS 2024, arXiv 2402.11505, Algorithm 1. Exact up to the cut to the server's rank.
"""

from collections.abc import Sequence

from pl_fed.rules.base import Rule, add_dense
from pl_fed.rules.factors import principal_factors, stacked
from pl_fed.updates import AdapterState, LayerState, Update


class FlexLoRA(Rule):
    """Clients train the first r_k slots of A and B, the best part of their rank. Up and down r_k (d_in + d_out)."""

    source = "arXiv 2402.11505"
    up, down = "r_k D", "r_k D"
    heterogeneous, sums_only, averages, rotates = True, False, False, True
    why_not_averages = "it decomposes the sum of the clients' products"

    def sides(self, round_idx: int) -> frozenset[str]:
        """Both factors."""
        return frozenset({"a", "b"})

    def aggregate(self, server: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the best factors of the server's rank for ``sum_k p_k B_k A_k``."""
        weights = self.weights(server, updates)
        layers = {}
        for name, layer in server.layers.items():
            a, b = stacked(layer, [update.layers[name] for update in updates], weights[name])
            layers[name] = LayerState(*principal_factors(a, b, layer.a.shape[0], layer.a))
        return AdapterState(layers, add_dense(server, updates, weights[""]), server.merged)
