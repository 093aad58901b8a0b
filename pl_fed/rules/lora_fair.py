"""LoRA-FAIR: average A and B, then correct B so that the product fits the mean of the products.

Jieming Bian et al., "LoRA-FAIR: Federated LoRA Fine-Tuning with Aggregation and Initialization Refinement", ICCV 2025,
arXiv 2411.14961, eq. 8. The paper maximises a cosine similarity by gradient steps; here the distance is the Frobenius
norm, whose minimum has a closed form (derived). Unequal ranks: a slot that a client does not hold gets no change from
it.
"""

from collections.abc import Sequence

import torch

from pl_fed.errors import FederatedConfigError
from pl_fed.rules.base import Rule, add_updates
from pl_fed.rules.factors import dense_update
from pl_fed.rules.robust import RobustMean
from pl_fed.updates import AdapterState, LayerState, Update


class LoRAFAIR(Rule):
    """Clients train A and B and start from the mean A and the corrected B. Up and down r (d_in + d_out).

    Args:
        regularization: Factor lambda of ``|dB|^2`` beside ``|mean(B_k A_k) - (B + dB) A|^2``.
        mean: Refused: the rule does not average.
    """

    source = "arXiv 2411.14961"
    up, down = "r D", "r D"
    sums_only, averages = False, False
    why_not_averages = "it fits a correction to the clients' products"

    def __init__(self, regularization: float = 0.01, mean: RobustMean | None = None) -> None:
        super().__init__(mean)
        if not regularization > 0:
            raise FederatedConfigError(f"Expected `regularization` of LoRAFAIR above 0 but got {regularization}.")
        self.regularization = regularization

    def sides(self, round_idx: int) -> frozenset[str]:
        """Both factors."""
        return frozenset({"a", "b"})

    def aggregate(self, server: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the mean A and ``B + R A^T (A A^T + lambda I)^-1`` for the residual R of the means."""
        weights = self.weights(server, updates)
        result = add_updates(server, updates, weights)
        layers = {}
        for name, old in server.layers.items():
            a, b = result.layers[name].a, result.layers[name].b
            wanted = old.b @ old.a + dense_update(old, [update.layers[name] for update in updates], weights[name])
            gram = (a @ a.T).double()
            gram.diagonal().add_(self.regularization)
            correction = torch.linalg.solve(gram, ((wanted - b @ a) @ a.T).double(), left=False)  # (d_out, rank)
            layers[name] = LayerState(a, b + correction.to(b))
        return AdapterState(layers, result.dense, server.merged)
