"""Drawing a scene with Pillow: surroundings, entities, signs on people, and marks for events and links.

Everything is drawn at three times the size and reduced, which smooths the edges; a picture is a function of the scene.
"""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from pl_fed.errors import FederatedConfigError
from pl_fed.isa.scenes.graph import Entity, Event, Scene
from pl_fed.isa.scenes.shapes import PEOPLE, SHAPES
from pl_fed.isa.scenes.surroundings import draw_surroundings
from pl_fed.isa.scenes.wear import draw_sign, head
from pl_fed.isa.scenes.words import FULL, LIMITED

OVERSAMPLING = 3
SMALLEST = 32  # pixels
INK = "#1d2026"
Point = tuple[float, float]
MARKS = ("#d1495b", "#00798c", "#edae49", "#66a182", "#2e4057", "#8d5a97", "#c0561f")  # by verb, with its shape


class Canvas:
    """A picture whose places are shares of its side.

    Args:
        size: Width and height in pixels.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.image = Image.new("RGB", (size, size), "#ffffff")
        self._draw = ImageDraw.Draw(self.image)

    def _pixels(self, numbers: Sequence[float]) -> list[float]:
        return [number * self.size for number in numbers]

    def shape(self, form: str, numbers: Sequence[float], colour: str, stroke: float = 0.012) -> None:
        """Draw an `oval`, `ring`, `box`, `poly` or `line`."""
        at, width = self._pixels(numbers), max(1, round(stroke * self.size))
        if form == "oval":
            self._draw.ellipse(at, fill=colour, outline=INK, width=max(1, width // 3))
        elif form == "ring":
            self._draw.ellipse(at, outline=colour, width=width)
        elif form == "box":
            self._draw.rectangle(at, fill=colour, outline=INK, width=max(1, width // 3))
        elif form == "poly":
            self._draw.polygon(at, fill=colour, outline=INK, width=max(1, width // 3))
        else:
            self._draw.line(at, fill=colour, width=width, joint="curve")


def check_size(size: int) -> None:
    """Refuse pictures in which nothing could be seen.

    Raises:
        FederatedConfigError: If `size` is too small.
    """
    if size < SMALLEST:
        raise FederatedConfigError(f"Expected `size` of at least {SMALLEST} pixels but got {size}.")


def draw_scene(scene: Scene, size: int = 224) -> Image.Image:
    """Draw a scene.

    Args:
        scene: What to draw.
        size: Width and height in pixels.

    Raises:
        FederatedConfigError: If `size` is too small to see anything.
    """
    check_size(size)
    canvas = Canvas(OVERSAMPLING * size)
    draw_surroundings(canvas.shape, [clue.sign for clue in scene.clues if not clue.subjects], scene.seed)
    order = sorted(range(len(scene.entities)), key=lambda i: scene.entities[i].top + scene.entities[i].size)
    for i in order:
        _entity(canvas, scene.entities[i])
        for clue in scene.clues:
            if i in clue.subjects:
                draw_sign(canvas.shape, scene.entities[i], clue.sign)
    middles = [_event(canvas, scene, number, event) for number, event in enumerate(scene.events)]
    for first, second in scene.links:
        _dots(canvas, middles[first], middles[second])
    return canvas.image.resize((size, size), Image.Resampling.LANCZOS)


def _entity(canvas: Canvas, entity: Entity) -> None:
    own = dict(zip(("skin", "hair", "coat"), entity.colours, strict=True))
    for form, numbers, colour in SHAPES[entity.kind]:
        corner = (entity.left, entity.top)
        at = [corner[i % 2] + number * entity.size for i, number in enumerate(numbers)]
        canvas.shape(form, at, own.get(colour, colour), 0.06 * entity.size)
    if entity.kind in PEOPLE:
        _eyes(canvas, entity)


def _eyes(canvas: Canvas, entity: Entity) -> None:
    x, y, unit = head(entity)
    for side in (-1, 1):
        canvas.shape("oval", (x + side * 0.4 * unit - 0.003, y - 0.003, x + side * 0.4 * unit + 0.003, y + 0.003), INK)


def _event(canvas: Canvas, scene: Scene, number: int, event: Event) -> Point:
    """Draw an event as an arrow with the mark of its verb, or strokes behind who moves; return the mark's place."""
    agent = scene.entities[event.agent]
    if event.target is None:
        for step in range(1 + LIMITED.index(event.verb)):
            x, y = agent.left - 0.01, agent.top + agent.size * (0.45 + 0.12 * step)
            canvas.shape("line", (x - 0.03, y, x, y), INK, 0.006)
        return agent.centre
    (x0, y0), (x1, y1) = agent.centre, scene.entities[event.target].centre
    bend = 0.1 + 0.045 * number * (-1) ** number  # events of the same two do not hide each other
    length = math.hypot(x1 - x0, y1 - y0) or 1.0
    top = float(np.clip((y0 + y1) / 2 - bend * (x1 - x0) / length - 0.1, 0.04, 0.96))
    middle = float(np.clip((x0 + x1) / 2 + bend * (y1 - y0) / length, 0.04, 0.96)), top
    colour = MARKS[FULL.index(event.verb) % len(MARKS)]
    path = _curve((x0, y0), middle, (x1, y1))
    canvas.shape("line", [number for point in path for number in point], colour, 0.007)
    _arrow_head(canvas, path[-3], path[-1], colour)
    on_path = path[len(path) // 2]
    _mark(canvas, on_path, FULL.index(event.verb), colour)
    return on_path


def _curve(start: Point, middle: Point, end: Point) -> list[Point]:
    """Return points of a quadratic Bézier curve."""
    steps = [step / 16 for step in range(17)]
    return [
        (
            (1 - t) ** 2 * start[0] + 2 * t * (1 - t) * middle[0] + t**2 * end[0],
            (1 - t) ** 2 * start[1] + 2 * t * (1 - t) * middle[1] + t**2 * end[1],
        )
        for t in steps
    ]


def _arrow_head(canvas: Canvas, before: Point, end: Point, colour: str) -> None:
    angle = math.atan2(end[1] - before[1], end[0] - before[0])
    points = [end]
    for turn in (2.6, -2.6):
        points.append((end[0] + 0.03 * math.cos(angle + turn), end[1] + 0.03 * math.sin(angle + turn)))
    canvas.shape("poly", [number for point in points for number in point], colour)


def _mark(canvas: Canvas, at: Point, verb_idx: int, colour: str) -> None:
    """Draw a verb's mark: a polygon of 3 to 5 corners, inside a ring for every second seven of the verbs."""
    corners = 3 + verb_idx % 3
    angles = [2 * math.pi * i / corners - math.pi / 2 for i in range(corners)]
    points = [number for a in angles for number in (at[0] + 0.022 * math.cos(a), at[1] + 0.022 * math.sin(a))]
    canvas.shape("poly", points, colour)
    if verb_idx >= len(MARKS):
        canvas.shape("ring", (at[0] - 0.03, at[1] - 0.03, at[0] + 0.03, at[1] + 0.03), colour, 0.005)


def _dots(canvas: Canvas, first: Point, second: Point) -> None:
    """Draw a causal link: dots from the reason that grow towards what follows."""
    for step in range(1, 8):
        share, radius = step / 8, 0.003 + 0.0008 * step
        x, y = (a + share * (b - a) for a, b in zip(first, second, strict=True))
        canvas.shape("oval", (x - radius, y - radius, x + radius, y + radius), INK)
