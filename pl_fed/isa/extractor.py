"""What every extractor is: from an image to a text, in one of three modes."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from PIL import Image

from pl_fed.errors import FederatedConfigError
from pl_fed.isa.images import LoadedImage
from pl_fed.isa.parsing import facts, parse
from pl_fed.isa.prompts import DESCRIBE, MAX_ANSWER_TOKENS, MAX_NEW_TOKENS, PROMPT_VERSION, QUESTIONS, REASON
from pl_fed.isa.story import MODES, Finding, Mode, Story, render


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

    @abstractmethod
    def ask(self, image: Image.Image, prompt: str, max_new_tokens: int) -> str:
        """Return a model's answer to one prompt about an image."""

    def extract(self, image: LoadedImage, mode: Mode) -> str:
        """Ask for a description, for all sections at once, or section by section."""
        check_mode(mode)
        if mode == "questions":
            return render(self._by_questions(image.pixels))
        text = self.ask(image.pixels, DESCRIBE if mode == "naive" else REASON, MAX_NEW_TOKENS).strip()
        if not text:
            raise ExtractionError("the model answered nothing")
        return text

    def _by_questions(self, image: Image.Image) -> Story:
        answers = {key: facts(self.ask(image, question, MAX_ANSWER_TOKENS)) for key, question in QUESTIONS.items()}
        findings = {key: Finding(clues) for key, clues in answers.items() if clues}
        return Story(findings, parse(self.ask(image, DESCRIBE, MAX_NEW_TOKENS)).description)


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
