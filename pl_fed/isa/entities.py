"""Reads the things that a text lists: the objects of an offline description, or the longest list of a sentence.

It knows no nouns. An item of a list is what follows an article or a number, so "a boy with a ball and two dogs" are
three entities of two kinds; things that a text mentions but does not list are not there.
"""

import re

from pl_fed.isa.extractors.offline import OBJECTS
from pl_fed.isa.story import NONE

_OBJECTS = re.compile(rf"^{OBJECTS}: (?P<objects>.*)$", re.MULTILINE)
_NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_COUNTS = {"a": 1, "an": 1, "another": 1, "one": 1, **{word: number for number, word in enumerate(_NUMBERS, 2)}}
_ITEM = re.compile(
    r"\b(?!one (?:can|could|may|might|of|sees?)\b)"  # "One can see" is nobody
    rf"(?P<number>{'|'.join(_COUNTS)}|\d{{1,3}}) (?:other |second |third |fourth |fifth )?"
    r"(?P<name>[^\W\d_].*?)(?= (?:with|of|in|on|at|by|under|behind|beside|near|who|that|which)\b|$)"
)
_SENTENCE = re.compile(r"[.!?;:]\s+|\n")
_BETWEEN = re.compile(r",\s*(?:and\s+)?|\s+and\s+")


def listed_objects(description: str) -> list[str] | None:
    """Return the names of the objects that an offline description lists; None if it has no such list.

    Example:
        >>> listed_objects("Objects: cup (80%); lamp (40%)"), listed_objects("A cup and a lamp.")
        (['cup', 'lamp'], None)
    """
    found = _OBJECTS.search(description)
    if found is None:
        return None
    names = [item.split("(")[0].strip() for item in found["objects"].split(";")]
    return [name for name in names if name not in ("", NONE)]


def listed_entities(description: str) -> list[str]:
    """Return the kind of each entity that a description lists, as often as it is there.

    Args:
        description: Listed objects of the offline describer, or sentences; of these the one that lists the most counts.

    Example:
        >>> listed_entities("There are a boy, a second boy and two dogs. The boy has a ball.")
        ['boy', 'boy', 'dog', 'dog']
    """
    objects = listed_objects(description)
    if objects is not None:
        return objects
    return max((_items(sentence) for sentence in _SENTENCE.split(description.lower())), key=len, default=[])


def _items(sentence: str) -> list[str]:
    kinds = []
    for part in _BETWEEN.split(sentence.strip(" .!?")):
        found = _ITEM.search(part)
        if found is not None:
            number = _COUNTS.get(found["number"]) or int(found["number"])
            kinds += [found["name"] if number == 1 else found["name"].removesuffix("s")] * number
    return kinds
