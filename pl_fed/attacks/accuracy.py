"""How much of a client's labels an attack found: label accuracy and exact matches."""

from jaxtyping import Bool, Float, Int
from torch import Tensor


def label_accuracy(
    recovered: Int[Tensor, "clients classes"], true: Int[Tensor, "clients classes"]
) -> Float[Tensor, " clients"]:
    r"""Return the share of each client's labels that were named.

    .. math:: 1 - \lVert \hat n - n \rVert_1 / (\hat B + B)

    Here B and its estimate are the sums of the counts. They are equal where every sample has one label; with several
    labels a sample, both what was missed and what was invented lower the share, and it stays in [0, 1]. Always to be
    read beside what guessing gives.

    Args:
        recovered: Recovered label counts, 0 or more.
        true: True label counts.

    Example:
        >>> import torch
        >>> label_accuracy(torch.tensor([[3, 1]]), torch.tensor([[2, 2]]))
        tensor([0.7500], dtype=torch.float64)
    """
    wrong = (recovered - true).abs().sum(1).double()
    return 1 - wrong / (recovered.sum(1) + true.sum(1)).clamp(min=1)


def exact_match(
    recovered: Int[Tensor, "clients classes"], true: Int[Tensor, "clients classes"]
) -> Bool[Tensor, " clients"]:
    """Return for which clients every count is right."""
    return (recovered == true).all(1)
