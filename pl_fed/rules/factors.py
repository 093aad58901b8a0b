"""Products of low-rank factors: what clients change, stacks of factors, and the best factors of a rank."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from pl_fed.updates import LayerSlots, LayerState


def client_factors(layer: LayerState, part: LayerSlots) -> tuple[Tensor, Tensor]:
    """Return a client's own (A, B) on its slots after local training: what it received plus its update."""
    a, b = layer.a[part.slots], layer.b[:, part.slots]
    return a if part.a is None else a + part.a, b if part.b is None else b + part.b


def dense_update(
    layer: LayerState, parts: Sequence[LayerSlots], weights: Sequence[float]
) -> Float[Tensor, "d_out d_in"]:
    """Return ``sum_k w_k (B_k A_k - B[:, I_k] A[I_k])``, the weighted mean of what clients change in ``B A``."""
    total = layer.b.new_zeros(layer.b.shape[0], layer.a.shape[1])
    for part, weight in zip(parts, weights, strict=True):
        a, b = client_factors(layer, part)
        total.add_(b @ a - layer.b[:, part.slots] @ layer.a[part.slots], alpha=weight)
    return total


def stacked(
    layer: LayerState, parts: Sequence[LayerSlots], weights: Sequence[float]
) -> tuple[Float[Tensor, "stack d_in"], Float[Tensor, "d_out stack"]]:
    """Return ``[w_k A_k]`` and ``[B_k]`` of all clients, whose product is the weighted sum of their ``B_k A_k``."""
    factors = [client_factors(layer, part) for part in parts]
    a = torch.cat([weight * a for (a, _), weight in zip(factors, weights, strict=True)])
    return a, torch.cat([b for _, b in factors], dim=1)


def principal_factors(
    a: Float[Tensor, "stack d_in"], b: Float[Tensor, "d_out stack"], rank: int, spare: Float[Tensor, "spare d_in"]
) -> tuple[Float[Tensor, "rank d_in"], Float[Tensor, "d_out rank"]]:
    """Return the best rank-`rank` factors of ``b @ a``: A with orthonormal rows, B = U S, by falling singular value.

    The two thin factors are reduced by QR first, so that the cost is linear in the layer's widths. Slots beyond the
    rank of the product are zero in B; their rows of A are directions of `spare` orthogonal to the others, so that they
    can learn.

    Args:
        a: Right factor.
        b: Left factor.
        rank: Number of slots.
        spare: Directions for slots that the product does not fill, at least `rank` of them.
    """
    q_b, r_b = torch.linalg.qr(b.double())  # (d_out, m), (m, stack)
    q_a, r_a = torch.linalg.qr(a.double().T)  # (d_in, n), (n, stack)
    u, s, vh = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    tiny = torch.finfo(s.dtype).eps * max(a.shape[1], b.shape[0]) * float(s[:1].sum())
    found = min(rank, int((s > tiny).sum()))
    new_b = b.new_zeros(b.shape[0], rank)
    new_b[:, :found] = ((q_b @ u) * s)[:, :found].to(b)
    rows = (vh @ q_a.T)[:found]  # (found, d_in), orthonormal
    if found < rank:
        rows = torch.cat([rows, _new_directions(rows, spare.double(), rank - found)])
    return rows.to(a).contiguous(), new_b


def _new_directions(
    rows: Float[Tensor, "found d_in"], spare: Float[Tensor, "spare d_in"], number: int
) -> Float[Tensor, "number d_in"]:
    """Return `number` directions of `spare` that are orthonormal, also to `rows`, the strongest first.

    Where `spare` has fewer, the rest is arbitrary; where there are no more dimensions, rows of `spare` follow as they
    are.
    """
    found, d_in = rows.shape
    left = spare - (spare @ rows.T) @ rows
    strongest = torch.linalg.svd(left, full_matrices=False).Vh[:number]
    basis, triangle = torch.linalg.qr(torch.cat([rows, strongest]).T)  # (d_in, at most d_in)
    signs = torch.where(triangle.diagonal() < 0, -1.0, 1.0).to(basis)  # QR may turn a row round
    return torch.cat([(basis * signs).T[found:], spare[d_in:]])[:number]
