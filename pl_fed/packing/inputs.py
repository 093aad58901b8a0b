"""What a network reads of a batch, texts or images: how many tokens that is, and how several clients' make a pass."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from torch import Tensor
from transformers import PreTrainedModel

from pl_fed.packing.images import ImageRows, image_tokens, images_of
from pl_fed.packing.rows import Rows, TokenRows

Batch = Mapping[str, Tensor]


class Inputs(ABC):
    """A kind of input."""

    @abstractmethod
    def num_tokens(self, batch: Batch) -> int:
        """Return the tokens of a client's batch, without padding."""

    @abstractmethod
    def num_padded(self, batch: Batch) -> int:
        """Return the tokens of a client's batch with the padding, which the network sees when the client is alone."""

    @abstractmethod
    def together(self, first: Batch, other: Batch) -> bool:
        """Tell whether two clients' batches can be in one pass."""

    @abstractmethod
    def rows(self, batches: Sequence[Batch]) -> Rows:
        """Return what a pass of these clients reads."""


class Texts(Inputs):
    """Tokens of any number, one after the other.

    Example:
        >>> import torch
        >>> Texts().num_tokens({"input_ids": torch.ones(2, 3), "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])})
        5
    """

    def num_tokens(self, batch: Batch) -> int:
        """Count what ``attention_mask`` leaves."""
        mask = batch.get("attention_mask")
        return self.num_padded(batch) if mask is None else int(mask.sum())

    def num_padded(self, batch: Batch) -> int:
        """Count all."""
        return batch["input_ids"].numel()

    def together(self, first: Batch, other: Batch) -> bool:
        """Return True."""
        return True

    def rows(self, batches: Sequence[Batch]) -> TokenRows:
        """Put all tokens in one row."""
        return TokenRows.of(batches)


class Images(Inputs):
    """Images, along the batch dimension.

    Args:
        patch: Height and width of a patch, in pixels.

    Example:
        >>> import torch
        >>> Images((16, 16)).num_tokens({"images": torch.zeros(2, 3, 32, 48)})  # six patches and a class token each
        14
    """

    def __init__(self, patch: tuple[int, int]) -> None:
        self.patch = patch

    def num_tokens(self, batch: Batch) -> int:
        """Count patches and class tokens."""
        images = images_of(batch)
        return len(images) * image_tokens(images, self.patch)

    def num_padded(self, batch: Batch) -> int:
        """Return the same: there is no padding."""
        return self.num_tokens(batch)

    def together(self, first: Batch, other: Batch) -> bool:
        """Tell whether the images are of one size."""
        return images_of(first).shape[1:] == images_of(other).shape[1:]

    def rows(self, batches: Sequence[Batch]) -> ImageRows:
        """Put all images in one batch."""
        return ImageRows.of(batches, self.patch)


def inputs_of(model: PreTrainedModel) -> Inputs:
    """Return what a model reads: images in patches where its main input is `pixel_values`, else texts."""
    if model.main_input_name != "pixel_values":
        return Texts()
    size = model.config.patch_size
    return Images((size, size) if isinstance(size, int) else (size[0], size[1]))
