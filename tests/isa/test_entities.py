"""Entities that texts list, counted by hand."""

import pytest

from pl_fed.isa.entities import listed_entities, listed_objects
from pl_fed.isa.scenes.folder import make_scene
from pl_fed.isa.scenes.tell import Teller


@pytest.mark.parametrize(
    ("description", "kinds"),
    [
        ("Objects: cup (81%, whole picture); lamp (40%, upper left); cup (30%, top)\nColours: red 50%", "cup lamp cup"),
        ("Objects: None\nA list of a cat and a dog", ""),
        ("The picture shows a man and a grandmother.", "man grandmother"),
        ("One can see an umbrella, a boy, a second boy, and a bed.", "umbrella boy boy bed"),
        ("There are two dogs, 3 birds and one cat. The cat has a tail.", "dog dog bird bird bird cat"),
        ("It rains. A boy with a ball, a girl who runs and another girl in a boat.", "boy girl girl"),
        ("A girl sits. In the picture are a cup and a table!", "cup table"),
        ("The boy runs after the dog and is happy.", ""),
        ("A polar bear and an ice cream", "polar-bear ice-cream"),
        ("", ""),
    ],
)
def test_by_hand(description: str, kinds: str) -> None:
    assert [kind.replace(" ", "-") for kind in listed_entities(description)] == kinds.split()


def test_of_objects() -> None:
    assert listed_objects("Objects: None") == [] and listed_objects("Plain Objects: cup") is None


def test_of_scenes() -> None:
    """Every thing of a scene with its kind, from either text."""
    for image_idx in range(25):
        scene = make_scene(0, image_idx)
        teller, expected = Teller(scene), [entity.kind for entity in scene.entities]
        assert listed_entities(teller.naive()) == expected
        assert listed_entities(teller.chain_of_thought().split("Description: ")[1]) == expected
