"""Takes the sum of the clients' head gradients apart again, by the known embeddings.

Derived: with one embedding e_m for all samples of model m, the sum is G^W = sum_m Gamma_m e_m^T, G^b = sum_m Gamma_m,
that is ``[E | 1]^T Gamma = [G^W | G^b]^T``. Clients with the same model share one Gamma; a client alone with its model
is separated. Surplus clients share the model of bias 0: where that gives embedding 0, their rows only absorb what the
bias row adds, which is the same as leaving the bias row out.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

RELATIVE_RANK = 1e-6  # of the largest singular value; embeddings were computed in float32


@dataclass(frozen=True)
class LinearSystem:
    """The pseudo-inverse of ``[E | 1]^T`` and what it can tell apart.

    Args:
        inverse: The pseudo-inverse.
        rank: Rank of ``[E | 1]``.
        condition: Largest over smallest singular value; infinite if more models than the rank
            have an embedding other than 0.
        identifiable: Which models' Gamma the sum determines.
        has_bias: Whether there is a column of ones.
    """

    inverse: Float[Tensor, "models equations"]
    rank: int
    condition: float
    identifiable: Bool[Tensor, " models"]
    has_bias: bool

    def solve(
        self, weight: Float[Tensor, "classes features"], bias: Float[Tensor, " classes"] | None
    ) -> Float[Tensor, "models classes"]:
        """Return Gamma, the least-squares solution of least norm."""
        right = weight.T if bias is None or not self.has_bias else torch.cat([weight.T, bias[None]])
        return self.inverse @ right.double()


def linear_system(embeddings: Float[Tensor, "models features"], has_bias: bool = True) -> LinearSystem:
    """Decompose ``[E | 1]`` in float64.

    Args:
        embeddings: One row for each different model that was sent.
        has_bias: Whether the final layer sends a bias gradient.

    Example:
        >>> system = linear_system(torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 0.0]]))
        >>> system.rank, system.identifiable.tolist()
        (3, [True, True, True])
    """
    columns = [embeddings.double()] + [torch.ones(len(embeddings), 1, dtype=torch.float64)] * has_bias
    matrix = torch.cat(columns, 1)  # (models, equations)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    keep = s > RELATIVE_RANK * s[0].clamp(min=1e-300)
    rank = int(keep.sum())
    u, s, vh = u[:, keep], s[keep], vh[keep]
    told = int((matrix.norm(dim=1) > RELATIVE_RANK * s[0]).sum())  # an embedding of 0 adds nothing to any sum
    condition = float(s[0] / s[-1]) if rank == told else float("inf")
    projector = u.square().sum(1)  # the diagonal of the resolution matrix: 1 where the sum determines the row
    return LinearSystem(u @ (vh / s[:, None]), rank, condition, projector > 1 - 1e-6, has_bias)
