"""From a model's text to clues, conclusions and a description, however it was laid out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pl_fed.isa.parsing import facts, parse
from pl_fed.isa.story import SECTIONS, Finding, Story, render

KEYS = [section.key for section in SECTIONS]
WORDS = st.lists(st.sampled_from(["a", "boy", "takes", "the", "cookie", "jar", "12", "sink", "über", "猫"]), min_size=1)
SENTENCES = WORDS.map(lambda words: "He says " + " ".join(words) + ".")
# Plain values: the shape checker draws random numbers, which strategies must not.
FINDINGS = st.tuples(st.lists(SENTENCES, max_size=3), st.just("") | SENTENCES).filter(any)
STORIES = st.tuples(
    st.dictionaries(st.sampled_from(KEYS), FINDINGS),
    st.just("") | st.lists(SENTENCES, min_size=1, max_size=3).map("\n".join),
)
# Pieces of the layout in any order, between any characters: what a model that lost the thread could write.
PIECES = [*(s.title for s in SECTIONS), "Description", "Story", "Time", "Clue(s)", "Clue", "Conclusion", "None", ":"]
PIECES += ["\n", "\n", "1. ", "2) ", "- ", "**", "## ", "_", " ", "a smile", "\x0b", "\u2028", "(", "s", "|"]
RUBBISH = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=30).map("".join)


@given(STORIES)
def test_what_was_rendered_is_read_back(told: tuple[dict[str, tuple[list[str], str]], str]) -> None:
    findings = {key: Finding(tuple(clues), conclusion) for key, (clues, conclusion) in told[0].items()}
    story = Story(findings, told[1])
    assert parse(render(story)) == story


@given(RUBBISH | st.text())
def test_rubbish_is_read_and_stays_the_same_after_rendering(text: str) -> None:
    story = parse(text)
    assert parse(render(story)) == story
    assert set(story.findings) <= set(KEYS)
    assert all(clue.strip() == clue != "" for finding in story.findings.values() for clue in finding.clues)


@given(st.text())
def test_facts_of_any_answer(answer: str) -> None:
    assert all(fact.strip() == fact != "" for fact in facts(answer))


MARKDOWN = """Sure! Here is my analysis.

## 6. **Mental state**
- **Clue(s):**
  1. The mother looks *away*.
  2) Her face is calm
- **Conclusion:** She does not notice
  the water.

### Special Time: None
**High-level event:**
* a boy falls
* water runs over
Conclusion - both at once

**Description of the story:**
A kitchen.

Two accidents."""


def test_markdown_in_another_order() -> None:
    story = parse(MARKDOWN)
    assert story.findings["mental_state"] == Finding(
        ("The mother looks *away*.", "Her face is calm"), "She does not notice the water."
    )
    assert story.findings["high_level_event"].clues == ("a boy falls", "water runs over")
    assert set(story.findings) == {"mental_state", "high_level_event"}
    assert story.description == "A kitchen.\n\nTwo accidents."
    assert (story.num_clues, story.num_conclusions) == (4, 2)


def test_one_line() -> None:
    story = parse("Special location: Clue(s): 1. a stove Conclusion: a kitchen")
    assert story.findings == {"special_location": Finding(("a stove",), "a kitchen")} and story.description == ""


@pytest.mark.parametrize("text", ["A plain caption.", "  A plain caption.\n", "Description: A plain caption."])
def test_a_text_without_sections_is_a_description(text: str) -> None:
    assert parse(text) == Story({}, "A plain caption.")


@pytest.mark.parametrize("text", ["", "None", "Description: N/A.", "**", render(Story())])
def test_nothing(text: str) -> None:
    assert parse(text) == Story()


def test_a_text_that_was_cut_off_has_no_description() -> None:
    """The friendly words before the first section are none."""
    assert parse("Of course!\nMental state\nClue(s):\n1. a smi").description == ""


def test_words_inside_a_sentence_are_no_headings() -> None:
    assert parse("Description: The story of time.\nMental state of the art.").findings == {}
