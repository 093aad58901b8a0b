"""Small tokenizers and data, built here: nothing is downloaded."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr_datasets.partitioner import IidPartitioner
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from pl_fed.datamodules import ImageData, LoadingConfig, TextClassificationData
from tests.helpers.images import Build, pixels

WORDS = [*"abcdefghijklmnopqrstuvwxyz", *(f"w{i}" for i in range(200)), "###", "Instruction:", "Response:", "yes", "no"]
SPECIAL = ["<pad>", "<unk>", "<bos>", "<eos>", "<user>", "<bot>"]
CHAT = (
    "{% for m in messages %}{{ '<user> ' if m['role'] == 'user' else '<bot> ' if m['role'] == 'assistant' else '' }}"
    "{{ m['content'] }}{{ ' <eos> ' }}{% endfor %}{% if add_generation_prompt %}{{ '<bot> ' }}{% endif %}"
)


def build_tokenizer(words: list[str] | None = None, bos: bool = False, **options: Any) -> PreTrainedTokenizerFast:
    """Build a tokenizer with one token per word."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *(words or WORDS)])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    if bos:
        backend.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    named = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>"}
    extra = {"additional_special_tokens": ["<user>", "<bot>"]}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **named, **extra, **options)


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    return build_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture(scope="session")
def chat_tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(chat_template=CHAT)


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tokenizer without a chat template, to load by name."""
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tokenizer with a chat template, to load by name."""
    folder = tmp_path_factory.mktemp("chat-tokenizer")
    build_tokenizer(chat_template=CHAT).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[[str, list[dict[str, Any]]], Path]:
    """Write rows to a .jsonl, .json, .csv or .tsv file in the test's folder."""

    def write(name: str, rows: list[dict[str, Any]]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            if path.suffix == ".json":
                json.dump(rows, file)
            elif path.suffix == ".jsonl":
                file.writelines(json.dumps(row) + "\n" for row in rows)
            else:
                writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
                writer.writeheader()
                writer.writerows(rows)
        return path

    return write


def text_example(i: int) -> dict[str, Any]:
    """Text i begins with the word w<i> and has 1 + i % 5 words."""
    label = ["no", "yes"][i % 2]
    return {"text": " ".join([f"w{i}", *["a"] * (i % 5)]), "label": label, "user": f"user {i % 3}"}


@pytest.fixture(scope="session")
def text_row() -> Callable[[int], dict[str, Any]]:
    return text_example


@pytest.fixture
def make_text(
    write_rows: Callable[[str, list[dict[str, Any]]], Path], tokenizer_folder: str, tmp_path: Path
) -> Callable[..., TextClassificationData]:
    """Build a data set of 60 training texts over 3 clients, 10 validation texts and 10 test texts."""
    for name, start, stop in (("train", 0, 60), ("valid", 60, 70), ("test", 70, 80)):
        write_rows(f"data/{name}.jsonl", [text_example(i) for i in range(start, stop)])

    def build(loading: dict[str, Any] | None = None, **changes: Any) -> TextClassificationData:
        options: dict[str, Any] = {"tokenizer": tokenizer_folder, "partitioner": IidPartitioner(3), "batch_size": 4}
        cached = LoadingConfig(cache_dir=str(tmp_path / "cache"), **(loading or {}))
        return TextClassificationData(str(tmp_path / "data"), **options | {"loading": cached} | changes)

    return build


@pytest.fixture
def build_images(tmp_path: Path) -> Build:
    """Make data with a cache of the test's own; three clients with a tenth to validate and to test on."""

    def make(dataset: str | Path, loading: dict[str, Any] | None = None, **changes: Any) -> ImageData:
        cached = LoadingConfig(cache_dir=str(tmp_path / "cache"), **(loading or {}))
        options: dict[str, Any] = {"partitioner": IidPartitioner(3), "batch_size": 4, "loading": cached}
        return ImageData(str(dataset), **options | changes)

    return make


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """30 grey PNG images of two classes, and a note that is none."""
    for i in range(30):
        place = tmp_path / "pictures" / ["cat", "dog"][i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(i)).save(place / f"{i:02}.png")
    (tmp_path / "pictures" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "pictures" / ".hidden").mkdir()
    return tmp_path / "pictures"
