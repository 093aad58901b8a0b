"""Reads what a model wrote about an image into a `Story`, whatever it made of the layout that it was asked for.

Headings may be numbered, in markdown, in another order or missing, and clues need no numbers. A text without any
heading is a description. What was read once reads the same after `render`.
"""

import re
from collections.abc import Iterator

from pl_fed.isa.story import SECTIONS, Finding, Story

_COLON = r"[:\uff1a]"  # also the wide one of Chinese and Japanese
_DECORATION = r"[\s>#*_`~\-\u2013\u2014\u2022+|:\[\](){}]"  # with two dashes and a bullet
_NUMBERS = rf"(?:{_DECORATION}|\d{{1,3}}[.)])*"
_DESCRIPTION = "description"
_CLUES, _CONCLUSION = "clues", "conclusion"
_WORDS = {  # (the name that models are given, a shorter one that counts only where it stands alone)
    "special_time": ("special time", "time"),
    "special_location": ("special location", "location"),
    "character_role": ("character roles?", "roles?"),
    "character_relationship": ("character relationships?", "relationships?"),
    "high_level_event": ("high level events?", "events?"),
    "event_causal_relationship": ("event causal relationships?", "causal relationships?"),
    "mental_state": ("mental states?", "feelings"),
    _DESCRIPTION: ("(?:story )?description(?: of the story)?", "story"),
    _CLUES: (r"clue(?:\(s\)|s)?", r"clue"),
    _CONCLUSION: ("conclusions?", "conclusion"),
}
assert [section.key for section in SECTIONS] == list(_WORDS)[: len(SECTIONS)]


def _label(words: tuple[str, str]) -> re.Pattern[str]:
    name, alone = (text.replace(" ", r"[\s_\-]+") for text in words)
    with_rest = rf"(?:{name})[\s*_`]*{_COLON}[\s*_`]*(?P<rest>.*)"
    return re.compile(rf"{_NUMBERS}(?:{with_rest}|(?:{name}|{alone}){_DECORATION}*)$", re.I)


_LABELS = {key: _label(words) for key, words in _WORDS.items()}
_INLINE = re.compile(rf"(?<=\S)[\s]+(?=[*_`]*(?:{_WORDS[_CLUES][0]}|conclusions?)[\s*_`]*{_COLON})", re.I)
_ITEM = re.compile(rf"{_NUMBERS}")
_LEADING = re.compile(r"^[\s*_`]+")
_TRAILING = re.compile(r"[\s*_`#]+$")
_NOTHING = re.compile(r"[\W_]*(?:none|n/?a|not applicable|nothing|no clues?)?[\W_]*", re.I)


def parse(text: str) -> Story:
    r"""Read a text; never fails.

    Args:
        text: What a model wrote.

    Example:
        >>> story = parse("**Mental state:** glad\n\nDescription: A child laughs.")
        >>> story.findings["mental_state"].conclusion, story.description
        ('glad', 'A child laughs.')
    """
    reader = _Reader()
    for line in _INLINE.sub("\n", text).splitlines():
        reader.read(line.strip())
    return reader.story()


def facts(answer: str) -> tuple[str, ...]:
    r"""Split the answer to one question into clues: its lines, or the sentences of a single line.

    Example:
        >>> facts("1. Snow on the roofs.\n2. A lit tree."), facts("It snows. A tree is lit."), facts("None.")
        (('Snow on the roofs.', 'A lit tree.'), ('It snows.', 'A tree is lit.'), ())
    """
    lines = [line for line in answer.splitlines() if line.strip()]
    parts = lines if len(lines) > 1 else re.split(r"(?<=[.!?])\s+", answer)
    return tuple(clean for part in parts if (clean := _clean(part)))


def _clean(text: str) -> str:
    """Return a line without numbers and markdown around it; empty if it says that there is nothing."""
    found = _TRAILING.sub("", _ITEM.sub("", text.strip(), count=1))
    return "" if _NOTHING.fullmatch(found) else found


class _Reader:
    """Goes through the lines and knows whose turn it is."""

    def __init__(self) -> None:
        self._place: str | None = None  # a section, the description, or nothing yet
        self._field: str | None = None  # of a section; None right after its heading
        self._clues: dict[str, list[str]] = {}
        self._conclusions: dict[str, list[str]] = {}
        self._preamble: list[str] = []
        self._description: list[str] = []

    def read(self, line: str) -> None:
        key, rest = self._heading(line)
        if key is None:
            self._add(line)
        elif key == _CONCLUSION:
            self._field = key
            self._add(rest)
        else:
            if key != _CLUES:
                self._place, self._field = key, None
            else:
                self._field = key
            if rest:
                self.read(rest)

    def story(self) -> Story:
        sections = {key: Finding(tuple(clues), conclusion) for key, clues, conclusion in self._found()}
        labelled = _text(self._description)
        return Story(sections, labelled or ("" if self._place in _WORDS and sections else _text(self._preamble)))

    def _found(self) -> Iterator[tuple[str, list[str], str]]:
        for section in SECTIONS:
            clues = self._clues.get(section.key, [])
            conclusion = " ".join(self._conclusions.get(section.key, []))
            if clues or conclusion:
                yield section.key, clues, conclusion

    def _heading(self, line: str) -> tuple[str | None, str]:
        in_section = self._place not in (None, _DESCRIPTION)
        for key, pattern in _LABELS.items():
            if (in_section or key not in (_CLUES, _CONCLUSION)) and (found := pattern.match(line)):
                return key, found["rest"] or ""
        return None, ""

    def _add(self, line: str) -> None:
        if self._place is None or self._place == _DESCRIPTION:
            (self._preamble if self._place is None else self._description).append(line)
        elif text := _clean(line):
            numbered = bool(_ITEM.match(line).group())  # type: ignore[union-attr]  # it matches the empty text too
            if self._field == _CLUES or (self._field is None and numbered):
                self._clues.setdefault(self._place, []).append(text)
            else:
                self._conclusions.setdefault(self._place, []).append(text)


def _text(lines: list[str]) -> str:
    text = _LEADING.sub("", "\n".join(lines)).rstrip()
    return "" if _NOTHING.fullmatch(text) else text
