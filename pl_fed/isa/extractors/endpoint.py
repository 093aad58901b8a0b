"""Asks a model behind an endpoint that speaks the chat-completions protocol of OpenAI; many local servers do."""

import base64
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from pl_fed.errors import FederatedConfigError
from pl_fed.isa.extractor import PromptedExtractor, requests
from pl_fed.isa.extractors.http import JsonPoster, Patience
from pl_fed.isa.images import shrink
from pl_fed.isa.story import Mode

_CHARACTERS_PER_TOKEN = 4  # where the server does not count


@dataclass(frozen=True)
class Price:
    """What tokens cost, for an estimate.

    Args:
        per_million_input: Price of a million tokens that are sent, in any currency.
        per_million_output: Price of a million tokens that come back.
        tokens_per_image: What the server counts for one image; only for the estimate before anything is sent.
    """

    per_million_input: float = 0.0
    per_million_output: float = 0.0
    tokens_per_image: int = 1000

    def cost(self, num_sent: int, num_received: int) -> float:
        """Return the price of so many tokens."""
        return (num_sent * self.per_million_input + num_received * self.per_million_output) / 1e6


class EndpointExtractor(PromptedExtractor):
    """Sends images and prompts to an endpoint.

    Args:
        base_url: Address up to, and without, ``/chat/completions``.
        model: The model's name there.
        api_key_variable: Environment variable that holds the key; without such a variable no key is sent.
        max_tokens: Longest answer; shorter limits of a prompt stay.
        max_side: Longest side of the image that is sent, in pixels.
        temperature: Of the sampling; 0 is the most repeatable.
        patience: How often, how long and how fast is asked.
        price: For the estimate of the cost.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key_variable: str = "OPENAI_API_KEY",
        max_tokens: int = 1000,
        max_side: int = 1024,
        temperature: float = 0.0,
        patience: Patience | None = None,
        price: Price | None = None,
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise FederatedConfigError(
                f"Expected `base_url` to begin with http:// or https:// but got '{base_url}': give the whole address."
            )
        if max_tokens < 1 or max_side < 1:
            raise FederatedConfigError(
                f"Expected `max_tokens` and `max_side` of at least 1 but got {max_tokens} and {max_side}: raise them."
            )
        self._base_url, self._model, self._temperature = base_url.rstrip("/"), model, temperature
        self._max_tokens, self._max_side, self._price = max_tokens, max_side, price or Price()
        self._post = JsonPoster(f"{self._base_url}/chat/completions", _key(api_key_variable), patience or Patience())
        self._num_sent, self._num_received, self._guessed = 0, 0, False

    @property
    def settings(self) -> Mapping[str, Any]:
        """Server, model and numbers; not the key."""
        return {
            "extractor": type(self).__name__,
            "model": [self._base_url, self._model],
            "numbers": [self._temperature, self._max_tokens, self._max_side],
            "prompts": self.prompt_version,
        }

    def ask(self, image: Image.Image, prompt: str, max_new_tokens: int) -> str:
        """Return the model's answer."""
        content = [{"type": "text", "text": prompt}, {"type": "image_url", "image_url": {"url": self._encode(image)}}]
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": min(max_new_tokens, self._max_tokens),
            "temperature": self._temperature,
        }
        answer = self._post(body, _text)
        text = _text(answer)
        self._count(answer, prompt, text)
        return text

    def estimate(self, num_images: int, mode: Mode) -> str:
        """Return how many requests and tokens it takes at most, retries apart, and their cost if there is a price."""
        asked = requests(mode)
        per_image = sum(len(prompt) // _CHARACTERS_PER_TOKEN + self._price.tokens_per_image for prompt, _ in asked)
        sent, received = num_images * per_image, num_images * sum(min(most, self._max_tokens) for _, most in asked)
        cost = self._price.cost(sent, received)
        priced = f", cost of {cost:.4g}" if cost else "; for a cost set `price.per_million_input` and `_output`"
        return f"{num_images * len(asked)} requests, {sent} tokens to send, {received} to receive{priced}."

    def report(self) -> str:
        """Return the number of tokens, and the cost if there is a price."""
        cost = self._price.cost(self._num_sent, self._num_received)
        guessed = " (in part guessed from the lengths of texts, without images)" if self._guessed else ""
        estimate = f", estimated cost {cost:.4g}" if cost else ""
        return f"{self._num_sent} tokens sent, {self._num_received} received{guessed}{estimate}."

    def _encode(self, image: Image.Image) -> str:
        buffer = io.BytesIO()
        shrink(image, self._max_side).save(buffer, "JPEG", quality=90)
        return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"

    def _count(self, answer: Mapping[str, Any], prompt: str, text: str) -> None:
        usage = answer.get("usage")
        counted = usage if isinstance(usage, dict) else {}
        sent, received = counted.get("prompt_tokens"), counted.get("completion_tokens")
        self._guessed |= not (isinstance(sent, int) and isinstance(received, int))
        self._num_sent += sent if isinstance(sent, int) else len(prompt) // _CHARACTERS_PER_TOKEN
        self._num_received += received if isinstance(received, int) else len(text) // _CHARACTERS_PER_TOKEN


def _key(variable: str) -> str | None:
    """Return the key that a variable holds, without the line end that a file may have left; None if it holds none.

    Raises:
        FederatedConfigError: If no header can hold it.
    """
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise FederatedConfigError(
            f"Expected the key in the environment variable '{variable}' to be printable ASCII but got other characters:"
            " set it again, without line breaks inside."
        )
    return key or None


def _text(answer: Mapping[str, Any]) -> str:
    """Return the text of an answer.

    Raises:
        LookupError, TypeError: If it has none.
    """
    content = answer["choices"][0]["message"]["content"]
    if not isinstance(content, str):
        raise TypeError(f"`content` of type {type(content).__name__}")
    return content
