"""A tiny vision transformer.

Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", ICLR 2021
(arXiv 2010.11929), equations 1 to 4; the classes are read from the mean of the patches (its appendix D.3).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pl_fed.errors import FederatedConfigError


class Block(nn.Module):
    """Attention, then two linear layers; each sees the normalised input and is added to it.

    Args:
        dim: Numbers that describe a patch.
        heads: Heads of attention.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Float[Tensor, "batch patches dim"]) -> Float[Tensor, "batch patches dim"]:
        """Apply the block."""
        parts = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1))  # (batch, patches, 3, heads, dim / heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # each (batch, heads, patches, dim / heads)
        seen = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)  # (batch, patches, dim)
        x = x + self.out(seen)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class TinyViT(nn.Module):
    """Patches of an image as the words of a transformer, with LayerNorm and learned positions.

    Args:
        in_channels: Channels of an image.
        num_labels: Number of classes.
        image_size: Height and width of an image; multiples of the patch size.
        patch_size: Side of a patch in pixels.
        dim: Numbers that describe a patch; a multiple of `heads`.
        depth: Number of blocks.
        heads: Heads of attention.

    Example:
        >>> TinyViT(1, 10, image_size=(28, 28))(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        in_channels: int,
        num_labels: int,
        image_size: tuple[int, int],
        patch_size: int = 4,
        dim: int = 64,
        depth: int = 4,
        heads: int = 4,
    ) -> None:
        super().__init__()
        if any(side % patch_size for side in image_size):
            raise FederatedConfigError(
                f"Expected a `patch_size` that divides images of {image_size[0]} x {image_size[1]} but got "
                f"{patch_size}: change it, or resize the images."
            )
        if dim % heads:
            raise FederatedConfigError(f"Expected `heads` to divide the `dim` of {dim} but got {heads}.")
        num_patches = (image_size[0] // patch_size) * (image_size[1] // patch_size)
        self.patches = nn.Conv2d(in_channels, dim, patch_size, patch_size)
        self.positions = nn.Parameter(0.02 * torch.randn(num_patches, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, num_labels)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch labels"]:
        """Return the scores of the classes."""
        x = self.patches(images).flatten(2).transpose(1, 2) + self.positions  # (batch, patches, dim)
        return self.head(self.norm(self.blocks(x)).mean(1))  # type: ignore[no-any-return]
