"""From extracted texts to rows of scores, with the reasons."""

from collections.abc import Iterable, Iterator, Sequence

from PIL import Image

from pl_fed.isa.extraction import Extracted
from pl_fed.isa.images import ImageFile, printable, shrink
from pl_fed.isa.parsing import parse
from pl_fed.isa.rubric import ENTITY, SEMANTIC, to_level
from pl_fed.isa.scorers.base import Score, Scorer
from pl_fed.isa.story import SECTIONS, Story
from pl_fed.isa.tables import Row

_BATCH = 16  # images that wait in memory for their scores
_SIDE = 1024  # pixels; no scorer looks closer


def assess(found: Iterable[tuple[int, Extracted]], scorer: Scorer) -> Iterator[tuple[int, Row]]:
    """Yield the place and the row of each image; one without a text has an error and no scores.

    Args:
        found: Places and results of an extraction.
        scorer: What gives the scores.
    """
    batch: list[tuple[int, Extracted, Image.Image]] = []
    for i, result in found:
        if result.error or result.image is None:
            yield i, make_row(result, None)
            continue
        batch.append((i, result, shrink(result.image.pixels, _SIDE)))
        if len(batch) == _BATCH:
            yield from _scored(batch, scorer)
            batch = []
    yield from _scored(batch, scorer)


def _scored(batch: Sequence[tuple[int, Extracted, Image.Image]], scorer: Scorer) -> Iterator[tuple[int, Row]]:
    if batch:
        scores = scorer.score([result.text for _, result, _ in batch], [image for *_, image in batch])
        for (i, result, _), score in zip(batch, scores, strict=True):
            yield i, make_row(result, score)


def make_row(result: Extracted, score: Score | None) -> Row:
    """Return the row of one image.

    Args:
        result: What was extracted.
        score: Its scores; None if it has none.
    """
    story = parse(result.text)
    return {
        "file_name": result.file.name,
        "entity_score": score and score.entity,
        "semantic_score": score and score.semantic,
        "entity_1_to_5": score and _level(score.entity),
        "semantic_1_to_5": score and _level(score.semantic),
        "entity_uncertainty": score and score.entity_uncertainty,
        "semantic_uncertainty": score and score.semantic_uncertainty,
        "entity_direction": ENTITY.direction,
        "semantic_direction": SEMANTIC.direction,
        "clues": clue_list(story),
        "description": story.description,
        "model_output": result.text,
        "note": result.note,
        "error": result.error,
        "path": _path(result.file),
    }


def _path(file: ImageFile) -> str:
    """Return the whole path, with escapes where it has bytes that are no text."""
    path = str(file.path.absolute())
    return path if path == path.encode("utf-8", "replace").decode() else printable(path)


def _level(score: float | None) -> float | None:
    return None if score is None else to_level(score)


def clue_list(story: Story) -> list[dict[str, object]]:
    """Return what a story says by section, as plain values in the order of the sections."""
    titled = [(section, story.findings[section.key]) for section in SECTIONS if section.key in story.findings]
    return [
        {"section": section.title, "clues": list(finding.clues), "conclusion": finding.conclusion}
        for section, finding in titled
    ]
