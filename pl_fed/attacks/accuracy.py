"""How much of a client's labels an attack found: label accuracy and exact matches."""

from jaxtyping import Bool, Float, Int
from torch import Tensor


def label_accuracy(
    recovered: Int[Tensor, "clients classes"], true: Int[Tensor, "clients classes"]
) -> Float[Tensor, " clients"]:
    r"""Return the share of each client's labels that were named.

    .. math:: 1 - \tfrac12 \lVert \hat n - n \rVert_1 / B

    Always to be read beside what guessing gives.

    Args:
        recovered: Recovered label counts.
        true: True label counts, which sum to B.

    Example:
        >>> import torch
        >>> label_accuracy(torch.tensor([[3, 1]]), torch.tensor([[2, 2]]))
        tensor([0.7500], dtype=torch.float64)
    """
    wrong = (recovered - true).abs().sum(1).double() / 2
    return 1 - wrong / true.sum(1).clamp(min=1)


def exact_match(
    recovered: Int[Tensor, "clients classes"], true: Int[Tensor, "clients classes"]
) -> Bool[Tensor, " clients"]:
    """Return for which clients every count is right."""
    return (recovered == true).all(1)
