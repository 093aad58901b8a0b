"""Who is sent which crafted model, in as many rounds as it takes to separate everybody.

Derived. What can be told apart is the rank of the embeddings (with a column of ones, if the final layer has a bias),
not the number of biases that can be chosen: a narrow layer between the cut norm and the final one lowers it. Of models
that are not independent, those are kept that a pivoted Gram-Schmidt orthogonalisation picks, which are also well
conditioned; the clients that they do not suffice for share the model of bias 0 and have their turn in another round.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pl_fed.attacks.cut_norm import Forward, Target
from pl_fed.attacks.disaggregate import linear_system
from pl_fed.attacks.fishing import FishingModels, choose_betas, make_models, plan_rounds

SMALLEST_PIVOT = 1e-3  # relative to the largest; what is less independent drowns in the rounding of a fixed-point sum


def aim(
    module: nn.Module, target: Target, forward: Forward, num_clients: int, scale: float = 1.0, moving: bool = False
) -> tuple[FishingModels, list[Int[Tensor, " clients"]]]:
    """Return crafted models, and for each round which of them every client is sent.

    Args:
        module: The module; it comes back as it was.
        target: Where it is fished.
        forward: Runs the module on a batch.
        num_clients: Number of clients to separate.
        scale: Size of the embeddings.
        moving: As in `make_models`.
    """
    width, has_bias = target.width, target.head_bias is not None
    betas = choose_betas(min(num_clients, width + 1), width, scale)
    models = make_models(module, target, betas, forward, moving)
    if bool(linear_system(models.embeddings, has_bias).identifiable.all()):
        return models, plan_rounds(num_clients, width)
    if len(betas) <= width:  # the model of bias 0 is not among them
        betas = torch.cat([betas, torch.zeros(1, width, dtype=betas.dtype)])
        models = make_models(module, target, betas, forward, moving)
    ones = torch.ones(len(betas), int(has_bias), dtype=torch.float64)
    rows = torch.cat([models.embeddings, ones], 1)  # (models, equations)
    chosen = independent_rows(rows[:-1], rows[-1])
    last_is_told = bool(rows[-1].any())
    return models.at([*chosen, len(betas) - 1]), plan_rounds(num_clients, len(chosen), last_is_told)


def independent_rows(rows: Float[Tensor, "rows columns"], beside: Float[Tensor, " columns"]) -> list[int]:
    """Return which rows are independent of each other and of one more row, the most independent first; at least one.

    Example:
        >>> independent_rows(torch.tensor([[1.0, 0.0], [2.0, 0.0], [1.0, 3.0]]), torch.zeros(2))
        [2, 1]
    """
    left, found, largest = _without(rows.double(), beside.double()), list[int](), 0.0
    for _ in range(len(rows)):
        sizes = left.norm(dim=1)
        best = int(sizes.argmax())
        largest = largest or float(sizes[best])
        if found and float(sizes[best]) <= SMALLEST_PIVOT * largest:
            break
        found.append(best)
        left = _without(left, left[best])
    return found


def _without(
    rows: Float[Tensor, "rows columns"], direction: Float[Tensor, " columns"]
) -> Float[Tensor, "rows columns"]:
    """Return what is left of the rows beside a direction."""
    size = float(direction.norm())
    return rows - torch.outer(rows @ direction, direction) / size**2 if size > 0 else rows
