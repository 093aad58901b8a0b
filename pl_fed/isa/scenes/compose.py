"""Composing a scene for a pair of levels; everything is a function of the seed.

Both levels are drawn apart from each other: every scene has two people at least, and may have small events and a few
clues at any level, so that neither score can be read off the other.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from pl_fed.errors import FederatedConfigError
from pl_fed.isa.scenes import graph
from pl_fed.isa.scenes.graph import Clue, Entity, Event, Scene
from pl_fed.isa.scenes.shapes import PEOPLE, SHAPES, SIZES
from pl_fed.isa.scenes.words import FULL, LIMITED, SIGNS, VERBS

# From the level to the range of (events, links, clues), ends included.
PLANS = {
    1: ((0, 1), (0, 0), (0, 2)),
    2: ((2, 4), (0, 1), (0, 2)),
    3: ((3, 5), (2, 3), (2, 3)),
    4: ((4, 5), (3, 4), (4, 5)),
    5: ((6, graph.MAX_EVENTS), (5, 6), (6, graph.MAX_CLUES)),
}
SKINS = ("#f1c9a5", "#d9a066", "#a86f43", "#6f4a2f", "#ffdbc4")
HAIRS = ("#2b2118", "#6b4423", "#c9a14a", "#9a9a9a", "#8c2f1b")
COATS = ("#c44e52", "#4c72b0", "#55a868", "#8172b3", "#dd8452", "#937860", "#da8bc3", "#4fb3bf")
ORDINALS = ("", "second ", "third ", "fourth ", "fifth ")


def compose(entity_level: int, semantic_level: int, seed: int) -> Scene:
    """Return a scene of these levels.

    Args:
        entity_level: Level of the entity score, 1 to 5.
        semantic_level: Level of the semantic score, 1 to 5.
        seed: Seed of all choices.

    Raises:
        FederatedConfigError: If a level is not one of 1 to 5.

    Example:
        >>> scene = compose(entity_level=2, semantic_level=5, seed=0)
        >>> scene.entity_level, scene.semantic_level
        (2, 5)
    """
    for name, level in (("entity_level", entity_level), ("semantic_level", semantic_level)):
        if level not in PLANS:
            raise FederatedConfigError(f"Expected `{name}` to be one of 1 to 5 but got {level}.")
    rng = np.random.default_rng([seed, entity_level, semantic_level])
    entities = _place(_kinds(entity_level, rng), rng)
    num_events, num_links, num_clues = (int(rng.integers(low, high + 1)) for low, high in PLANS[semantic_level])
    num_links = min(num_links, max(0, num_events - 1))
    events, links = _story(entities, num_events, num_links, rng)
    clues = _clues(entities, num_clues, rng)
    scene = Scene(seed, entities, (*events, *_small_events(entities, events, rng)), links, clues)
    assert (scene.entity_level, scene.semantic_level) == (entity_level, semantic_level)
    return scene


def _pick(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]


def _kinds(level: int, rng: np.random.Generator) -> list[str]:
    """Return the kinds of all entities: two people, then anything, a few kinds twice."""
    low, least_kinds = ((2, 2), *graph.ENTITY_MINIMUMS)[level - 1]
    high = graph.MAX_ENTITIES if level == 5 else graph.ENTITY_MINIMUMS[level - 1][0] - 1
    num = int(rng.integers(low, high + 1))
    kinds = [str(kind) for kind in rng.choice(PEOPLE, 2, replace=False)]
    others = [str(kind) for kind in rng.permutation([kind for kind in SHAPES if kind not in kinds])]
    num_twice = int(rng.integers(0, min(3, num - least_kinds + 1)))
    num_twice = min(num_twice, num - 2)
    kinds += others[: num - 2 - num_twice]
    return kinds + [kinds[int(i)] for i in rng.choice(len(kinds), num_twice, replace=False)]


def _place(kinds: Sequence[str], rng: np.random.Generator) -> tuple[Entity, ...]:
    """Give every entity a cell of a grid on the ground, a name and colours; those in front come last."""
    num_rows = 1 + (len(kinds) > 3) + (len(kinds) > 10)
    num_columns = -(-len(kinds) // num_rows)
    shrink = (1.0, 0.9, 0.72)[num_rows - 1]
    cells = rng.permutation(num_rows * num_columns)[: len(kinds)]
    seen: Counter[str] = Counter()
    found = []
    for kind, cell in zip(kinds, cells, strict=True):
        row, column = divmod(int(cell), num_columns)
        size = SIZES[kind] * shrink
        middle = (column + 0.5 + rng.uniform(-0.12, 0.12)) / num_columns
        ground = (0.82 if num_rows == 1 else 0.62 + 0.34 * row / (num_rows - 1)) + rng.uniform(-0.03, 0.03)
        left = float(np.clip(middle - size / 2, 0.01, 0.99 - size))
        colours = (_pick(rng, SKINS), _pick(rng, HAIRS), _pick(rng, COATS))
        name = f"the {ORDINALS[seen[kind]]}{kind}"
        found.append(Entity(kind, name, round(left, 4), round(float(ground - size), 4), round(size, 4), colours))
        seen[kind] += 1
    return tuple(found)


def _story(
    entities: Sequence[Entity], num_events: int, num_links: int, rng: np.random.Generator
) -> tuple[list[Event], tuple[tuple[int, int], ...]]:
    """Return events; the first ones each follow from an earlier one that they share somebody or something with."""
    events: list[Event] = []
    links = []
    for i in range(num_events):
        options = [event for event in _possible(entities) if event not in events]
        if 0 < i <= num_links:
            reason = i - 1 if rng.random() < 0.7 else int(rng.integers(i))
            options = _answers(events[reason], options)
            links.append((reason, i))
        events.append(options[int(rng.integers(len(options)))])
    return events, tuple(links)


def _possible(entities: Sequence[Entity]) -> list[Event]:
    return [
        Event(a, verb, b, limited=False)
        for verb in FULL
        for a, agent in enumerate(entities)
        if agent.kind in VERBS[verb].agents
        for b, target in enumerate(entities)
        if a != b and target.kind in VERBS[verb].targets
    ]


def _answers(reason: Event, options: Sequence[Event]) -> list[Event]:
    """Return what may follow: trouble is answered, and after an answer there is trouble, if that is possible."""
    related = [e for e in options if {e.agent, e.target} & {reason.agent, reason.target}]
    fitting = [e for e in related if VERBS[e.verb].is_trouble != VERBS[reason.verb].is_trouble]
    return fitting or related


def _small_events(entities: Sequence[Entity], events: Sequence[Event], rng: np.random.Generator) -> list[Event]:
    """Return standing, running and the like, at most two, of those who do nothing else."""
    idle = [i for i, e in enumerate(entities) if e.kind in VERBS["walks"].agents and all(i != x.agent for x in events)]
    num = min(len(idle), int(rng.integers(0, 3)))
    return [Event(int(i), _pick(rng, LIMITED), None, limited=True) for i in rng.permutation(idle)[:num]]


def _clues(entities: Sequence[Entity], num_clues: int, rng: np.random.Generator) -> tuple[Clue, ...]:
    """Return clues: at most one of time, place and relationship, two roles, two states of mind."""
    people = [int(i) for i in rng.permutation([i for i, e in enumerate(entities) if e.kind in PEOPLE])][:2]
    subjects: list[tuple[str, tuple[int, ...]]] = [
        ("Special time", ()),
        ("Special location", ()),
        ("Character relationship", tuple(people)),
        *(("Character role", (i,)) for i in people),
        *(("Mental state", (i,)) for i in people),
    ]
    chosen = sorted(int(i) for i in rng.permutation(len(subjects))[:num_clues])
    return tuple(Clue(subjects[i][0], _pick(rng, list(SIGNS[subjects[i][0]])), subjects[i][1]) for i in chosen)
