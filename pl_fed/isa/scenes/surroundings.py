"""The surroundings of a scene: walls and grounds that tell a place, and what tells a time; none of it is an entity."""

from collections.abc import Callable, Sequence

import numpy as np

from pl_fed.isa.scenes.words import PLACES, TIMES

Draw = Callable[[str, Sequence[float], str], None]
HORIZON = 0.45
PLAIN = (("#f3ead7", "#d9c7a3"), ("#e7edf2", "#c3ccd6"), ("#efe6ef", "#cdbccd"), ("#e6f0e6", "#c2d1bd"))
GROUNDS = {  # wall or sky, and ground
    "sand": ("#bfe3f7", "#eed9a2"),
    "tiles": ("#dcecee", "#b5a58c"),
    "road": ("#cfdbe6", "#7d8087"),
    "grass": ("#c8e6fa", "#8fc46a"),
    "cross": ("#fbfdfd", "#c9d6d8"),
    "board": ("#f1e4c8", "#b98f5f"),
}
BALLOONS = ("#e4572e", "#29335c", "#f3a712", "#669bbc", "#a8c686")


def draw_surroundings(draw: Draw, signs: Sequence[str], seed: int) -> None:
    """Draw wall, ground and what tells place and time.

    Args:
        draw: Draws a form at numbers in shares of the picture, in a colour.
        signs: Signs of the surroundings.
        seed: Seed of colours and places.
    """
    rng = np.random.default_rng([seed, 0xBA])
    place = next((sign for sign in signs if sign in PLACES), None)
    time = next((sign for sign in signs if sign in TIMES), None)
    plain = PLAIN[int(rng.integers(len(PLAIN)))]
    wall, ground = plain if place is None else GROUNDS[place]
    draw("box", (-0.1, -0.1, 1.1, HORIZON), "#1c2440" if time == "moon" else "#aab4bf" if time == "rain" else wall)
    draw("box", (-0.1, HORIZON, 1.1, 1.1), ground)
    if place is not None:
        _place(draw, place)
    if time is not None:
        _time(draw, time, rng)


def _place(draw: Draw, place: str) -> None:
    if place == "sand":
        draw("box", (-0.1, HORIZON - 0.1, 1.1, HORIZON), "#3f8fc4")
    elif place == "tiles":
        for i in range(1, 10):
            draw("line", (i / 10, 0.2, i / 10, HORIZON), "#8fb0b5")
        for y in (0.2, 0.28, 0.36):
            draw("line", (0.0, y, 1.0, y), "#8fb0b5")
    elif place == "road":
        for i in range(5):
            draw("box", (0.04 + i / 5, 0.7, 0.14 + i / 5, 0.72), "#ffffff")
    elif place == "grass":
        draw("oval", (-0.2, HORIZON - 0.12, 0.5, HORIZON + 0.2), "#7db35a")
        draw("oval", (0.4, HORIZON - 0.09, 1.2, HORIZON + 0.2), "#8fc46a")
    elif place == "cross":
        draw("box", (0.46, 0.1, 0.54, 0.34), "#d62828")
        draw("box", (0.38, 0.18, 0.62, 0.26), "#d62828")
    else:
        draw("box", (0.25, 0.1, 0.75, 0.36), "#2f5d46")
        draw("line", (0.32, 0.18, 0.55, 0.18), "#e8f0ea")
        draw("line", (0.32, 0.25, 0.64, 0.25), "#e8f0ea")


def _time(draw: Draw, time: str, rng: np.random.Generator) -> None:
    spots = rng.uniform(0.0, 1.0, (40, 2)).tolist()
    if time == "moon":
        draw("oval", (0.78, 0.05, 0.9, 0.17), "#f7f1c8")
        for x, y in spots[:14]:
            _dot(draw, x, 0.4 * y, 0.006, "#f7f1c8")
    elif time == "snow":
        for x, y in spots:
            _dot(draw, x, y, 0.009, "#ffffff")
    elif time == "rain":
        for x, y in spots:
            draw("line", (x, y, x - 0.015, y + 0.045), "#5078a8")
    else:
        for i in range(10):
            x, colour = 0.05 + i / 10, BALLOONS[i % len(BALLOONS)]
            if time == "garland":
                draw("line", (x - 0.05, 0.04, x, 0.06, x + 0.05, 0.04), "#2d6a4f")
                _dot(draw, x, 0.07, 0.014, colour)
            elif i % 2 == 0:
                draw("line", (x, 0.1, x, 0.2), "#555555")
                draw("oval", (x - 0.035, 0.02, x + 0.035, 0.11), colour)


def _dot(draw: Draw, x: float, y: float, radius: float, colour: str) -> None:
    draw("oval", (x - radius, y - radius, x + radius, y + radius), colour)
