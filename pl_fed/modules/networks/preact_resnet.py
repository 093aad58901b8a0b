"""A residual network with normalisation before the convolutions.

He, Zhang, Ren, Sun, "Identity Mappings in Deep Residual Networks", ECCV 2016 (arXiv 1603.05027), figure 4(e).
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Two 3x3 convolutions whose output is added to their input: ``x + C2(relu(N2(C1(relu(N1(x))))))``.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Of the first convolution; 2 halves the image.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(in_channels), nn.BatchNorm2d(out_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        same = stride == 1 and in_channels == out_channels
        self.shortcut = None if same else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out h w"]:
        """Apply the block."""
        active = F.relu(self.norm1(x))
        kept = x if self.shortcut is None else self.shortcut(active)  # a changed shape sees the activated input
        return kept + self.conv2(F.relu(self.norm2(self.conv1(active))))  # type: ignore[no-any-return]


class PreActResNet(nn.Module):
    """Stages of residual blocks; each stage after the first halves the image.

    Args:
        in_channels: Channels of an image.
        num_labels: Number of classes.
        widths: Channels of each stage.
        blocks: Blocks of a stage; 3 with the default widths is ResNet-20.

    Example:
        >>> import torch
        >>> PreActResNet(in_channels=3, num_labels=10, widths=(8, 16))(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self, in_channels: int, num_labels: int, widths: Sequence[int] = (16, 32, 64), blocks: int = 1
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)]
        channels = widths[0]
        for i, width in enumerate(widths):
            for j in range(blocks):
                layers.append(Block(channels, width, stride=2 if i > 0 and j == 0 else 1))
                channels = width
        self.features = nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU())
        self.head = nn.Linear(channels, num_labels)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch labels"]:
        """Return the scores of the classes."""
        return self.head(self.features(images).mean((2, 3)))  # type: ignore[no-any-return]
