"""From instruction and response to ids: what is learnt is exactly the response."""

from collections.abc import Callable
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from pl_fed.datamodules.config import InstructionColumns
from pl_fed.datamodules.prompts import PromptEncoder
from pl_fed.errors import FederatedConfigError

MakeTokenizer = Callable[..., PreTrainedTokenizerFast]
PLAIN = InstructionColumns()


def one(encoder: PromptEncoder, **columns: Any) -> tuple[list[int], int, bool]:
    encoded = encoder({name: [value] for name, value in columns.items()})
    return encoded["input_ids"][0], encoded["prompt_length"][0], encoded["is_cut"][0]


def spell(tokenizer: PreTrainedTokenizerFast, encoded: tuple[list[int], int, bool]) -> tuple[str, str]:
    """Return the texts of the prompt and of what the loss is on."""
    ids, prompt_length, _ = encoded
    return tokenizer.decode(ids[:prompt_length]), tokenizer.decode(ids[prompt_length:])


def test_plain_template(tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = one(PromptEncoder(tokenizer, PLAIN, 99), instruction="a b", response="c d")
    assert spell(tokenizer, encoded) == ("### Instruction: a b ### Response:", "c d <eos>")


def test_own_template(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    """It replaces the chat template, and braces in the texts mean nothing."""
    encoder = PromptEncoder(chat_tokenizer, InstructionColumns(template="x {instruction} y"), 99)
    assert encoder.render("{a} {response}", "c") == ("x {a} {response} y", "c")
    assert spell(chat_tokenizer, one(encoder, instruction="a", response="c")) == ("x a y", "c <eos>")


def test_chat_template(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    """The template writes a blank after <eos>, which is not learnt; it becomes no token here."""
    encoder = PromptEncoder(chat_tokenizer, PLAIN, 99)
    assert encoder.render("a b", "c") == ("<user> a b <eos> <bot> ", "c <eos> ")
    encoded = one(encoder, instruction="a b", response="c")
    assert spell(chat_tokenizer, encoded) == ("<user> a b <eos> <bot>", "c <eos>")


def test_system_message(chat_tokenizer: PreTrainedTokenizerFast, tokenizer: PreTrainedTokenizerFast) -> None:
    columns = InstructionColumns(system="z")
    assert PromptEncoder(chat_tokenizer, columns, 99).render("a", "c")[0] == "z <eos> <user> a <eos> <bot> "
    with pytest.raises(FederatedConfigError, match="a chat template for `columns.system` but it has none"):
        PromptEncoder(tokenizer, columns, 99)


def test_nothing_after_the_end_is_learnt(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(chat_template="{% for m in messages %}{{ m['content'] }} {% endfor %}<eos> z")
    encoder = PromptEncoder(tokenizer, PLAIN, 99)
    assert encoder._row([9], [8, 3, 31]) == {"input_ids": [9, 8, 3], "prompt_length": 1, "is_cut": False}


def test_input_column(tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = PromptEncoder(tokenizer, InstructionColumns(input="more"), 99)
    encoded = one(encoder, instruction="a", response="c", more="x y")
    assert spell(tokenizer, encoded)[0] == "### Instruction: a x y ### Response:"
    assert (
        spell(tokenizer, one(encoder, instruction="a", response="c", more=None))[0]
        == "### Instruction: a ### Response:"
    )


def test_begin_of_sequence(make_tokenizer: MakeTokenizer) -> None:
    """A tokenizer that begins sequences does so once, and not in the middle."""
    tokenizer = make_tokenizer(bos=True)
    encoder = PromptEncoder(tokenizer, InstructionColumns(template="{instruction}"), 99)
    assert spell(tokenizer, one(encoder, instruction="a", response="c")) == ("<bos> a", "c <eos>")


@pytest.mark.parametrize(
    ("max_length", "expected"),
    [  # the prompt has 2 tokens, the response 3 with <eos>
        (9, ("x a", "c d <eos>", False)),
        (5, ("x a", "c d <eos>", False)),
        (4, ("x a", "c d", True)),
        (3, ("x a", "c", True)),
        (2, ("", "", True)),
        (1, ("", "", True)),
    ],
)
def test_cut(max_length: int, expected: tuple[str, str, bool], tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = PromptEncoder(tokenizer, InstructionColumns(template="x {instruction}"), max_length)
    encoded = one(encoder, instruction="a", response="c d")
    assert (*spell(tokenizer, encoded), encoded[2]) == expected


@pytest.mark.parametrize("response", ["", None])
def test_no_response(response: str | None, tokenizer: PreTrainedTokenizerFast) -> None:
    assert one(PromptEncoder(tokenizer, PLAIN, 99), instruction="a", response=response) == ([], 0, False)


def test_no_response_in_a_chat(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    """The chat template writes <eos> all the same."""
    assert one(PromptEncoder(chat_tokenizer, PLAIN, 99), instruction="a", response="") == ([], 0, False)


def test_bad_tokenizers(make_tokenizer: MakeTokenizer) -> None:
    wayward = make_tokenizer(chat_template="{% if add_generation_prompt %}x{% else %}y{% endif %}")
    with pytest.raises(
        FederatedConfigError, match="to begin a conversation with the prompt but got 'y' for the prompt 'x'"
    ):
        PromptEncoder(wayward, PLAIN, 99).render("a", "b")
    endless = make_tokenizer()
    endless.eos_token = None
    with pytest.raises(FederatedConfigError, match="with an end-of-sequence token but it has none"):
        PromptEncoder(endless, PLAIN, 99)


def test_a_zero_is_an_answer(tokenizer: Any) -> None:
    """A number 0 in the response column is text to learn; an empty cell is not."""
    encoder = PromptEncoder(tokenizer, InstructionColumns(), 64)
    rows = encoder({"instruction": ["what", "what"], "response": [0, None]})
    learnt = [len(ids) - start for ids, start in zip(rows["input_ids"], rows["prompt_length"], strict=True)]
    assert learnt[0] > 0 and learnt[1] == 0
