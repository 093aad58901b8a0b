"""Single answers of the mode `questions` are kept: neither a failure nor the end of the process asks for one again."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pl_fed.errors import FederatedConfigError
from pl_fed.isa.extraction import Extracted, Extraction
from pl_fed.isa.extractor import ExtractionError, PromptedExtractor, TransientExtractionError, requests
from pl_fed.isa.images import ImageFile
from pl_fed.isa.text_cache import TextCache
from tests.helpers.isa import loaded, picture, saved

ROOT = Path(__file__).parents[2]
PROMPTS = [prompt for prompt, _ in requests("questions")]
# Prints the number of each question before it answers, and waits for ever at one of them.
WORKER = """
import sys, time
from pathlib import Path
from pl_fed.isa.images import ImageFile
from tests.isa.test_extractor import PROMPTS, Model, one

class Slow(Model):
    def ask(self, image, prompt, max_new_tokens):
        print(PROMPTS.index(prompt), flush=True)
        if PROMPTS.index(prompt) == int(sys.argv[2]):
            time.sleep(60)
        return super().ask(image, prompt, max_new_tokens)

print(one(Slow(), ImageFile(Path(sys.argv[1], "a.png"), "a.png"), Path(sys.argv[1], "t.sqlite")).text)
"""


class Model(PromptedExtractor):
    """Answers with the number of its answer, and fails at one prompt.

    Args:
        fails: The prompt.
        error: How it fails there.
        name: Its name in the settings.
    """

    def __init__(self, fails: str = "", error: type[Exception] = ExtractionError, name: str = "m") -> None:
        self.fails, self.error, self.name = fails, error, name
        self.asked: list[str] = []

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"extractor": "Model", "model": self.name}

    def ask(self, image: Image.Image, prompt: str, max_new_tokens: int) -> str:
        self.asked.append(prompt)
        if prompt == self.fails:
            raise self.error("it failed")
        return f"A thing {PROMPTS.index(prompt)}."


def one(extractor: PromptedExtractor, file: ImageFile, cache: Path, retry_errors: bool = False) -> Extracted:
    with TextCache(cache) as texts:
        ((_, found),) = Extraction(extractor, "questions", texts, retry_errors).run([file])
    return found


def test_an_answer_is_asked_for_once(tmp_path: Path) -> None:
    """The eighth question fails for now: the next run asks that one alone, and the text is as if nothing had failed."""
    file, cache = saved(tmp_path, "a.png"), tmp_path / "t.sqlite"
    first, second, third = Model(PROMPTS[7], TransientExtractionError), Model(), Model()
    assert one(first, file, cache).error == "it failed" and first.asked == PROMPTS
    assert one(second, file, cache).text == Model().extract(loaded(picture(), tmp_path), "questions")
    assert second.asked == PROMPTS[7:]
    assert one(third, file, cache).text.endswith("Description: A thing 7.") and third.asked == []


def test_a_refusal_that_ends_the_run_keeps_what_was_had(tmp_path: Path) -> None:
    files, cache = [saved(tmp_path, f"{i}.png", i) for i in range(2)], tmp_path / "t.sqlite"
    one(Model(), files[0], cache)
    with TextCache(cache) as texts, pytest.raises(FederatedConfigError, match="it failed"):
        list(Extraction(Model(PROMPTS[5], FederatedConfigError), "questions", texts).run(files))
    second = Model()
    assert [one(second, file, cache).error for file in files] == ["", ""] and second.asked == PROMPTS[5:]


def test_a_lasting_error_waits_until_it_is_asked_for(tmp_path: Path) -> None:
    """The image counts as done; when it is tried again, the answers from before count."""
    file, cache = saved(tmp_path, "a.png"), tmp_path / "t.sqlite"
    assert one(Model(PROMPTS[3]), file, cache).error == "it failed"
    second, third = Model(), Model()
    assert one(second, file, cache).error == "it failed" and second.asked == []
    with TextCache(cache) as texts:
        assert [Extraction(Model(), "questions", texts, again).count_new([file]) for again in (False, True)] == [0, 1]
    assert one(third, file, cache, retry_errors=True).error == "" and third.asked == PROMPTS[3:]


def test_answers_are_those_of_the_same_image_and_model(tmp_path: Path) -> None:
    file, other, cache = saved(tmp_path, "a.png"), saved(tmp_path, "b.png", 1), tmp_path / "t.sqlite"
    one(Model(PROMPTS[7], TransientExtractionError), file, cache)
    for extractor, which in ((Model(name="n"), file), (Model(), other)):
        one(extractor, which, cache)
        assert extractor.asked == PROMPTS


def test_a_cache_is_left_when_the_work_ends(tmp_path: Path) -> None:
    """A closed cache would fail."""
    extractor = Model()
    one(extractor, saved(tmp_path, "a.png"), tmp_path / "t.sqlite")
    extractor.extract(loaded(picture(1), tmp_path), "questions")
    assert extractor.asked == PROMPTS * 2


def test_a_killed_process_repeats_no_question(tmp_path: Path) -> None:
    """The fifth question was never answered."""
    at = 4
    saved(tmp_path, "a.png")

    def start(wait_at: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", WORKER, str(tmp_path), str(wait_at)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)

    first = start(at)
    assert first.stdout is not None
    assert [int(first.stdout.readline()) for _ in range(at + 1)] == list(range(at + 1))
    os.kill(first.pid, signal.SIGKILL)
    first.stdout.close()
    assert first.wait() == -signal.SIGKILL
    out, _ = start(-1).communicate(timeout=60)
    assert [int(line) for line in out.splitlines() if line.isdecimal()] == list(range(at, 8))
    assert out.endswith("Description: A thing 7.\n")
