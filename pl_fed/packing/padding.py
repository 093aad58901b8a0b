"""Parts of unlike sizes as one padded tensor, for devices on which a few large operations beat many small ones.

On a CPU a loop over the parts costs nothing and padding does; a GPU would wait for the launch of every part's own
operations, for every sequence in attention and for every client in LoRA, in every layer.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

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
    """Tell whether parts of unlike sizes are padded on a tensor's device."""
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
