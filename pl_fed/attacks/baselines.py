"""What can be said of the clients without crafted models: guesses, and published estimates from the aggregate alone.

LLG: Aidmar Wainakh et al., "User-Level Label Leakage from Gradients in Federated Learning", PoPETs 2022(2), arXiv
2105.09369 (impact from the shared gradient alone, no offset). iLRG: Kailang Ma et al., "Instance-wise Batch Label
Restoration via Gradients in Federated Learning", ICLR 2023. Both name the labels of a whole batch; here the batch is
the whole cohort, and every client is given the estimated mix. The code is our own.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pl_fed.attacks.counts import largest_remainder
from pl_fed.attacks.observation import HeadUpdate


def spread_mix(mix: Float[Tensor, " classes"], batch_sizes: Int[Tensor, " clients"]) -> Int[Tensor, "clients classes"]:
    """Give every client the same label mix, in whole numbers.

    Example:
        >>> spread_mix(torch.tensor([0.5, 0.5]), torch.tensor([2, 4]))
        tensor([[1, 1],
                [2, 2]])
    """
    return torch.stack([largest_remainder(mix, int(size)) for size in batch_sizes])


def guess(
    num_classes: int, batch_sizes: Int[Tensor, " clients"], prior: Float[Tensor, " classes"] | None = None
) -> Int[Tensor, "clients classes"]:
    """Return the prior mix for every client; uniform if none is known."""
    return spread_mix(torch.ones(num_classes) if prior is None else prior, batch_sizes)


def llg(gradient: HeadUpdate, num_labels: int) -> Float[Tensor, " classes"]:
    """Return the label counts that LLG reads from the mean gradient of a batch.

    The summed gradient of a class's weights is negative where the class has labels; every label lowers it by about the
    same impact, m = (1 + 1/C) / B times the sum of the negative ones. One label for each such
    class, then one at a time to the class whose gradient is lowest, which each time is raised by the impact.

    Args:
        gradient: Mean gradient of the final layer.
        num_labels: Number of labels B.
    """
    g = gradient.weight.double().sum(1)  # (classes,)
    present = g < 0
    impact = float(g[present].sum()) * (1 + 1 / len(g)) / num_labels
    counts = present.double()
    if impact == 0.0:
        return torch.full_like(g, num_labels / len(g))
    g = torch.where(present, g - impact, g)
    for _ in range(num_labels - int(counts.sum())):
        lowest = g.argmin()
        counts[lowest] += 1
        g[lowest] -= impact
    return counts


def ilrg(
    gradient: HeadUpdate,
    head_weight: Float[Tensor, "classes features"],
    head_bias: Float[Tensor, " classes"],
    num_labels: int,
) -> Float[Tensor, " classes"]:
    """Return the label counts that iLRG solves for, not rounded.

    The mean embedding of a class is estimated as its weight gradient over its bias gradient, its probabilities from
    that; then sum_j n_j p^(j) - n = B g and sum n = B are solved by the pseudo-inverse.

    Args:
        gradient: Mean gradient of the final layer, with bias.
        head_weight: The final layer's weight.
        head_bias: Its bias.
        num_labels: Number of labels B.
    """
    assert gradient.bias is not None
    g = gradient.bias.double()
    safe = torch.where(g.abs() < 1e-12, torch.full_like(g, 1e-12), g)
    embeddings = gradient.weight.double() / safe[:, None]  # (classes, features)
    p = torch.softmax(embeddings @ head_weight.double().T + head_bias.double(), 1)
    ones = torch.ones(1, len(g), dtype=torch.float64)
    matrix = torch.cat([ones, p.T - torch.eye(len(g), dtype=torch.float64)])  # (1 + classes, classes)
    right = num_labels * torch.cat([torch.ones(1, dtype=torch.float64), g])
    counts: Tensor = torch.linalg.pinv(matrix) @ right
    return counts.clamp(min=0)


def mean_gradient(update: HeadUpdate, total: float, num_clients: float) -> HeadUpdate:
    """Return the mean gradient of a cohort from the sum of its updates.

    Args:
        update: Sum of the clients' head updates.
        total: How far a constant gradient of 1 moves a parameter in the local training (`LocalSteps.total`).
        num_clients: Sum of the clients' weights.
    """
    scale = -1.0 / (total * num_clients)
    return HeadUpdate(update.weight.double() * scale, None if update.bias is None else update.bias.double() * scale)
