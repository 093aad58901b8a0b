"""FLoRA: stack the clients' factors, merge the product into the base model, start the next round with new ones.

Ziyao Wang et al., "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations",
NeurIPS 2024, arXiv 2409.05976, eqs. 6-8. Exact, also for unequal ranks.
"""

import math
from collections.abc import Sequence

import torch

from pl_fed.rules.base import Rule, add_dense
from pl_fed.rules.factors import dense_update
from pl_fed.updates import AdapterState, LayerState, Update


class FLoRA(Rule):
    """Clients train A and B that are drawn anew each round; the weighted sum of ``B_k A_k`` goes into the base model.

    Up r_k (d_in + d_out); down the stack of all clients, (sum_j r_j) (d_in + d_out), or the dense change if that is
    smaller. The new factors are drawn from the seed on both sides and not sent.
    """

    source = "arXiv 2409.05976"
    up, down = "r_k D", "(sum_j r_j) D"
    exact, heterogeneous, sums_only, averages = True, True, False, False
    merges, reinitialises = True, True
    why_not_averages = "the server stacks every client's factors"

    def sides(self, round_idx: int) -> frozenset[str]:
        """Both factors."""
        return frozenset({"a", "b"})

    def aggregate(self, server: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the server with the weighted mean of the dense updates merged, and the factors as they were."""
        weights = self.weights(server, updates)
        merged = {}
        for name, layer in server.layers.items():
            change = dense_update(layer, [update.layers[name] for update in updates], weights[name])
            merged[name] = server.merged[name] + change
        return AdapterState(dict(server.layers), add_dense(server, updates, weights[""]), merged)

    def renew(self, server: AdapterState, generator: torch.Generator) -> AdapterState:
        """Merge what B and A hold; draw A as PEFT does, uniform in ``+- 1 / sqrt(d_in)``, and set B to zero."""
        layers, merged = {}, {}
        for name, layer in server.layers.items():
            merged[name] = server.merged[name] + layer.b @ layer.a  # zero, unless the server has trained B itself
            noise = torch.rand(layer.a.shape, generator=generator, dtype=torch.float64) * 2 - 1  # (rank, d_in)
            layers[name] = LayerState((noise / math.sqrt(layer.a.shape[1])).to(layer.a), torch.zeros_like(layer.b))
        return AdapterState(layers, server.dense, merged)
