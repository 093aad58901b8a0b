"""How much a slot carries and how many slots are kept: the arithmetic of rank pruning.

The energy rule is derived; smoothing and the cubic schedule are those of Qingru Zhang et al., "AdaLoRA", ICLR 2023,
arXiv 2303.10512, eqs. 8-12.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor


def slot_energy(
    a: Float[Tensor, "rank d_in"], b: Float[Tensor, "d_out rank"], diagonal: Float[Tensor, " rank"] | None = None
) -> Float[Tensor, " rank"]:
    """Return the Frobenius norm of each rank-1 term ``lam_i b_i a_i^T``."""
    energy: Tensor = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=0)
    return energy if diagonal is None else energy * diagonal.abs()


def slots_to_keep(
    importance: Float[Tensor, " active"],
    eta: float = 0.99,
    min_rank: int = 1,
    max_share: float = 0.25,
    budget: int | None = None,
) -> Int[Tensor, " kept"]:
    """Return the positions of the slots to keep, ascending.

    Args:
        importance: Importance of each active slot.
        eta: Keep the fewest slots that hold this share of the summed squares.
        min_rank: Keep at least so many.
        max_share: Drop at most this share of the active slots.
        budget: Keep so many instead of the share `eta`; one slot may go towards it however few there are.

    Example:
        >>> slots_to_keep(torch.tensor([3.0, 0.1, 2.0, 0.1]))  # 0.75 of four slots may not go below three
        tensor([0, 1, 2])
    """
    active = importance.numel()
    order = torch.argsort(importance, descending=True, stable=True)
    squares = importance[order].double().square()
    if budget is not None:
        wanted = budget
    elif float(squares.sum()) == 0.0:
        wanted = active  # nothing was learned yet: no slot is less important than another
    else:
        share = torch.cumsum(squares, 0) / squares.sum()
        wanted = int((share < eta - 1e-12).sum()) + 1
    most = math.floor(max_share * active + 1e-9)
    if budget is not None and max_share > 0:
        most = max(1, most)  # three slots would else never become two
    least = max(min_rank, active - most)
    return torch.sort(order[: min(active, max(wanted, least))]).values


def cubic_budget(start: int, target: int, progress: float) -> int:
    """Return AdaLoRA's budget between `start` and `target` slots at `progress` in [0, 1]."""
    return math.ceil(target + (start - target) * (1 - min(1.0, max(0.0, progress))) ** 3)


def smooth(state: tuple[Tensor, Tensor] | None, score: Tensor, beta: float = 0.85) -> tuple[Tensor, Tensor]:
    """Return the running mean and uncertainty of every entry's ``|p * grad|`` (AdaLoRA, eqs. 9 and 10)."""
    mean, uncertainty = state or (torch.zeros_like(score), torch.zeros_like(score))
    mean = beta * mean + (1 - beta) * score
    return mean, beta * uncertainty + (1 - beta) * (score - mean).abs()
