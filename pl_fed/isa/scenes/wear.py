"""Signs on people: hats, what two of them wear alike, and faces."""

from collections.abc import Callable, Sequence

from pl_fed.isa.scenes.graph import Entity
from pl_fed.isa.scenes.shapes import SHAPES, Shape

Draw = Callable[[str, Sequence[float], str], None]

# In heads: 0, 0 is the middle of the face, 1 half of the head's height, y downwards.
WEAR: dict[str, tuple[Shape, ...]] = {
    "white hat": (
        ("box", (-0.8, -1.9, 0.8, -0.9), "#ffffff"),
        ("oval", (-1.1, -2.5, 1.1, -1.5), "#ffffff"),
    ),
    "blue cap": (
        ("poly", (-1.0, -0.7, -0.8, -1.6, 0.8, -1.6, 1.0, -0.7), "#1f4e9c"),
        ("box", (-0.2, -1.3, 0.2, -0.9), "#f2c94c"),
    ),
    "head mirror": (
        ("line", (-1.0, -0.6, 1.0, -0.6), "#5a5f66"),
        ("oval", (-0.4, -1.3, 0.4, -0.5), "#e8eef5"),
    ),
    "straw hat": (
        ("oval", (-1.9, -1.1, 1.9, -0.5), "#e0b84f"),
        ("box", (-0.8, -1.6, 0.8, -0.8), "#e0b84f"),
    ),
    "scarf": (
        ("box", (-1.0, 0.9, 1.0, 1.4), "#c0392b"),
        ("box", (-0.4, 0.9, 0.0, 1.4), "#ffffff"),
        ("box", (0.3, 0.9, 0.6, 1.4), "#ffffff"),
    ),
    "heart": (
        ("oval", (-0.5, 1.6, 0.05, 2.1), "#ff4d6d"),
        ("oval", (-0.05, 1.6, 0.5, 2.1), "#ff4d6d"),
        ("poly", (-0.5, 1.9, 0.5, 1.9, 0.0, 2.6), "#ff4d6d"),
    ),
    "armband": (("box", (0.8, 1.3, 1.5, 1.9), "#e02020"),),
    "smile": (("line", (-0.5, 0.3, -0.25, 0.55, 0.25, 0.55, 0.5, 0.3), "#7a1f1f"),),
    "tear": (
        ("line", (-0.4, 0.6, -0.15, 0.4, 0.15, 0.4, 0.4, 0.6), "#7a1f1f"),
        ("oval", (-0.65, 0.15, -0.35, 0.75), "#3f8fe0"),
        ("oval", (0.35, 0.15, 0.65, 0.75), "#3f8fe0"),
    ),
    "brows": (
        ("line", (-0.7, -0.5, -0.15, -0.2), "#101010"),
        ("line", (0.7, -0.5, 0.15, -0.2), "#101010"),
        ("line", (-0.35, 0.5, 0.35, 0.5), "#7a1f1f"),
    ),
    "open mouth": (
        ("oval", (-0.3, 0.2, 0.3, 0.75), "#3a0d0d"),
        ("line", (-1.3, 1.4, -1.7, -0.4), "skin"),
        ("line", (1.3, 1.4, 1.7, -0.4), "skin"),
    ),
}


def head(entity: Entity) -> tuple[float, float, float]:
    """Return the middle of a person's head and half of its height, in shares of the picture."""
    left, top, right, bottom = next(
        at for form, at, colour in SHAPES[entity.kind] if (form, colour) == ("oval", "skin")
    )
    x, y = entity.left + (left + right) / 2 * entity.size, entity.top + (top + bottom) / 2 * entity.size
    return x, y, (bottom - top) / 2 * entity.size


def draw_sign(draw: Draw, person: Entity, sign: str) -> None:
    """Draw a sign on a person.

    Args:
        draw: Draws a form at numbers in shares of the picture, in a colour.
        person: Who wears it.
        sign: One of `WEAR`.
    """
    x, y, unit = head(person)
    for form, numbers, colour in WEAR[sign]:
        at = [(x, y)[i % 2] + unit * number for i, number in enumerate(numbers)]
        draw(form, at, person.colours[0] if colour == "skin" else colour)
