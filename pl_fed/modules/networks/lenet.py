"""LeNet-5 with batch normalisation.

LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document recognition", Proc. IEEE 1998, figure 2;
with ReLU and maxima for its squashing functions and trainable means, and BatchNorm before every ReLU.
"""

from jaxtyping import Float
from torch import Tensor, nn

from pl_fed.errors import FederatedConfigError


class LeNet(nn.Module):
    """Two 5x5 convolutions and three linear layers.

    Args:
        in_channels: Channels of an image.
        num_labels: Number of classes.
        image_size: Height and width of an image, at least 4.

    Example:
        >>> import torch
        >>> LeNet(in_channels=1, num_labels=10, image_size=(28, 28))(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, in_channels: int, num_labels: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        height, width = image_size[0] // 4, image_size[1] // 4
        if height * width == 0:
            raise FederatedConfigError(f"Expected images of at least 4 x 4 for `lenet` but got {image_size}.")
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 6, 5, padding=2, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5, padding=2, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.head = nn.Sequential(
            nn.Linear(16 * height * width, 120, bias=False),
            nn.BatchNorm1d(120),
            nn.ReLU(),
            nn.Linear(120, 84, bias=False),
            nn.BatchNorm1d(84),
            nn.ReLU(),
            nn.Linear(84, num_labels),
        )

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch labels"]:
        """Return the scores of the classes."""
        return self.head(self.features(images).flatten(1))  # type: ignore[no-any-return]
