"""The images of several clients in one pass, along the batch dimension: all have as many tokens, so none is padding."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pl_fed.packing.rows import Rows
from pl_fed.packing.segments import Segments

ENTRIES = ("images", "pixel_values")
"""What a batch may call its images (batch, channels, height, width)."""


def images_of(batch: Mapping[str, Tensor]) -> Float[Tensor, "batch channels height width"]:
    """Return a batch's images.

    Raises:
        KeyError: If it has none.
    """
    for name in ENTRIES:
        if name in batch:
            return batch[name]
    raise KeyError(f"Expected `images` or `pixel_values` in the batch but got {', '.join(sorted(batch))}.")


def image_tokens(images: Float[Tensor, "batch channels height width"], patch: tuple[int, int]) -> int:
    """Return the tokens of one image: a class token and its patches, those that are cut at the edge left out.

    Args:
        images: The images.
        patch: Height and width of a patch, in pixels.

    Example:
        >>> image_tokens(torch.zeros(8, 3, 224, 224), (16, 16))
        197
    """
    return 1 + (images.shape[2] // patch[0]) * (images.shape[3] // patch[1])


@dataclass(frozen=True)
class ImageRows(Rows):
    """Several clients' images of one size; each is a sequence of its tokens, and attends to itself alone.

    Args:
        batches: Each client's batch, with ``images`` or ``pixel_values`` (batch, channels, height, width).
        segments: Whose images are whose.

    Example:
        >>> batches = [{"images": torch.zeros(2, 3, 16, 16)}, {"images": torch.zeros(1, 3, 16, 16)}]
        >>> rows = ImageRows.of(batches, patch=(8, 8))
        >>> rows.images.shape[0], rows.segments.tokens
        (3, [10, 5])
    """

    @classmethod
    def of(cls, batches: Sequence[Mapping[str, Tensor]], patch: tuple[int, int]) -> "ImageRows":
        """Count each image's tokens.

        Args:
            batches: The clients' batches, with images of one size.
            patch: Height and width of a patch, in pixels.
        """
        found = [images_of(batch) for batch in batches]
        lengths = [image_tokens(images, patch) for images in found for _ in range(len(images))]
        return cls(batches, Segments(lengths, [len(images) for images in found]))

    @property
    def images(self) -> Float[Tensor, "images channels height width"]:
        """All clients' images."""
        return torch.cat([images_of(batch) for batch in self.batches])
