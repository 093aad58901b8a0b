"""Scores by counting: a baseline that knows no rubric and was fitted on no rating.

The entity score counts objects that are listed, or else the different content words of the description; the semantic
score counts the clues of the sections, or else the words. Each count n becomes 1 - exp(-n / scale): the order of images
means something, the absolute values do not.
"""

import math
import re
from collections.abc import Sequence

from PIL import Image

from pl_fed.errors import FederatedConfigError
from pl_fed.isa.entities import listed_objects
from pl_fed.isa.parsing import parse
from pl_fed.isa.scorers.base import UNKNOWN, Score
from pl_fed.isa.story import Story

_WORD = re.compile(r"[^\W\d_]{3,}")
_STOP_WORDS = frozenset(
    _WORD.findall(
        "about above after all also and are around been being below both but can does down each for from front has have"
        " her here him his image into its just left like more most near next not off one only other our out over"
        " picture right same scene seem seems she show shows some such than that the their them then there these they"
        " this those through too two under very visible was were what when where which while who with you your"
    )
)


class HeuristicScorer:
    """Counts objects and clues.

    Args:
        objects_scale: Number of listed objects that gives an entity score of 0.63.
        words_scale: Number of different content words that does, where no objects are listed.
        clues_scale: Number of clues that gives a semantic score of 0.63.
        length_scale: Number of words that does, where a text has no sections.
    """

    def __init__(
        self,
        objects_scale: float = 5.0,
        words_scale: float = 40.0,
        clues_scale: float = 10.0,
        length_scale: float = 150.0,
    ) -> None:
        scales = {
            "objects_scale": objects_scale,
            "words_scale": words_scale,
            "clues_scale": clues_scale,
            "length_scale": length_scale,
        }
        for name, scale in scales.items():
            if not scale > 0:
                raise FederatedConfigError(f"Expected `{name}` above 0 but got {scale}: it is a number of things.")
        self._scales = scales

    def score(self, texts: Sequence[str], images: Sequence[Image.Image]) -> Sequence[Score]:
        """Return the scores; the uncertainty is that of a rating drawn at random."""
        return [Score(*self._counted(text), UNKNOWN, UNKNOWN) for text in texts]

    def _counted(self, text: str) -> tuple[float, float]:
        story = parse(text)
        objects = listed_objects(story.description)
        entity = (
            self._saturate(len(content_words(story)), "words_scale")
            if objects is None
            else self._saturate(len(objects), "objects_scale")
        )
        has_sections = text.strip() != story.description
        if has_sections or objects is not None:  # a list of objects tells nothing, however long it is
            return entity, self._saturate(story.num_clues, "clues_scale")
        return entity, self._saturate(len(_WORD.findall(story.description)), "length_scale")

    def _saturate(self, count: int, scale: str) -> float:
        return 1 - math.exp(-count / self._scales[scale])


def content_words(story: Story) -> set[str]:
    """Return the different words of all that a story says, without the most common ones."""
    told = [story.description, *(text for f in story.findings.values() for text in (*f.clues, f.conclusion))]
    return {word for text in told for word in _WORD.findall(text.lower())} - _STOP_WORDS
