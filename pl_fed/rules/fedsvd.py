"""FedSVD: average B with A shared, then take the next A and B from the singular value decomposition of their product.

Seanie Lee et al., "FedSVD: Adaptive Orthogonalization for Private Federated Learning with LoRA", NeurIPS 2025, arXiv
2505.12805. Exact: the decomposition leaves the product as it is. Unequal ranks are not part of the paper: here a client
of rank r holds the first r slots, the best part of that rank.
"""

import torch

from pl_fed.rules.base import Rule
from pl_fed.rules.factors import principal_factors
from pl_fed.updates import AdapterState, LayerState


class FedSVD(Rule):
    """Clients train B; the server averages it and rotates A and B. Up r d_out, down r (d_in + d_out)."""

    source = "arXiv 2505.12805"
    up, down = "r d_out", "r D"
    exact, rotates = True, True

    def sides(self, round_idx: int) -> frozenset[str]:
        """B only."""
        return frozenset({"b"})

    def renew(self, server: AdapterState, generator: torch.Generator) -> AdapterState:
        """Return A with orthonormal rows and ``B = U S``, of the same product."""
        return refactored(server)


def refactored(server: AdapterState) -> AdapterState:
    """Return the same products in the basis of their singular vectors, strongest slot first; zero products stay."""
    layers = {}
    for name, layer in server.layers.items():
        factors = principal_factors(layer.a, layer.b, layer.a.shape[0], layer.a) if bool(layer.b.any()) else None
        layers[name] = LayerState(*factors) if factors is not None else layer
    return AdapterState(layers, server.dense, server.merged)
