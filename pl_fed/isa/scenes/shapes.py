"""What each kind of entity looks like: plain shapes in a box of its own, one unit wide and high, y downwards.

A shape is (form, numbers, colour): `oval` and `box` have left, top, right and bottom, `poly` has points, `line` has
points and is drawn with a stroke. The colours ``skin``, ``hair`` and ``coat`` are the entity's own.
"""

Shape = tuple[str, tuple[float, ...], str]

GREY, BROWN, DARK, LEAF = "#8a8f98", "#8a5a2b", "#3b3f46", "#2f8f46"


def _person(height: float, dress: bool = False) -> tuple[Shape, ...]:
    """Return a standing figure whose head begins at ``1 - height``."""
    top = 1 - height
    head, hip = top + 0.26 * height, top + 0.66 * height
    skirt = (0.36, head, 0.64, head, 0.76, hip + 0.08, 0.24, hip + 0.08)
    return (
        ("line", (0.42, hip, 0.38, 1.0), "#30343c"),
        ("line", (0.58, hip, 0.62, 1.0), "#30343c"),
        ("poly", skirt, "coat") if dress else ("box", (0.34, head, 0.66, hip), "coat"),
        ("line", (0.34, head + 0.04, 0.18, hip - 0.04), "skin"),
        ("line", (0.66, head + 0.04, 0.82, hip - 0.04), "skin"),
        ("oval", (0.5 - 0.13, top, 0.5 + 0.13, head), "skin"),
        ("poly", (0.37, top + 0.1 * height, 0.5, top - 0.03, 0.63, top + 0.1 * height), "hair"),
    )


def _beast(ears: bool, tail: float, neck: float) -> tuple[Shape, ...]:
    """Return an animal on four legs, looking to the right."""
    legs = tuple(("line", (x, 0.7, x, 1.0), "coat") for x in (0.22, 0.34, 0.6, 0.7))
    head = 0.45 - neck
    shapes: tuple[Shape, ...] = (
        *legs,
        ("oval", (0.14, 0.48, 0.76, 0.8), "coat"),
        ("line", (0.68, 0.6, 0.8, head + 0.1), "coat"),
        ("oval", (0.68, head - 0.08, 1.0, head + 0.2), "coat"),
        ("line", (0.16, 0.56, 0.0, 0.56 - tail), "coat"),
        ("oval", (0.86, head, 0.9, head + 0.04), "#101010"),
    )
    return (*shapes, ("poly", (0.72, head - 0.02, 0.76, head - 0.22, 0.84, head - 0.04), "coat")) if ears else shapes


