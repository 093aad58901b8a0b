"""The small network with group normalisation, which keeps no statistics of the data.

Statistics of a batch differ between clients of unlike data, and so do the networks that rely on them: Hsieh,
Phanishayee, Mutlu, Gibbons, "The Non-IID Data Quagmire of Decentralized Machine Learning", ICML 2020
(arXiv 1910.00189), section 5, which proposes group normalisation (Wu, He, ECCV 2018) instead.
"""

from jaxtyping import Float
from torch import Tensor, nn

from pl_fed.errors import FederatedConfigError


class GroupNormCNN(nn.Module):
    """`SmallCNN` with GroupNorm in place of BatchNorm.

    Args:
        in_channels: Channels of an image.
        num_labels: Number of classes.
        image_size: Height and width of an image, at least 4.
        width: Channels of the first convolution; the second has twice as many.
        num_groups: Groups of channels that are normalised together; divides `width`.

    Example:
        >>> import torch
        >>> GroupNormCNN(in_channels=3, num_labels=5, image_size=(32, 32))(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 5])
    """

    def __init__(
        self, in_channels: int, num_labels: int, image_size: tuple[int, int], width: int = 16, num_groups: int = 8
    ) -> None:
        super().__init__()
        if min(image_size) < 4:
            raise FederatedConfigError(f"Expected images of at least 4 x 4 for `groupnorm_cnn` but got {image_size}.")
        if num_groups < 1 or width % num_groups:
            raise FederatedConfigError(
                f"Expected `num_groups` to divide the `width` of {width} but got {num_groups}: change one of them."
            )
        self.features = nn.Sequential(
            *_convolution(in_channels, width, num_groups),
            nn.MaxPool2d(2),
            *_convolution(width, 2 * width, num_groups),
            nn.MaxPool2d(2),
        )
        self.head = nn.Linear(2 * width * (image_size[0] // 4) * (image_size[1] // 4), num_labels)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch labels"]:
        """Return the scores of the classes."""
        return self.head(self.features(images).flatten(1))  # type: ignore[no-any-return]


def _convolution(in_channels: int, out_channels: int, num_groups: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return convolution, nn.GroupNorm(num_groups, out_channels), nn.ReLU()
