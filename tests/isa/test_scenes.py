"""Synthetic scenes: the levels they are built for, and what is drawn."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pl_fed.errors import FederatedConfigError
from pl_fed.isa.scenes.compose import compose
from pl_fed.isa.scenes.draw import draw_scene
from pl_fed.isa.scenes.folder import make_scene
from pl_fed.isa.scenes.graph import Clue, Entity, Event, Scene
from pl_fed.isa.scenes.shapes import SHAPES
from pl_fed.isa.scenes.words import SIGNS, VERBS
from pl_fed.metrics import spearman

CELLS = [(entity, semantic) for entity in range(1, 6) for semantic in range(1, 6)]


def scene_of(num_entities: int, num_kinds: int, num_events: int, num_links: int, num_clues: int) -> Scene:
    kinds = list(SHAPES)[:num_kinds]
    look = ("#fff", "#000", "#888")
    entities = tuple(Entity(kinds[i % num_kinds], f"the {i}", 0.1, 0.1, 0.2, look) for i in range(num_entities))
    events = tuple(Event(i, "chases", i + 1, limited=False) for i in range(num_events))
    clues = tuple(Clue("Special time", "moon", ()) for _ in range(num_clues))
    return Scene(0, entities, events, tuple((0, i + 1) for i in range(num_links)), clues)


@pytest.mark.parametrize(
    ("counts", "levels"),
    [
        ((2, 2, 0, 0, 0), (1, 1)),
        ((4, 2, 1, 0, 9), (1, 1)),  # too few kinds; clues without events
        ((4, 3, 2, 0, 0), (2, 2)),
        ((9, 9, 6, 0, 9), (3, 2)),  # many events that have nothing to do with each other
        ((9, 9, 6, 5, 1), (3, 2)),  # links without clues
        ((12, 9, 3, 2, 2), (4, 3)),
        ((16, 11, 5, 4, 4), (4, 4)),
        ((16, 12, 6, 5, 6), (5, 5)),
    ],
)
def test_levels_by_hand(counts: tuple[int, int, int, int, int], levels: tuple[int, int]) -> None:
    scene = scene_of(*counts)
    assert (scene.entity_level, scene.semantic_level) == levels


def test_small_events_do_not_count() -> None:
    scene = scene_of(4, 3, 2, 0, 0)
    running = tuple(replace(event, verb="runs", target=None, limited=True) for event in scene.events)
    assert replace(scene, events=running).semantic_level == 1


@pytest.mark.parametrize(("entity", "semantic"), CELLS)
def test_every_pair_of_levels(entity: int, semantic: int) -> None:
    """And the story holds together: no event twice or onto oneself, reasons come first and share somebody."""
    for seed in range(8):
        scene = compose(entity, semantic, seed)
        assert (scene.entity_level, scene.semantic_level) == (entity, semantic)
        assert scene == compose(entity, semantic, seed)
        assert len(set(scene.events)) == len(scene.events)
        assert len({e.name for e in scene.entities}) == len(scene.entities)
        for event in scene.events:
            verb = VERBS[event.verb]
            assert event.agent != event.target and scene.entities[event.agent].kind in verb.agents
            assert event.limited == (event.target is None)
            assert event.target is None or scene.entities[event.target].kind in verb.targets
        for first, second in scene.links:
            a, b = scene.events[first], scene.events[second]
            assert first < second and {a.agent, a.target} & {b.agent, b.target} - {None}
        assert len({(clue.section, clue.subjects) for clue in scene.clues}) == len(scene.clues)


def test_neither_score_tells_the_other() -> None:
    """A series has each pair once in 25, and what makes one score has no rank correlation with the other."""
    scenes = [make_scene(0, i) for i in range(250)]
    levels = torch.tensor([(s.entity_level, s.semantic_level) for s in scenes])
    assert all(len(set(map(tuple, levels[i : i + 25].tolist()))) == 25 for i in range(0, 250, 25))
    assert float(spearman(levels[:, 0], levels[:, 1])) == pytest.approx(0.0, abs=1e-12)
    num_entities = torch.tensor([len(s.entities) for s in scenes])
    num_events = torch.tensor([len(s.events) for s in scenes])
    num_people = torch.tensor([sum(e.kind in VERBS["scolds"].agents for e in s.entities) for s in scenes])
    assert float(spearman(num_entities, levels[:, 0])) > 0.95 and float(spearman(num_events, levels[:, 1])) > 0.8
    for counts, column in ((num_entities, 1), (num_people, 1), (num_events, 0)):
        assert abs(float(spearman(counts, levels[:, column]))) < 0.15


@pytest.mark.parametrize("levels", [(0, 1), (1, 6)])
def test_no_such_level(levels: tuple[int, int]) -> None:
    with pytest.raises(FederatedConfigError, match="_level` to be one of 1 to 5 but got"):
        compose(*levels, seed=0)


# Pictures.


def pixels(scene: Scene, size: int = 64) -> np.ndarray:
    return np.asarray(draw_scene(scene, size))


def test_pictures_are_a_function_of_the_scene() -> None:
    scene = compose(3, 4, 7)
    np.testing.assert_array_equal(pixels(scene, 224), pixels(scene, 224))
    assert pixels(scene, 224).shape == (224, 224, 3)
    with pytest.raises(FederatedConfigError, match="`size` of at least 32 pixels but got 8"):
        draw_scene(scene, 8)


@pytest.mark.parametrize("kind", SHAPES)
def test_every_kind_can_be_seen(kind: str) -> None:
    """Alone it differs from the empty surroundings, and from every other kind."""
    assert len(SHAPES) >= 25
    scene = Scene(0, (Entity(kind, f"the {kind}", 0.3, 0.4, 0.4, ("#f1c9a5", "#2b2118", "#c44e52")),), (), (), ())
    assert (pixels(scene) != pixels(replace(scene, entities=()))).any(2).mean() > 0.004
    other = next(other for other in SHAPES if other != kind)
    assert (pixels(scene) != pixels(replace(scene, entities=(replace(scene.entities[0], kind=other),)))).any()


@pytest.mark.parametrize(("section", "sign"), [(section, sign) for section, signs in SIGNS.items() for sign in signs])
def test_every_sign_can_be_seen(section: str, sign: str) -> None:
    look = ("#f1c9a5", "#2b2118", "#4c72b0")
    people = tuple(Entity(kind, f"the {kind}", x, 0.4, 0.4, look) for kind, x in (("boy", 0.05), ("girl", 0.55)))
    scene = Scene(0, people, (), (), ())
    subjects = {"Special time": (), "Special location": (), "Character relationship": (0, 1)}.get(section, (1,))
    assert (pixels(scene) != pixels(replace(scene, clues=(Clue(section, sign, subjects),)))).any(2).mean() > 0.001


def test_every_event_and_link_can_be_seen() -> None:
    assert len(VERBS) >= 12
    look = ("#f1c9a5", "#2b2118", "#4c72b0")
    names = (("boy", 0.05), ("ball", 0.4), ("girl", 0.65))
    scene = Scene(0, tuple(Entity(kind, f"the {kind}", x, 0.4, 0.3, look) for kind, x in names), (), (), ())
    seen = [pixels(scene)]
    for name, verb in VERBS.items():
        target = None if not verb.targets else 2 if "girl" in verb.targets else 1
        seen.append(pixels(replace(scene, events=(Event(0, name, target, not verb.targets),))))
    assert len({picture.tobytes() for picture in seen}) == len(VERBS) + 1
    events = (Event(0, "takes", 1, False), Event(2, "scolds", 0, False))
    linked = replace(scene, events=events, links=((0, 1),))
    assert (pixels(linked) != pixels(replace(linked, links=()))).any()
