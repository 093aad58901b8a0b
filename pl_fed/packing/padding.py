"""Parts of unlike sizes as one padded tensor, for devices on which a few large operations beat many small ones.

On a CPU a loop over the parts costs nothing and padding does; a GPU would wait for the launch of every part's own
operations, for every sequence in attention and for every client in LoRA, in every layer.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F

LOOPS_ON = ("cpu",)
"""Devices on which parts are treated one by one."""


class Grid(NamedTuple):
    """Where the rows of each part lie in a padded tensor.

    Args:
        rows: The row of each place (parts * longest,); 0 where there is none.
        places: The place of each row (rows,).
        filled: Which places have a row (parts, longest).
    """

    rows: Int[Tensor, " places"]
    places: Int[Tensor, " rows"]
    filled: Bool[Tensor, "parts longest"]

    def pad(self, x: Shaped[Tensor, "rows ..."]) -> Shaped[Tensor, "parts longest ..."]:
        """Return the parts; padding repeats the first row, so that it is finite where the data are."""
        return x.index_select(0, self.rows).view(*self.filled.shape, *x.shape[1:])

    def unpad(self, x: Shaped[Tensor, "parts longest ..."]) -> Shaped[Tensor, "rows ..."]:
        """Return the rows without the padding, one part after the other."""
        return x.reshape(-1, *x.shape[2:]).index_select(0, self.places)


def pads(x: Tensor) -> bool:
    """Tell whether parts of unlike sizes are treated at once on a tensor's device: padded, or as in `jagged.py`."""
    return x.device.type not in LOOPS_ON


def grid(sizes: Sequence[int], device: torch.device) -> Grid:
    """Return where the rows of parts of these sizes lie.

    Example:
        >>> found = grid([2, 1], torch.device("cpu"))
        >>> found.pad(torch.tensor([5, 6, 7])).tolist(), found.unpad(torch.tensor([[1, 2], [3, 4]])).tolist()
        ([[5, 6], [7, 5]], [1, 2, 3])
    """
    return _grid(tuple(sizes), device)


@lru_cache(maxsize=8)  # every layer of a pass asks for the same
def _grid(sizes: tuple[int, ...], device: torch.device) -> Grid:
    counts = torch.tensor(sizes)
    filled = torch.arange(max(sizes)) < counts[:, None]
    rows = torch.zeros(filled.shape, dtype=torch.int64).masked_scatter_(filled, torch.arange(sum(sizes)))
    places = filled.flatten().nonzero().flatten()
    return Grid(rows.flatten().to(device), places.to(device), filled.to(device))


def padded_low_rank(
    rows: Float[Tensor, "rows d_in"],
    a: Float[Tensor, "clients rank d_in"],
    b: Float[Tensor, "clients d_out rank"],
    factors: Float[Tensor, "clients #rank"],
    sizes: Sequence[int],
) -> Float[Tensor, "rows d_out"]:
    """Return ``B_k diag(factors_k) A_k x`` for every client's rows, padded to those of the client with the most.

    Args:
        rows: The clients' rows, one client after the other.
        a: Every client's A.
        b: Every client's B.
        factors: Every client's diagonal, or one number each.
        sizes: Rows of each client.
    """
    known = grid(sizes, rows.device)
    hidden = torch.bmm(known.pad(rows), a.transpose(1, 2)) * factors[:, None]  # (clients, longest, rank)
    return known.unpad(torch.bmm(hidden, b.transpose(1, 2)))


def padded_attention(
    query: Float[Tensor, "1 heads tokens width"],
    key: Float[Tensor, "1 key_heads tokens width"],
    value: Float[Tensor, "1 key_heads tokens width"],
    lengths: Sequence[int],
    causal: bool,
    scale: float,
) -> Float[Tensor, "1 tokens heads width"]:
    """Attend within all sequences at once, padded to the longest.

    Args:
        query: The sequences, one after the other.
        key: As `query`; a head may serve several of the query's.
        value: As `key`.
        lengths: Tokens of each sequence.
        causal: Whether a token sees no later one.
        scale: Factor of the scores.
    """
    known = grid(lengths, query.device)
    key, value = repeated(key, query), repeated(value, query)
    q, k, v = (known.pad(x.squeeze(0).transpose(0, 1)).transpose(1, 2) for x in (query, key, value))
    mask = None if causal else known.filled[:, None, None]  # what lies behind a sequence is later than all of it
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale)
    return known.unpad(attended.transpose(1, 2))[None]


def repeated(
    x: Float[Tensor, "sequences key_heads length width"], query: Float[Tensor, "sequences heads length width"]
) -> Float[Tensor, "sequences heads length width"]:
    """Return keys or values with as many heads as the query."""
    repeats = query.shape[1] // x.shape[1]
    return x.repeat_interleave(repeats, 1) if repeats > 1 else x
