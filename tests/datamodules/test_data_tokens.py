"""Tokens are made once, survive damage, and are read as they were written."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from pl_fed.datamodules.batches import ExampleDataset, InstructionCollator, TextCollator, pad
from pl_fed.datamodules.tokens import TokenStats, TokenTable, content_hash, tokenise_once
from pl_fed.datamodules.vocabulary import check_vocabulary, find_tokenizer, pad_token_id, tokenizer_hash
from pl_fed.errors import FederatedConfigError

MakeTokenizer = Callable[..., PreTrainedTokenizerFast]


class Letters:
    """Encodes each letter as its place in the alphabet, and counts how often it is asked."""

    def __init__(self) -> None:
        self.num_calls = 0

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        self.num_calls += 1
        ids = [[ord(letter) - ord("a") for letter in text] for text in batch["text"]]
        return {"input_ids": ids, "prompt_length": [1] * len(ids), "is_cut": [len(row) > 2 for row in ids]}


def rows(*texts: str) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": list(texts), "other": list(range(len(texts)))})


def read(table: TokenTable) -> list[list[int]]:
    return [table[i].tolist() for i in range(len(table))]


def test_second_time_reads_the_file(tmp_path: Path) -> None:
    encode = Letters()
    first = tokenise_once(rows("abc", "d"), ["text"], encode, ["x"], tmp_path)
    again = tokenise_once(rows("abc", "d"), ["text"], encode, ["x"], tmp_path)
    assert encode.num_calls == 1
    assert read(TokenTable([first])) == read(TokenTable([again])) == [[0, 1, 2], [3]]


@pytest.mark.parametrize(
    ("texts", "settings", "is_new"),
    [
        (("abc", "d"), ["y"], True),
        (("abc", "e"), ["x"], True),
        (("d", "abc"), ["x"], True),
        (("abc", "d"), ["x"], False),
    ],
)
def test_key(texts: tuple[str, ...], settings: list[str], is_new: bool, tmp_path: Path) -> None:
    encode = Letters()
    tokenise_once(rows("abc", "d"), ["text"], encode, ["x"], tmp_path)
    tokenise_once(rows(*texts), ["text"], encode, settings, tmp_path)
    assert encode.num_calls == 1 + is_new


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "fewer rows", "other columns"])
def test_damaged_file_is_made_again(damage: str, tmp_path: Path) -> None:
    encode = Letters()
    tokenise_once(rows("abc", "d"), ["text"], encode, [], tmp_path)
    (file,) = tmp_path.glob("*.arrow")
    content = file.read_bytes()
    wrong = {"truncated": content[:-40], "empty": b"", "garbage": b"garbage" * 99}
    if damage == "fewer rows":
        tokenise_once(rows("abc"), ["text"], Letters(), [], tmp_path / "other")
        next((tmp_path / "other").glob("*.arrow")).replace(file)
    elif damage == "other columns":
        rows("abc", "d").map(
            Letters(), batched=True, cache_file_name=str(tmp_path / "other.arrow"), new_fingerprint="x"
        )
        (tmp_path / "other.arrow").replace(file)
    else:
        file.write_bytes(wrong[damage])
    made = tokenise_once(rows("abc", "d"), ["text"], encode, [], tmp_path)
    assert encode.num_calls == 2
    assert read(TokenTable([made])) == [[0, 1, 2], [3]]


def test_one_works_while_others_wait(tmp_path: Path) -> None:
    encode, found = Letters(), []

    def work() -> None:
        found.append(read(TokenTable([tokenise_once(rows("abc", "d"), ["text"], encode, [], tmp_path)])))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert encode.num_calls == 1
    assert found == [[[0, 1, 2], [3]]] * 3
    assert not list(tmp_path.glob("*.partial"))


def test_hash_is_of_the_content(tmp_path: Path) -> None:
    """The same texts hash the same from memory, from a file, as a selection, and beside other columns."""
    data = rows("a", "b", "c")
    data.save_to_disk(tmp_path)
    expected = content_hash(data, ["text"])
    assert content_hash(datasets.load_from_disk(str(tmp_path)), ["text"]) == expected
    assert content_hash(rows("c", "b", "a").select([2, 1, 0]), ["text"]) == expected
    assert content_hash(data.remove_columns("other"), ["text"]) == expected
    assert content_hash(data, ["text", "other"]) != expected
    assert content_hash(rows("a", "b", "d"), ["text"]) != expected


def test_tables_join(tmp_path: Path) -> None:
    """Of abc, (empty), de, f: one is empty, abc is cut, and 6 tokens are left."""
    parts = [tokenise_once(rows(*texts), ["text"], Letters(), [], tmp_path) for texts in (("abc", ""), ("de", "f"))]
    table = TokenTable(parts)
    assert read(table) == [[0, 1, 2], [], [3, 4], [5]]
    assert table.lengths == [3, 0, 2, 1]
    assert table.prompt_lengths.tolist() == [1, 1, 1, 1]
    assert table.usable({"train": 2, "test": 2}) == {"train": [0], "test": [2, 3]}
    assert table.stats() == TokenStats(num_examples=3, num_dropped=1, num_cut=1, num_tokens=6, longest=3)
    assert str(table.stats()) == (
        "3 examples of 2.0 tokens on average, 3 at most, 33.3% cut, 1 dropped without anything to learn from"
    )


def test_many_chunks(tmp_path: Path) -> None:
    """Arrow writes a chunk for every 1,000 rows."""
    texts = ["abcdefgh"[: i % 8] for i in range(2500)]
    table = TokenTable([tokenise_once(rows(*texts), ["text"], Letters(), [], tmp_path)])
    assert read(table) == [list(range(i % 8)) for i in range(2500)]


def test_tokenizer_hash(make_tokenizer: MakeTokenizer) -> None:
    base = make_tokenizer()
    expected = tokenizer_hash(base)
    base("a b c", truncation=True, max_length=2, padding="max_length")  # leaves settings behind
    assert tokenizer_hash(base) == expected == tokenizer_hash(make_tokenizer())
    assert tokenizer_hash(make_tokenizer(["other"])) != expected
    assert tokenizer_hash(make_tokenizer(chat_template="x")) != expected
    assert tokenizer_hash(make_tokenizer(truncation_side="left")) != expected


def test_find_tokenizer(tokenizer: PreTrainedTokenizerFast, tokenizer_folder: str) -> None:
    module = torch.nn.Module()
    with pytest.raises(FederatedConfigError, match="a `tokenizer` but Module has none: set `tokenizer`"):
        find_tokenizer(None, module)
    with pytest.raises(FederatedConfigError, match="but there is no module"):
        find_tokenizer(None, None)
    module.tokenizer = tokenizer
    assert find_tokenizer(None, module) is tokenizer
    assert find_tokenizer(tokenizer_folder, module) is not tokenizer
    assert tokenizer_hash(find_tokenizer(tokenizer_folder, None)) == tokenizer_hash(
        find_tokenizer(tokenizer_folder, None)
    )


def test_vocabulary_larger_than_the_embeddings(tokenizer: PreTrainedTokenizerFast) -> None:
    class Model(torch.nn.Module):
        def __init__(self, num_embeddings: int) -> None:
            super().__init__()
            self.embeddings = torch.nn.Embedding(num_embeddings, 2)

        def get_input_embeddings(self) -> torch.nn.Embedding:
            return self.embeddings

    size = len(tokenizer)
    for module in (None, torch.nn.Linear(1, 1), Model(size)):
        check_vocabulary(tokenizer, module)
    wrapper = torch.nn.Module()
    wrapper.model = Model(size - 1)
    for wrong in (wrapper, wrapper.model):
        with pytest.raises(
            FederatedConfigError, match=f"the model's {size - 1} embeddings but got one of {size} tokens"
        ):
            check_vocabulary(tokenizer, wrong)


def test_other_tokens_than_the_model_s(make_tokenizer: MakeTokenizer) -> None:
    """The ids must mean the same; tokens that were added, and how a conversation is written, may differ."""
    module = torch.nn.Module()
    module.tokenizer = make_tokenizer(["red", "green"])
    for same in (make_tokenizer(["red", "green", "blue"]), make_tokenizer(["red", "green"], chat_template="x")):
        check_vocabulary(same, module)
    with pytest.raises(FederatedConfigError, match="1 of them differ, such as token [0-9]+, 'blue' instead of 'green'"):
        check_vocabulary(make_tokenizer(["red", "blue"]), module)


def test_pad_token(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    assert pad_token_id(tokenizer) == 0
    tokenizer.pad_token = None
    assert pad_token_id(tokenizer) == 3  # <eos>
    tokenizer.eos_token = None
    assert pad_token_id(tokenizer) == 0


def test_pad() -> None:
    short, long = np.array([1]), np.array([2, 3, 4], np.int32)
    assert pad([short, long], 9).tolist() == [[1, 9, 9], [2, 3, 4]]
    assert pad([short, long], 9, left=True).tolist() == [[9, 9, 1], [2, 3, 4]]
    assert pad([short, long], 9, multiple_of=4).tolist() == [[1, 9, 9, 9], [2, 3, 4, 9]]


def test_batches(tmp_path: Path) -> None:
    """The example abc has the prompt a: labels are -100 on it and on the padding."""
    table = TokenTable([tokenise_once(rows("abc", "de"), ["text"], Letters(), [], tmp_path)])
    examples = ExampleDataset(table, table.prompt_lengths, np.array([4, -1]))
    assert len(examples) == 2
    batch = InstructionCollator(pad_token_id=7, with_prompts=True)([examples[0], examples[1]])
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [[0, 1, 2], [3, 4, 7]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
        "labels": [[-100, 1, 2], [-100, 4, -100]],
        "client_id": [4, -1],
        "prompt_input_ids": [[0], [3]],
        "prompt_attention_mask": [[1], [1]],
    }
    batch = TextCollator(pad_token_id=7, multiple_of=4)([examples[1]])
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [[3, 4, 7, 7]],
        "attention_mask": [[1, 1, 0, 0]],
        "labels": [1],
        "client_id": [-1],
    }
    assert all(value.dtype == torch.long for value in batch.values())


def test_a_tokenizer_that_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that names the setting, whether the name is unknown or the folder lacks the files."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    message = "^Expected `tokenizer` to be the folder .* [(].*[)]: choose"
    with pytest.raises(FederatedConfigError, match=message) as found:
        find_tokenizer(str(tmp_path), None)
    assert "\n" not in str(found.value)
    with pytest.raises(FileNotFoundError, match="^Expected `tokenizer` to be a local folder.* but got 'no/such-model'"):
        find_tokenizer("no/such-model", None)
