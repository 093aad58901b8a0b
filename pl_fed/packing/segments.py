"""Which rows of a tensor are whose, when several clients' sequences lie one after the other, in a row or a batch."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Segments:
    """Sequences of several clients, client by client; an image is a sequence of its patches.

    Args:
        lengths: Tokens of each sequence.
        sequences: Sequences of each client.

    Example:
        >>> segments = Segments([3, 2, 4], [2, 1])
        >>> segments.tokens, segments.starts, segments.sizes(torch.zeros(1, 9, 5))
        ([5, 4], [0, 3, 5], (1, [5, 4]))
        >>> images = Segments([7, 7, 7], [2, 1])  # of 7 tokens each, along the batch dimension
        >>> images.sizes(torch.zeros(3, 7, 5)), images.row_sizes(torch.zeros(3, 7, 5))
        ((0, [2, 1]), [14, 7])
    """

    lengths: list[int]
    sequences: list[int]

    @property
    def num_clients(self) -> int:
        """Number of clients."""
        return len(self.sequences)

    @cached_property
    def tokens(self) -> list[int]:
        """Tokens of each client."""
        found, start = [], 0
        for number in self.sequences:
            found.append(sum(self.lengths[start : start + number]))
            start += number
        return found

    @cached_property
    def starts(self) -> list[int]:
        """Place of the first token of each sequence."""
        return [sum(self.lengths[:i]) for i in range(len(self.lengths))]

    @cached_property
    def owners(self) -> list[int]:
        """The client of each sequence."""
        return [client for client, number in enumerate(self.sequences) for _ in range(number)]

    @property
    def uniform(self) -> bool:
        """Whether all sequences are of one length."""
        return len(set(self.lengths)) == 1

    def sizes(self, x: Tensor) -> tuple[int, list[int]]:
        """Return the dimension along which a tensor goes from client to client, and each client's size in it.

        Args:
            x: Of shape (1, tokens, ...), or (sequences, ...): images, and texts after pooling.

        Raises:
            ValueError: If it has another shape, so that nobody can tell whose rows are whose.
        """
        if x.dim() > 1 and x.shape[0] == 1 and x.shape[1] == sum(self.tokens):
            return 1, self.tokens
        if x.shape[0] == len(self.lengths):
            return 0, self.sequences
        raise ValueError(
            f"Expected a tensor of {sum(self.tokens)} tokens or {len(self.lengths)} sequences in a packed pass but got "
            f"the shape {tuple(x.shape)}: set `engine: sequential`."
        )

    def row_sizes(self, x: Tensor) -> list[int]:
        """Return how many vectors each client has in a tensor, along all of its dimensions but the last.

        Args:
            x: As in `sizes`, for example (1, tokens, width) or (images, tokens, width).
        """
        dim, sizes = self.sizes(x)
        return [size * x.shape[dim + 1 : -1].numel() for size in sizes]

    def split(self, x: Tensor) -> tuple[int, tuple[Tensor, ...]]:
        """Return the dimension of `sizes` and each client's part."""
        dim, sizes = self.sizes(x)
        return dim, (x,) if len(sizes) == 1 else torch.split(x, sizes, dim)
