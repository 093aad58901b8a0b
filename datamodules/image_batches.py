"""Images and how they become batches; in training, cropped and mirrored at random."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from pl_fed.datamodules.batches import Example
from pl_fed.datamodules.decoding import ImageTable
from pl_fed.rounds import derive_seed


class ImageDataset(Dataset[Example]):
    """All images of all splits; a shard is a list of its indices.

    Args:
        images: The decoded images.
        labels: The class of every image.
        client_ids: The client that holds the image; -1 for the server's and the data's own splits.
    """

    def __init__(self, images: ImageTable, labels: np.ndarray, client_ids: np.ndarray) -> None:
        self.images, self.labels, self.client_ids = images, labels, client_ids

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def __getitem__(self, idx: int) -> Example:
        """Return one example."""
        return {
            "image": self.images[idx],
            "label": int(self.labels[idx]),
            "client_id": int(self.client_ids[idx]),
            "idx": int(idx),
        }


@dataclass(frozen=True)
class ImageCollator:
    """Makes a batch: `images` are ``(pixel / 255 - mean) / std``.

    Args:
        mean: Mean of each channel.
        std: Standard deviation of each channel.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, examples: list[Example]) -> dict[str, Tensor]:
        """Return `images` (batch, channels, height, width), and `labels` and `client_id` (batch,)."""
        return {
            "images": self.images(examples),
            "labels": torch.tensor([example["label"] for example in examples]),
            "client_id": torch.tensor([example["client_id"] for example in examples]),
        }

    def images(self, examples: list[Example]) -> Float[Tensor, "batch channels height width"]:
        """Return what the network sees of the examples' images."""
        pixels = self.change(torch.from_numpy(np.stack([example["image"] for example in examples])), examples)
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (pixels.float() / 255 - mean) / std

    def change(
        self, pixels: UInt8[Tensor, "batch channels height width"], examples: list[Example]
    ) -> UInt8[Tensor, "batch channels height width"]:
        """Return what the network is to see of the images."""
        return pixels


class Round(Protocol):
    """What knows the round."""

    round_idx: int


@dataclass
class RoundNumber:
    """A round as it is sent to a worker process."""

    round_idx: int


@dataclass(frozen=True)
class TrainingCollator(ImageCollator):
    """Crops and mirrors at random, as a function of the seed, the round and the batch's examples alone.

    So a resumed run, or one with worker processes, sees the same pixels, and an example that comes again in a later
    batch of the round is changed anew.

    Args:
        mean: Mean of each channel.
        std: Standard deviation of each channel.
        padding: Black pixels around an image before its size is cut out at random.
        flip: Mirror half of the images.
        seed: Seed of the choices.
        rounds: Knows the round in progress.
    """

    padding: int
    flip: bool
    seed: int
    rounds: Round

    def __reduce__(self) -> tuple[Any, ...]:
        """Send a worker process the number of the round; it is made anew in every round."""
        now = RoundNumber(self.rounds.round_idx)
        return type(self), (self.mean, self.std, self.padding, self.flip, self.seed, now)

    def change(
        self, pixels: UInt8[Tensor, "batch channels height width"], examples: list[Example]
    ) -> UInt8[Tensor, "batch channels height width"]:
        """Crop and mirror."""
        seed = derive_seed(self.seed, self.rounds.round_idx, 0xA9, *(example["idx"] for example in examples))
        return augment(pixels, self.padding, self.flip, torch.Generator().manual_seed(seed))


def augment(
    pixels: UInt8[Tensor, "batch channels height width"], padding: int, flip: bool, generator: torch.Generator
) -> UInt8[Tensor, "batch channels height width"]:
    """Cut every image out of itself with black around it, at a place of its own, and mirror about half of them.

    Args:
        pixels: The images.
        padding: Black pixels on each side.
        flip: Whether to mirror, left to right.
        generator: Source of the choices.
    """
    size, _, height, width = pixels.shape
    top, left = torch.randint(0, 2 * padding + 1, (2, size), generator=generator)  # (batch,) each
    mirrored = torch.rand(size, generator=generator) < 0.5 if flip else torch.zeros(size, dtype=torch.bool)
    rows = top[:, None] + torch.arange(height)  # (batch, height)
    columns = left[:, None] + torch.arange(width)  # (batch, width)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    padded = F.pad(pixels, [padding] * 4)
    images = torch.arange(size)[:, None, None]
    return padded.permute(0, 2, 3, 1)[images, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
