"""The text of a story in sections: numbered clues and what follows from them, then the description."""

from collections.abc import Mapping
from dataclasses import dataclass

SECTIONS = (
    "Special time",
    "Special location",
    "Character role",
    "Character relationship",
    "High-level event",
    "Event causal relationship",
    "Mental state",
)
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
    r"""Write a story with every section, ``None`` where there is nothing to say.

    Args:
        sections: Reasonings by section; one that is left out is empty.
        description: The story.

    Example:
        >>> reasoning = Reasoning(("A moon is in the sky.",), "It is night.")
        >>> print(story_text({"Special time": (reasoning,)}, "A boy runs.").partition("\n\n")[0])
        Special time
        Clue(s):
        1. A moon is in the sky.
        Conclusion: It is night.
    """
    parts = [_section(name, sections.get(name, ())) for name in SECTIONS]
    return "\n\n".join([*parts, f"Description: {description or NONE}"])


def _section(name: str, reasonings: tuple[Reasoning, ...]) -> str:
    clues = [clue for reasoning in reasonings for clue in reasoning.clues]
    numbered = [f"{number}. {clue}" for number, clue in enumerate(clues, 1)]
    conclusion = " ".join(reasoning.conclusion for reasoning in reasonings)
    return "\n".join([name, "Clue(s):", *(numbered or [NONE]), f"Conclusion: {conclusion or NONE}"])
