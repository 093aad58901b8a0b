"""What a text says about an image, by section: clues, a conclusion, and the description of the story."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

Mode = Literal["naive", "cot", "questions"]
MODES: tuple[Mode, ...] = get_args(Mode)
NONE = "None"  # what stands where an image shows nothing of the kind


@dataclass(frozen=True)
class Section:
    """One aspect of a story.

    Args:
        key: Its name in tables.
        title: Its heading in a text.
        asks: What belongs into it, as half a sentence.
        question: The same as a short question, for small models.
    """

    key: str
    title: str
    asks: str
    question: str


SECTIONS = (
    Section(
        "special_time",
        "Special time",
        "a season, holiday, time of day or historic period that matters to the story",
        "Which season, holiday or time of day can be seen, and from what?",
    ),
    Section(
        "special_location",
        "Special location",
        "the kind of place, and what it is used for",
        "What kind of place is this, and what shows it?",
    ),
    Section(
        "character_role",
        "Character role",
        "who the people or animals are: their job, age or part in what happens",
        "Who are the people or animals, and what shows their role?",
    ),
    Section(
        "character_relationship",
        "Character relationship",
        "what the characters are to one another",
        "How do the characters belong together, and what shows it?",
    ),
    Section(
        "high_level_event",
        "High-level event",
        "each thing that happens and means more than a posture, such as a theft, a rescue or a party",
        "What is happening, and what shows it?",
    ),
    Section(
        "event_causal_relationship",
        "Event causal relationship",
        "which event leads to which, and what will probably follow",
        "What caused this, and what will happen next?",
    ),
    Section(
        "mental_state",
        "Mental state",
        "what each character feels, wants, knows or overlooks",
        "What does each character feel or want, and what shows it?",
    ),
)


@dataclass(frozen=True)
class Finding:
    """What a text says in one section.

    Args:
        clues: Things that can be seen.
        conclusion: What follows from them; empty if nothing does.
    """

    clues: tuple[str, ...] = ()
    conclusion: str = ""


@dataclass(frozen=True)
class Story:
    """What a text says about an image.

    Args:
        findings: By the key of a section; sections without anything are left out.
        description: The description, over several lines if need be; empty if there is none.
    """

    findings: Mapping[str, Finding] = field(default_factory=dict)
    description: str = ""

    @property
    def num_clues(self) -> int:
        """Number of clues of all sections."""
        return sum(len(finding.clues) for finding in self.findings.values())

    @property
    def num_conclusions(self) -> int:
        """Number of sections with a conclusion."""
        return sum(bool(finding.conclusion) for finding in self.findings.values())


def gather(found: Mapping[str, Sequence[Finding]], description: str = "") -> Story:
    """Put the findings of each section together.

    Args:
        found: Findings by the title of a section.
        description: The description.

    Example:
        >>> gather({"Special time": [Finding(("a moon",), "Night."), Finding(("snow",), "Winter.")]}).findings
        {'special_time': Finding(clues=('a moon', 'snow'), conclusion='Night. Winter.')}
    """
    keys = {section.title: section.key for section in SECTIONS}
    findings = {
        keys[title]: Finding(
            tuple(clue for part in parts for clue in part.clues), " ".join(p.conclusion for p in parts)
        )
        for title, parts in found.items()
        if parts
    }
    return Story(findings, description)


def render(story: Story) -> str:
    r"""Write a story as the text that `pl_fed.isa.parsing.parse` reads: every section, the description last.

    Example:
        >>> print(render(Story({"mental_state": Finding(("a smile",), "glad")}, "A child.")).rpartition("None\n\n")[2])
        Mental state
        Clue(s):
        1. a smile
        Conclusion: glad
        <BLANKLINE>
        Description: A child.
    """
    parts = [_section(section.title, story.findings.get(section.key, Finding())) for section in SECTIONS]
    return "\n\n".join([*parts, f"Description: {story.description or NONE}"])


def _section(title: str, finding: Finding) -> str:
    clues = [f"{number}. {clue}" for number, clue in enumerate(finding.clues, start=1)] or [NONE]
    return "\n".join([title, "Clue(s):", *clues, f"Conclusion: {finding.conclusion or NONE}"])
