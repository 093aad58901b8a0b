"""HetLoRA: zero-pad unequal ranks, weight clients by the norm of their product, let clients prune their own ranks.

Yae Jee Cho et al., "Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models", EMNLP 2024, arXiv
2401.06432, Algorithm 1. A and B are averaged apart, so the aggregate is inexact; a slot that only some clients hold is
averaged with zeros for the others.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pl_fed.errors import FederatedConfigError
from pl_fed.rules.base import Rule, TrainedLayer, Weights, add_dense, example_shares
from pl_fed.rules.factors import client_factors
from pl_fed.rules.robust import RobustMean
from pl_fed.updates import AdapterState, LayerState, Slots, Update, scatter_columns, scatter_rows


class HetLoRA(Rule):
    """Clients hold the first r_k slots of A and B. Up and down r_k (d_in + d_out).

    Args:
        gamma: A client may shrink a layer to this share of its slots in a round.
        penalty: Factor of ``|B_tail| |A_tail|``, the norms of the slots beyond that share, in the clients' loss.
        self_pruning: Drop the tail after local training if the product of its norms has become smaller.
        min_rank: Fewest slots of a layer.
        mean: Refused: the rule does not average.
    """

    source = "arXiv 2401.06432"
    up, down = "r_k D", "r_k D"
    heterogeneous, sums_only, averages = True, False, False
    why_not_averages = "it weights clients by the norm of their product"

    def __init__(
        self,
        gamma: float = 0.99,
        penalty: float = 5e-3,
        self_pruning: bool = True,
        min_rank: int = 1,
        mean: RobustMean | None = None,
    ) -> None:
        super().__init__(mean)
        if not 0 < gamma <= 1:
            raise FederatedConfigError(f"Expected `gamma` of HetLoRA in (0, 1] but got {gamma}.")
        if not penalty >= 0 or min_rank < 1:
            raise FederatedConfigError(
                f"Expected `penalty` >= 0 and `min_rank` >= 1 of HetLoRA but got {penalty} and {min_rank}."
            )
        self.gamma, self.penalty, self.self_pruning, self.min_rank = gamma, penalty, self_pruning, min_rank

    def sides(self, round_idx: int) -> frozenset[str]:
        """Both factors."""
        return frozenset({"a", "b"})

    def _kept(self, rank: int) -> int:
        """Return the slots that are not in the tail, of `rank`."""
        return max(min(rank, self.min_rank), int(self.gamma * rank + 1e-9))

    @property
    def has_penalty(self) -> bool:
        """Whether clients train with the penalty."""
        return self.penalty > 0

    @torch.no_grad()
    def add_penalty(self, layers: Mapping[str, TrainedLayer]) -> None:
        """Add the gradient of ``penalty * |B_tail| |A_tail|`` (Frobenius norms) in each layer."""
        for layer in layers.values():
            tail = layer.slots[self._kept(len(layer.slots)) :]
            a, b = layer.a[tail], layer.b[:, tail]
            norm_a, norm_b = torch.linalg.vector_norm(a), torch.linalg.vector_norm(b)
            if not len(tail) or norm_a == 0:
                continue
            if layer.a.grad is not None:
                layer.a.grad[tail] += self.penalty * norm_b * a / norm_a
            if layer.b.grad is not None and norm_b > 0:  # at zero the norm has the subgradient 0
                layer.b.grad[:, tail] += self.penalty * norm_a * b / norm_b

    def prune(self, before: AdapterState, after: AdapterState, slots: Slots) -> Slots:
        """Drop each layer's tail where the product of its norms has become smaller than it was broadcast."""
        if not self.self_pruning:
            return slots
        kept = {}
        for name, ids in slots.items():
            head = self._kept(len(ids))
            smaller = _tail_norm(after.layers[name], ids[head:]) < _tail_norm(before.layers[name], ids[head:])
            kept[name] = ids[:head] if smaller else ids
        return kept

    def weights(self, server: AdapterState, updates: Sequence[Update]) -> Weights:
        """Return ``|B_k A_k| / sum_j |B_j A_j|`` by layer (Frobenius norms); dense tensors are weighted by examples."""
        shares = example_shares(updates)
        weights: dict[str, list[float]] = {"": shares}
        for name, layer in server.layers.items():
            norms = []
            for update in updates:
                a, b = client_factors(layer, update.layers[name])
                norms.append(float(torch.linalg.matrix_norm(b @ a)))
            total = sum(norms)
            weights[name] = [norm / total for norm in norms] if total > 0 else shares
        return weights

    def aggregate(self, server: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the weighted sums of the clients' zero-padded factors."""
        weights = self.weights(server, updates)
        layers = {}
        for name, layer in server.layers.items():
            rank = layer.a.shape[0]
            a, b = torch.zeros_like(layer.a), torch.zeros_like(layer.b)
            for update, weight in zip(updates, weights[name], strict=True):
                own_a, own_b = client_factors(layer, update.layers[name])
                a.add_(scatter_rows(own_a, update.layers[name].slots, rank), alpha=weight)
                b.add_(scatter_columns(own_b, update.layers[name].slots, rank), alpha=weight)
            layers[name] = LayerState(a, b)
        return AdapterState(layers, add_dense(server, updates, weights[""]), server.merged)


def _tail_norm(layer: LayerState, tail: Tensor) -> float:
    return float(torch.linalg.vector_norm(layer.a[tail]) * torch.linalg.vector_norm(layer.b[:, tail]))
