"""What can be said of an image without any model: colours, light, and where its detail lies."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from pl_fed.isa.images import shrink

_SIDE = 192  # pixels: enough for colours and layout
_EDGE = 0.08  # difference of neighbouring pixels, of 1, that counts as detail
_MIN_SHARE = 0.08  # of the pixels, for a colour to be named
_HUES = ((15, "red"), (45, "orange"), (70, "yellow"), (165, "green"), (200, "cyan"), (260, "blue"), (330, "purple"))
CELLS = ("upper left", "top", "upper right", "left", "centre", "right", "lower left", "bottom", "lower right")


@dataclass(frozen=True)
class Statistics:
    """Measurements of an image.

    Args:
        colours: Names and shares of the pixels, the most frequent first.
        brightness: Mean of the grey values, of 1.
        contrast: Standard deviation of the grey values.
        detail: Share of the pixels with an edge.
        cells: How much of all edges lies in each of the nine fields of `CELLS`.
    """

    colours: tuple[tuple[str, float], ...]
    brightness: float
    contrast: float
    detail: float
    cells: tuple[float, ...]

    @property
    def busy(self) -> tuple[str, ...]:
        """The fields that hold at least their share of the detail."""
        return tuple(name for name, share in zip(CELLS, self.cells, strict=True) if share >= 1 / len(CELLS))


def measure(image: Image.Image) -> Statistics:
    """Measure an RGB image.

    Example:
        >>> measure(Image.new("RGB", (9, 9), (250, 0, 0))).colours
        (('red', 1.0),)
    """
    small = shrink(image, _SIDE)
    grey = np.asarray(small.convert("L")).astype(np.float64) / 255
    edges = edge_strength(grey)
    rows = np.array_split(edges, 3, axis=0)
    energy = np.array([cell.sum() for row in rows for cell in np.array_split(row, 3, axis=1)])
    total = float(energy.sum())
    return Statistics(
        colours=name_colours(np.asarray(small.convert("HSV"))),
        brightness=float(grey.mean()),
        contrast=float(grey.std()),
        detail=float((edges > _EDGE).mean()),
        cells=tuple((energy / total).tolist()) if total > 0 else (0.0,) * len(CELLS),
    )


def edge_strength(grey: Float[np.ndarray, "height width"]) -> Float[np.ndarray, "height width"]:
    """Return the larger of the differences to the pixel on the right and to the one below; 0 at the far edges."""
    right, below = np.zeros_like(grey), np.zeros_like(grey)
    right[:, :-1] = np.abs(np.diff(grey, axis=1))
    below[:-1] = np.abs(np.diff(grey, axis=0))
    strongest: np.ndarray = np.maximum(right, below)
    return strongest


def name_colours(hsv: UInt8[np.ndarray, "height width 3"]) -> tuple[tuple[str, float], ...]:
    """Return the colours that cover a good part of an image, and their shares, the most frequent first."""
    hue, saturation, value = (hsv[..., i].astype(np.float64) / 255 for i in range(3))
    degrees = hue * 360
    conditions = [value < 0.2, (saturation < 0.15) & (value > 0.8), saturation < 0.15]
    conditions += [(degrees >= 15) & (degrees < 45) & (value < 0.6)]
    conditions += [degrees < limit for limit, _ in _HUES] + [degrees < 345]
    names = ["black", "white", "grey", "brown", *(name for _, name in _HUES), "pink"]
    chosen = np.select(conditions, np.arange(len(names)), default=names.index("red"))
    shares = np.bincount(chosen.ravel(), minlength=len(names)) / chosen.size
    found = [(name, float(share)) for name, share in zip(names, shares, strict=True) if share >= _MIN_SHARE]
    return tuple(sorted(found, key=lambda item: (-item[1], item[0])))
