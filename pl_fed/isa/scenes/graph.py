"""A scene as a graph: entities, events between them, causal links between events, and clues; and the levels it has.

The levels follow the rubric of image semantic assessment (arXiv 2501.01982); the numbers that stand for its words
("few", "several") are ours. A level is the highest whose minimums are all met.
"""

from collections.abc import Sequence
from dataclasses import dataclass

# Entities and kinds of entities from which levels 2, 3, 4 and 5 begin.
ENTITY_MINIMUMS = ((4, 3), (7, 6), (11, 9), (16, 12))
# Events, links between them and clues alike. So events without links and clues are 2 at most.
SEMANTIC_MINIMUMS = ((2, 0, 0), (3, 2, 2), (4, 3, 4), (6, 5, 6))
MAX_ENTITIES = 20
MAX_EVENTS = 7
MAX_CLUES = 7


@dataclass(frozen=True)
class Entity:
    """A person, an animal or a thing.

    Args:
        kind: One of `pl_fed.isa.scenes.shapes.SHAPES`.
        name: How texts call it, with an article; no two entities of a scene have the same.
        left: Left side of its box, as a share of the picture.
        top: Top side.
        size: Width and height.
        colours: Of skin, hair and coat, where the kind has them.
    """

    kind: str
    name: str
    left: float
    top: float
    size: float
    colours: tuple[str, str, str]

    @property
    def centre(self) -> tuple[float, float]:
        """The middle of its box."""
        return self.left + self.size / 2, self.top + self.size / 2


@dataclass(frozen=True)
class Event:
    """Somebody does something.

    Args:
        agent: Index of the entity that acts.
        verb: One of `pl_fed.isa.scenes.words.VERBS`.
        target: Index of the entity that it is done to; None for what has none.
        limited: Whether it is too little to count as an event, like standing or running.
    """

    agent: int
    verb: str
    target: int | None
    limited: bool


@dataclass(frozen=True)
class Clue:
    """Something to see that tells a time, a place, a role, a relationship or a state of mind.

    Args:
        section: Section of the text.
        sign: What is drawn, one of `pl_fed.isa.scenes.words`.
        subjects: Indices of the entities that it is drawn on; none for the surroundings.
    """

    section: str
    sign: str
    subjects: tuple[int, ...]


@dataclass(frozen=True)
class Scene:
    """A synthetic scene.

    Args:
        seed: Seed that it was composed from.
        entities: What is in it.
        events: What happens.
        links: Pairs of indices of events: the first is the reason for the second.
        clues: What else there is to see.
    """

    seed: int
    entities: tuple[Entity, ...]
    events: tuple[Event, ...]
    links: tuple[tuple[int, int], ...]
    clues: tuple[Clue, ...]

    @property
    def entity_level(self) -> int:
        """Level of the entity score, 1 to 5."""
        return _level((len(self.entities), len({entity.kind for entity in self.entities})), ENTITY_MINIMUMS)

    @property
    def semantic_level(self) -> int:
        """Level of the semantic score, 1 to 5."""
        num_events = sum(not event.limited for event in self.events)
        return _level((num_events, len(self.links), len(self.clues)), SEMANTIC_MINIMUMS)


def _level(counts: Sequence[int], minimums: Sequence[Sequence[int]]) -> int:
    met = [all(count >= least for count, least in zip(counts, row, strict=True)) for row in minimums]
    return 1 + max((i for i, ok in enumerate(met, 1) if ok), default=0)
