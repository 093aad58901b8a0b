"""Texts that fit a model's window: every section has its share, and the description stays."""

import pytest

from pl_fed.isa.parsing import parse
from pl_fed.isa.shortening import compact, shorten
from pl_fed.isa.story import SECTIONS, Finding, Story, render
from pl_fed.isa.story_encoder import StoryEncoder, share_cut
from tests.modules.tiny_models import tokenizer


def words(text: str) -> int:
    return len(text.split())


@pytest.fixture
def story() -> Story:
    """Seven sections of two clues of ten words, and a description of 40 words."""
    clues = tuple(" ".join(f"c{i}" for i in range(10)) for _ in range(2))
    findings = {section.key: Finding(clues, "so it is") for section in SECTIONS}
    return Story(findings, " ".join(f"d{i}" for i in range(40)))


@pytest.mark.parametrize("room", [200, 120, 90, 60])
def test_every_section_keeps_its_share(story: Story, room: int) -> None:
    """Plain cutting at the end would leave nothing of the description."""
    short = shorten(render(story), words, room)
    kept = parse(short)
    assert words(short) <= room and set(kept.findings) == set(story.findings)
    assert kept.description and story.description.startswith(kept.description)
    sizes = [words(" ".join([*f.clues, f.conclusion])) for f in kept.findings.values()]
    assert max(sizes) - min(sizes) <= 11, "equal sections lose alike, to within a clue and its arrow"
    assert words(short) > 0.6 * room, "no more than needed"


def test_a_text_without_sections_loses_its_end() -> None:
    text = " ".join(f"w{i}" for i in range(3, 23))
    assert shorten(text, words, 10) == " ".join(f"w{i}" for i in range(3, 13))
    assert compact(Story({}, "a child")) == "a child"


def test_encoder() -> None:
    """A tokenizer of one token a word that adds none; a row for each text in the columns of token tables."""
    encode = StoryEncoder(tokenizer(), 4)
    texts = ["w5 w6", "w3 w4 w5 w6 w7 w8"]
    found = encode({"text": texts})
    assert found == {"input_ids": [[5, 6], [3, 4, 5, 6]], "prompt_length": [0, 0], "is_cut": [False, True]}
    assert share_cut(texts, 6, encode.tokenizer) == pytest.approx(2 / 8)
    assert share_cut([], 0, encode.tokenizer) != share_cut([], 0, encode.tokenizer)  # not a number


def test_a_word_of_many_tokens_is_cut_by_tokens() -> None:
    encode = StoryEncoder(tokenizer(), 1)
    ids, is_cut = encode.encode("w9 w9 w9")
    assert len(ids) <= 1 and is_cut
