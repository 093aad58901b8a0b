"""A small VGG with batch normalisation.

Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015 (arXiv 1409.1556),
table 1: stages of 3x3 convolutions with a halving in between. Here with BatchNorm, fewer stages, and the mean over the
image in place of two large linear layers.
"""

from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn


class VGG(nn.Module):
    """Stages of two 3x3 convolutions, each stage followed by the maximum over 2x2.

    Args:
        in_channels: Channels of an image, of at least ``2 ** len(widths)`` pixels a side.
        num_labels: Number of classes.
        widths: Channels of each stage.
        depth: Convolutions of a stage.
        dropout: Probability with which inputs of the last layer are zeroed in training.

    Example:
        >>> import torch
        >>> VGG(in_channels=3, num_labels=10, widths=(8, 16))(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        in_channels: int,
        num_labels: int,
        widths: Sequence[int] = (32, 64, 128),
        depth: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, width in pairwise((in_channels, *widths)):
            for channels in (before, *[width] * (depth - 1)):
                layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(widths[-1], num_labels))

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch labels"]:
        """Return the scores of the classes."""
        return self.head(self.features(images).mean((2, 3)))  # type: ignore[no-any-return]
