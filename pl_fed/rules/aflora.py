"""AFLoRA: a shared A on the server, B and a learnable diagonal on the clients, rank-aware lossless aggregation.

An implementation of the mechanism that the abstract of arXiv 2505.24773 describes (Yajie Zhou, Xiaoyi Pang, Zhibo
Wang, "AFLoRA: Adaptive Federated Fine-Tuning of Large Language Models with Resource-Aware Low-Rank Adaption", 2025);
the formulas are derived, ours.

A client trains (B, lam) of ``W x + s B diag(lam) A[I] x`` on its active slots I, and sends ``U = B diag(lam)``. The
server keeps A and ``C``, the folded B at full rank; the global model is ``W + s C A``.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from pl_fed.errors import FederatedConfigError
from pl_fed.rules.base import Rule, TrainedLayer, add_dense
from pl_fed.rules.fedsvd import refactored
from pl_fed.rules.robust import RobustMean
from pl_fed.updates import AdapterState, LayerState, Update, scatter_columns


class AFLoRA(Rule):
    """The rule of the house; ranks may differ by client, by layer and by round.

    Args:
        aggregation: How updates of unequal slots are put together, with weights w_k. ``delta``:
            C + sum w_k (U_k - C[:, I_k]), a slot that a client does not hold gets no change from it. ``literal``:
            sum w_k U_k, so a slot that is held by a weight-mass m < 1 shrinks by m every round. ``slot``: the mean
            over the clients that hold the slot.
        rank_weights: In each layer weigh by examples times rank, ``w_k = n_k r_k / sum_j n_j r_j``, instead of by
            examples alone. With unlike data on the clients this drowns those of low rank (docs/comparison.md).
        init: Start of A: ``kaiming`` (as PEFT) or ``orthonormal`` rows.
        train_diagonal: Learn the diagonal; False freezes it at 1.
        diagonal_penalty: Factor mu of the penalty ``mu * mean |lam|`` in the clients' loss.
        refactor: After each aggregation put A and C into the basis of the singular vectors of ``C A`` (ours): the
            global model stays, slots are ordered by strength, and a client of rank r gets the best part of that rank.
            A is then broadcast in every round.
        mean: A robust mean in place of the weighted one, with ``delta``.
    """

    source = "arXiv 2505.24773 (derived)"
    up, down = "r_k d_out", "r_k d_out (A once)"
    exact, heterogeneous = True, True
    sends_slots = True

    def __init__(
        self,
        aggregation: Literal["delta", "literal", "slot"] = "delta",
        rank_weights: bool = False,
        init: Literal["kaiming", "orthonormal"] = "kaiming",
        train_diagonal: bool = True,
        diagonal_penalty: float = 0.0,
        refactor: bool = False,
        mean: RobustMean | None = None,
    ) -> None:
        super().__init__(mean)
        if mean is not None and aggregation != "delta":
            raise FederatedConfigError(f"Expected `aggregation: delta` with a robust `mean` but got `{aggregation}`.")
        if not diagonal_penalty >= 0:
            raise FederatedConfigError(f"Expected `diagonal_penalty` of 0 or more but got {diagonal_penalty}.")
        self.aggregation, self.rank_weights, self.start = aggregation, rank_weights, init
        self.train_diagonal, self.diagonal_penalty = train_diagonal, diagonal_penalty
        self.layer_weights = rank_weights
        self.rotates, self.exact = refactor, aggregation == "delta" and mean is None

    def sides(self, round_idx: int) -> frozenset[str]:
        """B, and the diagonal unless it is frozen."""
        return frozenset({"b", "diagonal"} if self.train_diagonal else {"b"})

    def init(self, server: AdapterState, generator: torch.Generator) -> AdapterState:
        """Give A orthonormal rows when asked to."""
        if self.start == "kaiming":
            return server
        layers = {}
        for name, layer in server.layers.items():
            noise = torch.randn(layer.a.shape[::-1], generator=generator, dtype=torch.float64)  # (d_in, rank)
            if noise.shape[0] < noise.shape[1]:
                raise FederatedConfigError(
                    f"Expected a rank of at most {noise.shape[0]}, the input width of `{name}`, for orthonormal rows "
                    f"but got {noise.shape[1]}: lower `lora.r` or use `init: kaiming`."
                )
            layers[name] = LayerState(torch.linalg.qr(noise).Q.T.to(layer.a), layer.b)
        return AdapterState(layers, server.dense, server.merged)

    def mass(self, server: AdapterState, update: Update, layer: str) -> int:
        """Return n_k, in a layer times r_k if ranks weigh."""
        rank = update.layers[layer].rank if layer and self.rank_weights else 1
        return update.num_examples * rank

    def aggregate(self, server: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the server's adapter after the round; A does not move."""
        if self.aggregation == "delta":
            return super().aggregate(server, updates)
        weights = self.weights(server, updates)
        layers = {
            name: LayerState(layer.a.clone(), self._folded(layer.b, name, updates, weights[name]))
            for name, layer in server.layers.items()
        }
        return AdapterState(layers, add_dense(server, updates, weights[""]), server.merged)

    def _folded(self, c: Tensor, name: str, updates: Sequence[Update], weights: Sequence[float]) -> Tensor:
        """Sum (``literal``) or average by slot (``slot``) the clients' folded B; (d_out, rank)."""
        total, mass = torch.zeros_like(c), c.new_zeros(c.shape[1])
        for update, weight in zip(updates, weights, strict=True):
            part = update.layers[name]
            if part.b is None:
                raise FederatedConfigError(
                    f"Expected an update of B for `{name}` but client {update.client_id} sent none."
                )
            total.add_(scatter_columns(c[:, part.slots] + part.b, part.slots, c.shape[1]), alpha=weight)
            mass.index_add_(0, part.slots, mass.new_full((part.rank,), weight))
        if self.aggregation == "literal":
            return total
        return torch.where(mass > 0, total / mass.clamp_min(torch.finfo(mass.dtype).tiny), c)

    def contribution(self, server: AdapterState, update: Update) -> dict[str, Tensor]:
        """Return the update at the server's rank; ``literal`` adds what was sent, ``slot`` which slots are held."""
        flat = super().contribution(server, update)
        for name, part in update.layers.items():
            c = server.layers[name].b
            if self.aggregation == "literal":
                flat[f"{name}/b"] += scatter_columns(c[:, part.slots], part.slots, c.shape[1]) - c
            elif self.aggregation == "slot":
                flat[f"{name}/held"] = c.new_zeros(c.shape[1]).index_fill_(0, part.slots, 1.0)
        return flat

    def absorb(self, server: AdapterState, mean: Mapping[str, Tensor]) -> AdapterState:
        """Add the mean; ``slot`` divides by the share of the mass that holds the slot."""
        flat = dict(mean)
        for name in server.layers:
            held = flat.pop(f"{name}/held", None)
            if held is not None:
                flat[f"{name}/b"] = torch.where(held > 0, flat[f"{name}/b"] / held.clamp_min(1e-12), 0.0)
        return super().absorb(server, flat)

    def renew(self, server: AdapterState, generator: torch.Generator) -> AdapterState:
        """Refactor, if asked to."""
        return refactored(server) if self.rotates else server

    @property
    def has_penalty(self) -> bool:
        """Whether the diagonal is penalised."""
        return self.diagonal_penalty > 0

    def add_penalty(self, layers: Mapping[str, TrainedLayer]) -> None:
        """Add the gradient of ``mu * mean |lam|`` over the active slots of each layer."""
        for layer in layers.values():
            if layer.diagonal is not None and layer.diagonal.grad is not None:
                share = self.diagonal_penalty / max(1, len(layer.slots))
                layer.diagonal.grad.add_(layer.diagonal.detach().sign(), alpha=share)
