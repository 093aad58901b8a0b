"""What every extractor is: from an image to a text, in one of three modes."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from PIL import Image

from pl_fed.errors import FederatedConfigError
from pl_fed.isa.images import LoadedImage
from pl_fed.isa.parsing import facts, parse
from pl_fed.isa.prompts import DESCRIBE, MAX_ANSWER_TOKENS, MAX_NEW_TOKENS, PROMPT_VERSION, QUESTIONS, REASON
from pl_fed.isa.story import MODES, Finding, Mode, Story, render
from pl_fed.isa.text_cache import CachedText, TextCache, cache_key


class ExtractionError(RuntimeError):
    """No text can be had for this image; the others go on, and it is tried again only when asked."""


class TransientExtractionError(ExtractionError):
    """No text could be had now; the next run tries again."""


class Extractor(ABC):
    """From an image to a text about it."""

    cacheable = True  # whether the image's content and the settings decide the text

    @property
    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """Everything besides image and mode that decides the text; numbers, strings and lists, no secrets."""

    @abstractmethod
    def extract(self, image: LoadedImage, mode: Mode) -> str:
        """Return a text about an image.

        Args:
            image: The image.
            mode: ``naive``, a description; ``cot``, by sections; ``questions``, by sections, asked one by one.

        Raises:
            ExtractionError: If there is none.
        """

    def estimate(self, num_images: int, mode: Mode) -> str:
        """Return what the work will cost at most, for people; empty if nothing.

        Args:
            num_images: Images without a text.
            mode: How each is asked about.
        """
        return ""

    def report(self) -> str:
        """Return what the work has cost, for people; empty if nothing."""
        return ""


class PromptedExtractor(Extractor):
    """An extractor that asks a model."""

    prompt_version = PROMPT_VERSION
    _answers: TextCache | None = None

    @abstractmethod
    def ask(self, image: Image.Image, prompt: str, max_new_tokens: int) -> str:
        """Return a model's answer to one prompt about an image."""

    def extract(self, image: LoadedImage, mode: Mode) -> str:
        """Ask for a description, for all sections at once, or section by section."""
        check_mode(mode)
        if mode == "questions":
            return render(self._by_questions(image))
        text = self.ask(image.pixels, DESCRIBE if mode == "naive" else REASON, MAX_NEW_TOKENS).strip()
        if not text:
            raise ExtractionError("the model answered nothing")
        return text

    @contextmanager
    def keeping(self, answers: TextCache | None) -> Iterator[None]:
        """Keep the single answers of the mode ``questions`` meanwhile, so that none is asked for again.

        Args:
            answers: Where; None keeps none.
        """
        before, self._answers = self._answers, answers
        try:
            yield
        finally:
            self._answers = before

    def _by_questions(self, image: LoadedImage) -> Story:
        answers = {key: facts(self._kept(image, question, MAX_ANSWER_TOKENS)) for key, question in QUESTIONS.items()}
        findings = {key: Finding(clues) for key, clues in answers.items() if clues}
        return Story(findings, parse(self._kept(image, DESCRIBE, MAX_NEW_TOKENS)).description)

    def _kept(self, image: LoadedImage, prompt: str, max_new_tokens: int) -> str:
        """Return the answer that is kept, or a new one, which is kept before the next question is asked."""
        if self._answers is None:
            return self.ask(image.pixels, prompt, max_new_tokens)
        settings = {**self.settings, "question": prompt, "tokens": max_new_tokens}
        key = cache_key(image.sha256, settings)
        known = self._answers.get(key)
        if known is None:
            known = CachedText(self.ask(image.pixels, prompt, max_new_tokens))
            self._answers.put(key, image.sha256, settings, known)
        return known.text


def requests(mode: Mode) -> list[tuple[str, int]]:
    """Return the prompts that one image takes, and the longest answer to each in tokens."""
    if mode == "questions":
        return [*((question, MAX_ANSWER_TOKENS) for question in QUESTIONS.values()), (DESCRIBE, MAX_NEW_TOKENS)]
    return [(DESCRIBE if mode == "naive" else REASON, MAX_NEW_TOKENS)]


def check_mode(mode: str) -> None:
    """Refuse a mode that does not exist.

    Raises:
        FederatedConfigError: If it does not.
    """
    if mode not in MODES:
        raise FederatedConfigError(f"Expected `mode` to be one of {', '.join(MODES)} but got '{mode}': choose one.")