SHAPES: dict[str, tuple[Shape, ...]] = {
    "man": _person(1.0),
    "woman": _person(0.96, dress=True),
    "boy": _person(0.72),
    "girl": _person(0.7, dress=True),
    "grandmother": (*_person(0.88, dress=True), ("line", (0.86, 0.55, 0.9, 1.0), BROWN)),
    "dog": _beast(ears=False, tail=0.18, neck=0.05),
    "cat": _beast(ears=True, tail=0.4, neck=0.02),
    "horse": _beast(ears=True, tail=-0.2, neck=0.28),
    "rabbit": (*_beast(ears=False, tail=0.02, neck=0.0), ("oval", (0.74, 0.02, 0.81, 0.42), "coat")),
    "bird": (
        ("oval", (0.2, 0.4, 0.75, 0.75), "coat"),
        ("oval", (0.62, 0.25, 0.88, 0.52), "coat"),
        ("poly", (0.86, 0.36, 1.0, 0.42, 0.86, 0.46), "#e0992b"),
        ("poly", (0.3, 0.5, 0.55, 0.5, 0.25, 0.1), "coat"),
    ),
    "table": (
        ("box", (0.0, 0.35, 1.0, 0.48), BROWN),
        ("line", (0.1, 0.48, 0.1, 1.0), BROWN),
        ("line", (0.9, 0.48, 0.9, 1.0), BROWN),
    ),
    "chair": (
        ("box", (0.2, 0.5, 0.8, 0.62), BROWN),
        ("line", (0.24, 0.05, 0.24, 1.0), BROWN),
        ("line", (0.76, 0.6, 0.76, 1.0), BROWN),
    ),
    "bed": (
        ("box", (0.0, 0.5, 1.0, 0.8), "#9fb8d6"),
        ("box", (0.0, 0.25, 0.08, 1.0), BROWN),
        ("oval", (0.1, 0.38, 0.35, 0.56), "#ffffff"),
    ),
    "lamp": (
        ("poly", (0.3, 0.05, 0.7, 0.05, 0.85, 0.4, 0.15, 0.4), "#f2c94c"),
        ("line", (0.5, 0.4, 0.5, 0.95), DARK),
        ("box", (0.3, 0.93, 0.7, 1.0), DARK),
    ),
    "shelf": (
        ("box", (0.05, 0.0, 0.95, 1.0), "#b98a56"),
        ("box", (0.15, 0.1, 0.85, 0.45), "#f4ead9"),
        ("box", (0.15, 0.55, 0.85, 0.9), "#f4ead9"),
    ),
    "ball": (("oval", (0.15, 0.15, 0.85, 0.85), "#d64545"), ("line", (0.15, 0.5, 0.85, 0.5), "#ffffff")),
    "book": (
        ("poly", (0.05, 0.3, 0.5, 0.4, 0.5, 0.9, 0.05, 0.8), "#3f6fb5"),
        ("poly", (0.95, 0.3, 0.5, 0.4, 0.5, 0.9, 0.95, 0.8), "#5b8bd0"),
    ),
    "cup": (
        ("box", (0.2, 0.3, 0.7, 0.9), "#f7f7f2"),
        ("line", (0.7, 0.42, 0.88, 0.5, 0.7, 0.7), DARK),
        ("line", (0.2, 0.3, 0.7, 0.3), DARK),
    ),
    "ladder": (
        ("line", (0.3, 0.0, 0.2, 1.0), BROWN),
        ("line", (0.7, 0.0, 0.8, 1.0), BROWN),
        *(("line", (0.25, y, 0.75, y), BROWN) for y in (0.2, 0.45, 0.7)),
    ),
    "umbrella": (
        ("poly", (0.0, 0.45, 0.2, 0.15, 0.5, 0.02, 0.8, 0.15, 1.0, 0.45), "#7b4fa3"),
        ("line", (0.5, 0.4, 0.5, 0.95, 0.62, 0.95), DARK),
    ),
    "bucket": (
        ("poly", (0.15, 0.35, 0.85, 0.35, 0.72, 1.0, 0.28, 1.0), "#5aa0c8"),
        ("line", (0.15, 0.35, 0.5, 0.05, 0.85, 0.35), DARK),
    ),
    "vase": (
        ("poly", (0.35, 0.3, 0.65, 0.3, 0.8, 0.65, 0.62, 1.0, 0.38, 1.0, 0.2, 0.65), "#2a9d8f"),
        ("line", (0.5, 0.3, 0.5, 0.05), LEAF),
    ),
    "cake": (
        ("box", (0.1, 0.5, 0.9, 1.0), "#f4c6d7"),
        ("box", (0.1, 0.45, 0.9, 0.6), "#ffffff"),
        ("line", (0.5, 0.2, 0.5, 0.45), "#d64545"),
    ),
    "kite": (
        ("poly", (0.5, 0.0, 0.9, 0.4, 0.5, 0.8, 0.1, 0.4), "#ee7d31"),
        ("line", (0.5, 0.8, 0.6, 0.9, 0.45, 1.0), DARK),
    ),
    "basket": (
        ("poly", (0.1, 0.5, 0.9, 0.5, 0.75, 1.0, 0.25, 1.0), "#c79a5b"),
        ("line", (0.15, 0.5, 0.5, 0.1, 0.85, 0.5), "#c79a5b"),
    ),
    "bicycle": (
        ("ring", (0.0, 0.5, 0.42, 1.0), DARK),
        ("ring", (0.58, 0.5, 1.0, 1.0), DARK),
        ("line", (0.21, 0.75, 0.4, 0.4, 0.72, 0.4, 0.79, 0.75), "#d64545"),
    ),
    "car": (
        ("box", (0.0, 0.45, 1.0, 0.8), "#4c78a8"),
        ("poly", (0.2, 0.45, 0.32, 0.2, 0.68, 0.2, 0.8, 0.45), "#bcd3e8"),
        ("oval", (0.12, 0.68, 0.36, 0.96), DARK),
        ("oval", (0.64, 0.68, 0.88, 0.96), DARK),
    ),
    "tree": (("box", (0.42, 0.6, 0.58, 1.0), BROWN), ("oval", (0.08, 0.0, 0.92, 0.68), LEAF)),
    "flower": (
        ("line", (0.5, 0.4, 0.5, 1.0), LEAF),
        ("oval", (0.25, 0.05, 0.75, 0.5), "#e667a0"),
        ("oval", (0.4, 0.18, 0.6, 0.38), "#f2c94c"),
    ),
    "house": (
        ("box", (0.1, 0.45, 0.9, 1.0), "#e3cfa9"),
        ("poly", (0.0, 0.45, 0.5, 0.0, 1.0, 0.45), "#a8442f"),
        ("box", (0.42, 0.65, 0.6, 1.0), BROWN),
    ),
    "boat": (
        ("poly", (0.0, 0.65, 1.0, 0.65, 0.8, 0.95, 0.2, 0.95), BROWN),
        ("poly", (0.5, 0.05, 0.5, 0.6, 0.9, 0.6), "#ffffff"),
        ("line", (0.5, 0.0, 0.5, 0.65), DARK),
    ),
    "fence": (
        ("line", (0.0, 0.45, 1.0, 0.45), "#d9d2c0"),
        ("line", (0.0, 0.75, 1.0, 0.75), "#d9d2c0"),
        *(("line", (x, 0.25, x, 1.0), "#d9d2c0") for x in (0.1, 0.37, 0.63, 0.9)),
    ),
    "box": (("box", (0.1, 0.3, 0.9, 1.0), "#cfa56d"), ("line", (0.1, 0.5, 0.9, 0.5), BROWN)),
    "window": (
        ("box", (0.1, 0.1, 0.9, 0.9), "#cfe6f5"),
        ("line", (0.5, 0.1, 0.5, 0.9), DARK),
        ("line", (0.1, 0.5, 0.9, 0.5), DARK),
    ),
}
PEOPLE = ("man", "woman", "boy", "girl", "grandmother")
ANIMALS = ("dog", "cat", "horse", "rabbit", "bird")
THINGS = tuple(kind for kind in SHAPES if kind not in PEOPLE + ANIMALS)
SIZES = {  # of the box, as a share of the picture
    **dict.fromkeys(SHAPES, 0.13),
    **{"man": 0.3, "woman": 0.3, "boy": 0.28, "girl": 0.28, "grandmother": 0.29, "horse": 0.24, "dog": 0.18},
    **{"table": 0.2, "bed": 0.24, "shelf": 0.2, "car": 0.24, "tree": 0.28, "house": 0.3, "ladder": 0.24, "boat": 0.2},
    **{"bicycle": 0.2, "fence": 0.2, "cat": 0.15, "chair": 0.17, "lamp": 0.16, "window": 0.18, "rabbit": 0.13},
}
