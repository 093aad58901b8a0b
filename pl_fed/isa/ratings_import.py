"""Importers of two gated data sets: ISA, which has scores, and CogBench, which has texts and no scores.

Song, Pang, Tang, Wu, Zhu, "Is Your Image a Good Storyteller?", AAAI 2025, arXiv 2501.01982 (ISA).
Song, Wu, Zhu, Zhang, Chen, "A Cognitive Evaluation Benchmark of Image Reasoning and Description for Large
Vision-Language Models", arXiv 2402.18409 (CogBench). Its annotations are one JSON object with an entry for each image:
``Image Name``, and lists of texts under ``Entities``, the eight reasonings and ``Description``; a reasoning is written
``clue + clue -> conclusion``, and ``None`` where there is none.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from pl_fed.errors import FederatedConfigError
from pl_fed.isa.ratings import Ratings, make_ratings
from pl_fed.isa.ratings_layouts import ONLY_RATER, find_ratings
from pl_fed.isa.ratings_tables import read_table
from pl_fed.isa.story import NONE, Finding, gather, render

ISA_LICENCE = (
    "ISA is given out under a signed agreement: non-commercial use, no transfer to others, also not of models trained "
    "on it. Cite arXiv 2501.01982."
)
COGBENCH_LICENCE = (
    "CogBench is given out under a signed data use agreement: non-commercial research and education, no transfer to "
    "others without written consent. Cite arXiv 2402.18409."
)
COGBENCH_SECTIONS = {  # theirs, and the section of our texts
    "Special Time Reasoning": "Special time",
    "Location Reasoning": "Special location",
    "Character Reasoning": "Character role",
    "Character Relationship Reasoning": "Character relationship",
    "Event Reasoning": "High-level event",
    "Event Relationship Reasoning": "Event causal relationship",
    "Mental State Reasoning": "Mental state",
}
NEXT_MOMENT = "Next Moment Event Reasoning"


def import_isa(path: str | Path) -> Ratings:
    """Read the scores of ISA and say what its licence is.

    Args:
        path: The table with the columns `file_name`, `entity_score` and `semantic_score`, in [0, 1].

    Raises:
        FederatedConfigError: If it is not in that layout, or a score is missing, doubled or outside of [0, 1].
    """
    name = Path(path).name
    found = find_ratings(read_table(path), name)
    if {rating.rater for rating in found} != {ONLY_RATER}:
        raise FederatedConfigError(
            f"Expected '{name}' to have one score for each image, as ISA has, but it has raters: use `read_ratings`."
        )
    rank_zero_info(ISA_LICENCE)
    return make_ratings(found, name, "0-1")


@dataclass(frozen=True)
class CogBenchImage:
    """What CogBench says of an image; there is no entity or semantic score.

    Args:
        file_name: Its name.
        entities: What is in it.
        sections: Findings by section of our texts.
        next_moment: What is about to happen; our texts have no section for it.
        description: The story.
    """

    file_name: str
    entities: tuple[str, ...]
    sections: dict[str, tuple[Finding, ...]]
    next_moment: tuple[Finding, ...]
    description: str

    @property
    def text(self) -> str:
        """The annotation in the sections that a scorer reads."""
        return render(gather(self.sections, self.description))


def import_cogbench(path: str | Path) -> list[CogBenchImage]:
    """Read the annotations of CogBench's description task and say what their licence is.

    Args:
        path: The JSON file.

    Raises:
        FederatedConfigError: If it is no such file, or an entry has another form.
    """
    name = Path(path).name
    try:
        entries = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise FederatedConfigError(f"Expected '{name}' to be a JSON file but got: {error}; check the path.") from error
    if not isinstance(entries, dict) or not entries:
        raise FederatedConfigError(f"Expected an entry for each image in '{name}' but got none: check the file.")
    images = [_cogbench_image(entry, f"entry '{key}' of '{name}'") for key, entry in entries.items()]
    rank_zero_info(COGBENCH_LICENCE)
    return images


def _cogbench_image(entry: Any, where: str) -> CogBenchImage:
    if not isinstance(entry, dict) or not isinstance(entry.get("Image Name"), str):
        raise FederatedConfigError(f"Expected an 'Image Name' in {where} but got none: check the file.")
    texts = {key: _texts(entry, key, where) for key in ("Entities", *COGBENCH_SECTIONS, NEXT_MOMENT, "Description")}
    sections = {ours: _findings(texts[theirs]) for theirs, ours in COGBENCH_SECTIONS.items()}
    next_moment, description = _findings(texts[NEXT_MOMENT]), " ".join(texts["Description"])
    return CogBenchImage(entry["Image Name"], texts["Entities"], sections, next_moment, description)


def _texts(entry: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
    found = entry.get(key)
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise FederatedConfigError(f"Expected a list of texts under '{key}' in {where} but got {found!r}: mend it.")
    return tuple(text.strip() for text in found if text.strip() not in ("", NONE))


def _findings(texts: tuple[str, ...]) -> tuple[Finding, ...]:
    parts = [text.rpartition("->") for text in texts]  # without an arrow it is all conclusion
    split = [(re.split(r"\s*\+\s+", clues), end.strip()) for clues, _, end in parts]
    return tuple(Finding(tuple(clue.strip() for clue in clues if clue.strip()), end) for clues, end in split)
