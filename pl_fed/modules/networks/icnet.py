"""A residual network with two branches, in the manner of networks that assess how complex an image is.

After Tinglei Feng et al., "IC9600: A Benchmark Dataset for Automatic Image Complexity Assessment", IEEE TPAMI 2023
(ICNet), as far as its abstract and title say: a branch for details and one for the whole. The layers are our own.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pl_fed.errors import FederatedConfigError

SMALLEST = 8  # pixels


class ICNet(nn.Module):
    """Eighteen layers over the whole image, six over its edges at half the size; both are averaged and joined.

    Args:
        in_channels: Channels of an image.
        num_labels: Number of outputs.
        image_size: Height and width of an image, at least 8.
        width: Channels of the first stage; each later one has twice as many. 64 is that of ResNet-18.

    Example:
        >>> ICNet(in_channels=3, num_labels=2, image_size=(32, 32), width=4)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 2])
    """

    sobel: Tensor

    def __init__(self, in_channels: int, num_labels: int, image_size: tuple[int, int], width: int = 64) -> None:
        super().__init__()
        if min(image_size) < SMALLEST:
            raise FederatedConfigError(
                f"Expected images of at least {SMALLEST} x {SMALLEST} for `icnet` but got {image_size}: resize them."
            )
        self.whole = nn.Sequential(_stem(in_channels, width), *_stages(width, (1, 2, 4, 8), blocks=2))
        self.edges = nn.Sequential(_stem(1, width), *_stages(width, (1, 2), blocks=1))
        self.head = nn.Linear(10 * width, num_labels)
        across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
        self.register_buffer("sobel", torch.stack([across, across.T])[:, None], persistent=False)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch labels"]:
        """Return the outputs."""
        features = [self.whole(images), self.edges(self.edge_strength(images))]
        return self.head(torch.cat([part.mean((2, 3)) for part in features], 1))  # type: ignore[no-any-return]

    def edge_strength(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch 1 half_height half_width"]:
        """Return the length of the gradient of the mean channel, averaged over 2 x 2 pixels."""
        grey = F.pad(images.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
        gradient = F.conv2d(grey, self.sobel.to(grey))  # (batch, 2, height, width)
        return F.avg_pool2d(torch.linalg.vector_norm(gradient, dim=1, keepdim=True), 2)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch normalisation beside a shortcut.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Step of the first convolution in pixels.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_convolution(in_channels, out_channels, 3, stride),
            nn.ReLU(),
            *_convolution(out_channels, out_channels, 3, 1),
        )
        same = in_channels == out_channels and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(*_convolution(in_channels, out_channels, 1, stride))

    def forward(
        self, x: Float[Tensor, "batch in_channels height width"]
    ) -> Float[Tensor, "batch out_channels new_height new_width"]:
        """Return the output."""
        return F.relu(self.body(x) + self.shortcut(x))


def _convolution(in_channels: int, out_channels: int, size: int, stride: int) -> tuple[nn.Module, nn.Module]:
    # no bias: the normalisation would take it away again
    layer = nn.Conv2d(in_channels, out_channels, size, stride, padding=size // 2, bias=False)
    return layer, nn.BatchNorm2d(out_channels)


def _stem(in_channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(*_convolution(in_channels, width, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1))


def _stages(width: int, factors: tuple[int, ...], blocks: int) -> list[nn.Module]:
    """Return residual blocks; every stage but the first halves the size."""
    found: list[nn.Module] = []
    channels = width
    for i, factor in enumerate(factors):
        for j in range(blocks):
            stride = 2 if i > 0 and j == 0 else 1
            found.append(ResidualBlock(channels, factor * width, stride))
            channels = factor * width
    return found
