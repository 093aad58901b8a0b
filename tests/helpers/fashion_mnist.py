"""Test images of Fashion-MNIST for benchmarks, where its Debian package is installed."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from pl_fed.datamodules.image_sources import load_image_splits


@lru_cache(maxsize=2)
def fashion_mnist(side: int = 28) -> tuple[Tensor, Tensor]:
    """Return images and labels.

    Args:
        side: Height and width; less than 28 averages.
    """
    rows = load_image_splits("fashion-mnist")["test"].select(range(5000))
    images = torch.stack([torch.tensor(np.asarray(image), dtype=torch.float32) for image in rows["image"]])[:, None]
    images = nn.functional.adaptive_avg_pool2d(images, side)
    return (images - images.mean()) / images.std(), torch.tensor(rows["label"])
