"""The five levels of both scores, and what a score means."""

from dataclasses import dataclass

NUM_LEVELS = 5


@dataclass(frozen=True)
class Rubric:
    """One score.

    Args:
        key: Its name in tables.
        title: Its name for people.
        short: Its abbreviation.
        direction: What a higher value means.
        levels: What an image of each level is like, from 1 to 5.
        rules: What decides between neighbouring levels; empty if nothing more.
    """

    key: str
    title: str
    short: str
    direction: str
    levels: tuple[str, str, str, str, str]
    rules: str = ""


ENTITY = Rubric(
    "entity",
    "Entity Score",
    "ES",
    "higher is more crowded, the middle is best",
    (
        "very few things, people or animals",
        "some more, but still a limited number",
        "a rich variety, well filled without being crowded",
        "even more, and somewhat crowded",
        "very many of many kinds, very crowded",
    ),
)
SEMANTIC = Rubric(
    "semantic",
    "Semantic Score",
    "SS",
    "higher is richer",
    (
        "no or hardly any event, no connections, no visual clues, no story",
        "some events, few connections and few clues, an incomplete story",
        "some events with some connections and some clues, a complete and interesting story",
        "some events with several connections and several clues, a complete story",
        "an abundance of events, connections and clues, a rich story",
    ),
    "A single plain action such as running is level 1. Events that have nothing to do with each other, with hardly any"
    " clues, are level 2. Level 3 and above needs both connections between events and visual clues.",
)
RUBRICS = (ENTITY, SEMANTIC)


def to_level(score: float) -> float:
    """Return a score of 0 to 1 on the scale of 1 to 5.

    Example:
        >>> to_level(0.0), to_level(0.5), to_level(1.0)
        (1.0, 3.0, 5.0)
    """
    return 1 + (NUM_LEVELS - 1) * score
