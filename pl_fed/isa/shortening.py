"""Makes a text fit a model's window by taking from its longest sections: cutting its end would drop the description."""

import logging
from collections.abc import Callable
from dataclasses import replace

from pl_fed.isa.parsing import parse
from pl_fed.isa.story import NONE, SECTIONS, Finding, Story

_log = logging.getLogger(__name__)
_DESCRIPTION = "description"


def shorten(text: str, count_tokens: Callable[[str], int], max_tokens: int) -> str:
    r"""Return a text of at most `max_tokens` tokens, or the text itself if it fits.

    Sections without anything are left out first. Then the longest part, be it a section or the description, loses its
    last clue or an eighth of its words, until all fits; so the parts share the room. How much was cut is logged.

    Args:
        text: What an extractor wrote.
        count_tokens: Returns the number of tokens of a text.
        max_tokens: The limit.

    Example:
        >>> story = "Mental state\nClue(s):\n1. a b c\n2. d e f\nConclusion: None\nDescription: g h"
        >>> shorten(story, lambda text: len(text.split()), 8)
        'Mental state: a b c.\nDescription: g h'
    """
    before = count_tokens(text)
    if before <= max_tokens:
        return text
    story = parse(text)
    while (size := count_tokens(short := compact(story))) > max_tokens and short:
        story = _without_some(story, count_tokens)
    _log.info("Cut a text from %d to %d tokens to fit %d.", before, size, max_tokens)
    return short


def compact(story: Story) -> str:
    """Write a story with one line for each section that has anything, the description last, named if there are any."""
    parts = []
    for section in SECTIONS:
        finding = story.findings.get(section.key, Finding())
        told = "; ".join(finding.clues) + (f" -> {finding.conclusion}" if finding.conclusion else ".")
        parts += [f"{section.title}: {told.strip()}"] if finding != Finding() else []
    if not parts:
        return story.description
    return "\n".join([*parts, *([f"Description: {story.description}"] if story.description else [])])


def _without_some(story: Story, count_tokens: Callable[[str], int]) -> Story:
    sizes = {key: count_tokens(" ".join([*f.clues, f.conclusion])) for key, f in story.findings.items()}
    sizes[_DESCRIPTION] = count_tokens(story.description) if story.description else -1
    longest = max(sizes, key=lambda key: sizes[key])
    if longest == _DESCRIPTION:
        return replace(story, description=_less(story.description))
    findings = dict(story.findings)
    finding = findings.pop(longest)
    if finding.clues[1:]:
        findings[longest] = replace(finding, clues=finding.clues[:-1])
    elif finding.clues and finding.conclusion:
        findings[longest] = replace(finding, clues=())
    elif (less := _less(finding.clues[0] if finding.clues else finding.conclusion)) and less != NONE:
        findings[longest] = Finding((less,)) if finding.clues else Finding(conclusion=less)
    return replace(story, findings=findings)


def _less(text: str) -> str:
    words = text.split()
    return " ".join(words[: len(words) - 1 - len(words) // 8])
