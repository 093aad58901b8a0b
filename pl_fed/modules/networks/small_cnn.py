"""Two convolutions with batch normalisation: what a first experiment on small images needs."""

from jaxtyping import Float
from torch import Tensor, nn

from pl_fed.errors import FederatedConfigError


class SmallCNN(nn.Module):
    """Two 3x3 convolutions, each with BatchNorm, ReLU and the maximum over 2x2, then a linear layer.

    Args:
        in_channels: Channels of an image.
        num_labels: Number of classes.
        image_size: Height and width of an image, at least 4.
        width: Channels of the first convolution; the second has twice as many.

    Example:
        >>> import torch
        >>> SmallCNN(in_channels=1, num_labels=10, image_size=(28, 28))(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, in_channels: int, num_labels: int, image_size: tuple[int, int], width: int = 16) -> None:
        super().__init__()
        if min(image_size) < 4:
            raise FederatedConfigError(f"Expected images of at least 4 x 4 for `small_cnn` but got {image_size}.")
        self.features = nn.Sequential(
            *_convolution(in_channels, width),
            nn.MaxPool2d(2),
            *_convolution(width, 2 * width),
            nn.MaxPool2d(2),
        )
        self.head = nn.Linear(2 * width * (image_size[0] // 4) * (image_size[1] // 4), num_labels)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch labels"]:
        """Return the scores of the classes."""
        return self.head(self.features(images).flatten(1))  # type: ignore[no-any-return]


def _convolution(in_channels: int, out_channels: int) -> tuple[nn.Module, ...]:
    # no bias: the normalisation would take it away again
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU()
