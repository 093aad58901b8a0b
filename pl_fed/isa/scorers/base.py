"""What every scorer is: from texts and images to two scores with their uncertainty."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Protocol, runtime_checkable

from PIL import Image

UNKNOWN = 0.125**0.5
"""Standard deviation of a rating that is drawn at random: 0, 1/4, 1/2, 3/4 or 1 with equal probability."""


@dataclass(frozen=True)
class Score:
    """The scores of an image; None for one that a scorer does not know.

    Args:
        entity: Entity score, 0 to 1; higher is more crowded.
        semantic: Semantic score, 0 to 1; higher is richer.
        entity_uncertainty: Standard deviation of the entity score.
        semantic_uncertainty: Standard deviation of the semantic score.
    """

    entity: float | None
    semantic: float | None
    entity_uncertainty: float | None
    semantic_uncertainty: float | None

    def __post_init__(self) -> None:
        if not all(value is None or 0 <= value <= 1 for value in astuple(self)):
            raise ValueError(
                f"Expected scores and uncertainties from 0 to 1 but got {astuple(self)}: the scorer that made them has"
                " to keep to that range."
            )


@runtime_checkable
class Scorer(Protocol):
    """From what was said about images, and the images, to scores."""

    def score(self, texts: Sequence[str], images: Sequence[Image.Image]) -> Sequence[Score]:
        """Return the scores of images.

        Args:
            texts: What an extractor wrote about each.
            images: The images, upright and RGB, in the same order.
        """
        ...
