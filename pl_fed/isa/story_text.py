"""The text of a story in sections: numbered clues with a conclusion each, then the description."""

from collections.abc import Mapping
from dataclasses import dataclass

SECTIONS = (
    "Special Time",
    "Special Location",
    "Character Role",
    "Character Relationship",
    "High-level Event",
    "Event Causal Relationship",
    "Mental State",
)
DESCRIPTION = "Description"
NONE = "None"


@dataclass(frozen=True)
class Reasoning:
    """What is seen, and what follows.

    Args:
        clues: Sentences of what is seen.
        conclusion: One sentence of what follows.
    """

    clues: tuple[str, ...]
    conclusion: str


def story_text(sections: Mapping[str, tuple[Reasoning, ...]], description: str) -> str:
    """Write a story with every section, ``None`` where there is nothing to say.

    Args:
        sections: Reasonings by section; one that is left out is empty.
        description: The story.

    Example:
        >>> text = story_text({"Special Time": (Reasoning(("A moon is in the sky.",), "It is night."),)}, "A boy runs.")
        >>> print(text[:73])
        Special Time:
        Clue(s) 1: A moon is in the sky.
        Conclusion 1: It is night.
    """
    parts = []
    for name in SECTIONS:
        lines = [f"{name}:"]
        for number, reasoning in enumerate(sections.get(name, ()), 1):
            lines.append(f"Clue(s) {number}: {' '.join(reasoning.clues)}")
            lines.append(f"Conclusion {number}: {reasoning.conclusion}")
        parts.append("\n".join([*lines, NONE] if len(lines) == 1 else lines))
    return "\n\n".join([*parts, f"{DESCRIPTION}:\n{description or NONE}"])
