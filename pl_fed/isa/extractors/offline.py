"""Describes images without a vision-language model: names of single objects, colours, light and layout.

It understands no events, relations or feelings, and its texts say so. What it is for: the whole chain works on a
machine that reaches no hub, and entity counts are a baseline that a real extractor has to beat.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.fabric.utilities import rank_zero_warn

from pl_fed.assets import AssetFetchError
from pl_fed.errors import FederatedConfigError, first_line
from pl_fed.isa.extractor import Extractor, check_mode
from pl_fed.isa.extractors.classifier import NAMES, WEIGHTS, NamedObject, ObjectNamer
from pl_fed.isa.extractors.statistics import Statistics, measure
from pl_fed.isa.images import LoadedImage
from pl_fed.isa.story import NONE, Finding, Mode, Story, render

VERSION = 1  # part of every cache key: raise it when the same image gives another text than before
OBJECTS = "Objects"  # begins the line that lists them
_DARK = 0.2
_LIGHTS = ((_DARK, "dark"), (0.4, "rather dark"), (0.6, "medium"), (0.8, "bright"), (1.01, "very bright"))
# The few classes of ImageNet that are places or people.
_PLACES = frozenset(
    re.split(
        "; *",
        "bakery; barbershop; barn; beach; boathouse; bookstore; butcher shop; candy store; castle; church; cliff;"
        "coral reef; dock; greenhouse; grocery store; home theater; lakeshore; library; monastery; mosque; mountain;"
        "movie theater; palace; patio; pier; planetarium; prison; restaurant; shoe store; stage; tobacco shop;"
        "toy store; valley; volcano",
    )
)
_PEOPLE = frozenset({"baseball player", "bridegroom", "scuba diver"})
LIMITS = "This text comes from {source}: it does not understand events, relations, causes or feelings."


class OfflineDescriber(Extractor):
    """Writes what statistics and an ImageNet classifier say of an image.

    Args:
        classifier: Whether to name objects; the classifier is fetched once, and without it statistics remain.
        threshold: Probability from which on an object is named.
    """

    def __init__(self, classifier: bool = True, threshold: float = 0.3) -> None:
        if not 0 < threshold <= 1:
            raise FederatedConfigError(
                f"Expected `threshold` above 0 and at most 1 but got {threshold}: it is a probability."
            )
        self._wanted, self._threshold = classifier, threshold
        self._namer: ObjectNamer | None = None

    @property
    def settings(self) -> Mapping[str, Any]:
        """Whether the classifier could be had counts: texts without it must not pass for those with it."""
        namer = self._load()
        options = {"threshold": self._threshold, "classifier": [WEIGHTS, NAMES]} if namer else {"classifier": None}
        return {"extractor": type(self).__name__, "version": VERSION, **options}

    def extract(self, image: LoadedImage, mode: Mode) -> str:
        """Return a description; by sections, the same with the few clues that a class name can give."""
        check_mode(mode)
        namer = self._load()
        objects = None if namer is None else namer.name(image.pixels)
        found = measure(image.pixels)
        description = describe(found, objects)
        return description if mode == "naive" else render(Story(_findings(found, objects or []), description))

    def _load(self) -> ObjectNamer | None:
        if self._wanted and self._namer is None:
            try:
                self._namer = ObjectNamer.load(self._threshold)
            except AssetFetchError as error:
                self._wanted = False
                reason = first_line(error)
                rank_zero_warn(f"OfflineDescriber names no objects: its classifier could not be fetched ({reason}).")
        return self._namer


def describe(found: Statistics, objects: Sequence[NamedObject] | None) -> str:
    """Write measurements and objects as a text.

    Args:
        found: The measurements.
        objects: What the classifier named; None if there is no classifier.
    """
    # Without a classifier too: the words below are no things in the picture, and must not be counted as such.
    named = "; ".join(f"{o.name} ({o.probability:.0%}, {_place(o)})" for o in objects or [])
    lines = [f"{OBJECTS}: {named or NONE}"]
    colours = ", ".join(f"{name} {share:.0%}" for name, share in found.colours)
    light = next(word for limit, word in _LIGHTS if found.brightness < limit)
    contrast = "low" if found.contrast < 0.15 else "high" if found.contrast > 0.28 else "medium"
    lines += [f"Colours: {colours or 'many, none of them large'}", f"Light: {light}, contrast {contrast}"]
    lines.append(f"Layout: edges on {found.detail:.0%} of the picture, most of them at {_join(found.busy)}")
    source = "image statistics alone" if objects is None else "a classifier of single objects and image statistics"
    return "\n".join([*lines, LIMITS.format(source=source)])


def _findings(found: Statistics, objects: Sequence[NamedObject]) -> dict[str, Finding]:
    clues = {
        "special_time": ["the picture is dark"] if found.brightness < _DARK else [],
        "special_location": [f"looks like: {o.name}" for o in objects if o.name in _PLACES],
        "character_role": [f"looks like: {o.name}" for o in objects if o.name in _PEOPLE],
    }
    return {key: Finding(tuple(seen)) for key, seen in clues.items() if seen}


def _place(found: NamedObject) -> str:
    return "whole picture" if found.place == "whole" else found.place


def _join(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "no place in particular"
