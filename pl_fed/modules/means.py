"""Weighted means as TorchMetrics: over everything, and for each client."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class WeightedMean(Metric):
    """Weighted mean in which a value that is not a number shows.

    `torchmetrics.MeanMetric` leaves such values out, or forgets the weights when told not to (seen in 1.9).

    Example:
        >>> mean = WeightedMean()
        >>> mean.update(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0]))
        >>> mean.compute()
        tensor(1.7500)
    """

    full_state_update = False
    higher_is_better = None
    total: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "weight"):
            # the default type is narrow while a step runs with `precision="bf16-true"`
            self.add_state(name, torch.zeros((), dtype=torch.float32), dist_reduce_fx="sum")

    def update(self, values: Float[Tensor, " batch"], weights: Float[Tensor, " batch"]) -> None:
        """Add a batch of values and their weights."""
        self.total += (values * weights).sum()
        self.weight += weights.sum()

    def compute(self) -> Tensor:
        """Return the mean."""
        return self.total / self.weight


class ClientMean(Metric):
    """Weighted mean of a figure for each client; examples without a client are left out.

    Example:
        >>> mean = ClientMean()
        >>> mean.update(torch.tensor([1.0, 0.0, 1.0]), torch.ones(3), torch.tensor([7, 7, -1]))
        >>> mean.compute()
        {7: 0.5}
    """

    full_state_update = False
    higher_is_better = None
    client_ids: list[Tensor]
    sums: list[Tensor]
    weights: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("client_ids", "sums", "weights"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(
        self, values: Float[Tensor, " batch"], weights: Float[Tensor, " batch"], client_ids: Int[Tensor, " batch"]
    ) -> None:
        """Add a batch.

        Args:
            values: One figure for each example.
            weights: Its weight, for example the number of tokens.
            client_ids: Who holds the example; negative for nobody.
        """
        held = client_ids >= 0
        ids, place = client_ids[held].unique(return_inverse=True)
        self.client_ids.append(ids)
        for known, part in ((self.sums, values * weights), (self.weights, weights)):  # of unlike types in float64
            known.append(part.new_zeros(len(ids)).index_add(0, place, part[held]))

    def compute(self) -> dict[int, float]:
        """Return the mean by client, in ascending order of their ids."""
        ids, place = dim_zero_cat(self.client_ids).cpu().unique(return_inverse=True)
        parts = [dim_zero_cat(part).cpu().double() for part in (self.sums, self.weights)]
        sums, weights = (part.new_zeros(len(ids)).index_add(0, place, part) for part in parts)
        pairs = zip(ids.tolist(), sums.tolist(), weights.tolist(), strict=True)
        return {client_id: total / weight for client_id, total, weight in pairs if weight > 0}
