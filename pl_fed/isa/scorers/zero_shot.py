"""Scores by the rubric with a language model that was trained on no rating.

The model reads the rubric and the text, and is asked for the level. The probabilities of the five level tokens, among
themselves, give the expected level; their spread is the uncertainty. Small models hardly tell the levels apart.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from pl_fed.assets import hub_or_caches, resolve_model
from pl_fed.errors import FederatedConfigError, first_line
from pl_fed.isa.rubric import NUM_LEVELS, RUBRICS, Rubric
from pl_fed.isa.scorers.base import Score
from pl_fed.isa.shortening import shorten

DEFAULT = "HuggingFaceTB/SmolLM2-135M-Instruct"
_LEVELS = [str(level) for level in range(1, NUM_LEVELS + 1)]
_ANSWER = "Level:"


class ZeroShotScorer:
    """Asks a causal language model for the level.

    Args:
        model: Folder or hub id.
        max_tokens: Longest text in tokens, without the rubric; longer ones are cut section by section.
        device: Where the model runs.
        dtype: Type of its weights.
    """

    def __init__(
        self, model: str = DEFAULT, max_tokens: int = 1000, device: str = "cpu", dtype: str = "float32"
    ) -> None:
        if max_tokens < 1:
            raise FederatedConfigError(f"Expected `max_tokens` of at least 1 but got {max_tokens}: raise it.")
        self._name, self._max_tokens, self._device, self._dtype = model, max_tokens, device, dtype
        self._loaded: tuple[Any, Any] | None = None

    def score(self, texts: Sequence[str], images: Sequence[Image.Image]) -> Sequence[Score]:
        """Return the scores; the images are not used."""
        return [self._one(text) for text in texts]

    def _one(self, text: str) -> Score:
        (entity, entity_sd), (semantic, semantic_sd) = (moments(self.probabilities(text, r)) for r in RUBRICS)
        return Score(entity, semantic, entity_sd, semantic_sd)

    @torch.no_grad()
    def probabilities(self, text: str, rubric: Rubric) -> Float[Tensor, "levels"]:
        """Return the probability of each level for a text.

        Args:
            text: What an extractor wrote.
            rubric: The score that is asked for.
        """
        tokenizer, model = self._load()
        short = shorten(text, lambda t: len(tokenizer(t, add_special_tokens=False).input_ids), self._max_tokens)
        prompt, starts = self._prompt(tokenizer, question(short, rubric))
        context = prompt if starts else f"{prompt} "  # see `_prompt`
        ids = tokenizer(context, add_special_tokens=False, return_tensors="pt").input_ids.to(model.device)
        logits = model(ids).logits[0, -1].float().cpu()
        found: Tensor = logits[level_ids(tokenizer, " " if starts else "")].softmax(-1)
        return found

    def _prompt(self, tokenizer: Any, asked: str) -> tuple[str, bool]:
        """Return all that stands before the level, and whether the space before a digit belongs to its token."""
        starts = all(len(tokenizer(f" {level}", add_special_tokens=False).input_ids) == 1 for level in _LEVELS)
        if not tokenizer.chat_template:
            return f"{tokenizer.bos_token or ''}{asked}\n{_ANSWER}", starts
        messages = [{"role": "user", "content": asked}]
        chat = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return f"{chat}{_ANSWER}", starts

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            folder = resolve_model(self._name, "scorer.model")
            try:
                with hub_or_caches(folder):
                    tokenizer = AutoTokenizer.from_pretrained(folder)
                    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=self._dtype)
                model = model.to(self._device).eval()
            except (OSError, ValueError, KeyError, AttributeError) as error:
                raise FederatedConfigError(
                    f"Expected `scorer.model` to be a causal language model but '{self._name}' did not load as one "
                    f"({first_line(error)}): give another."
                ) from error
            self._loaded = tokenizer, model
        return self._loaded


def question(text: str, rubric: Rubric) -> str:
    """Return what the model is asked."""
    levels = "\n".join(f"{level}: {meaning}" for level, meaning in zip(_LEVELS, rubric.levels, strict=True))
    return (
        f"Rate a picture by what is written about it, on five levels.\n{levels}\n{rubric.rules}\n\n"
        f"What is written about the picture:\n{text}\n\nAnswer with the number of the level only."
    )


def level_ids(tokenizer: Any, before: str) -> list[int]:
    """Return the token of each level.

    Args:
        tokenizer: The model's.
        before: What stands in the same token before the digit.

    Raises:
        FederatedConfigError: If two levels begin with the same token.
    """
    ids = [tokenizer(f"{before}{level}", add_special_tokens=False).input_ids[-1] for level in _LEVELS]
    if len(set(ids)) < NUM_LEVELS:
        raise FederatedConfigError(
            f"Expected a model whose tokenizer tells the digits 1 to 5 apart but it has the tokens {ids}: change "
            "`scorer.model`."
        )
    return ids


def moments(probabilities: Float[Tensor, "levels"]) -> tuple[float, float]:
    """Return mean and standard deviation of the level, both on the scale of 0 to 1.

    Example:
        >>> moments(torch.tensor([0.5, 0.0, 0.0, 0.0, 0.5]))
        (0.5, 0.5)
    """
    scores = torch.linspace(0, 1, NUM_LEVELS, dtype=torch.float64)
    weights = probabilities.double()
    mean = float((weights * scores).sum().clamp(0, 1))
    return mean, float((weights * (scores - mean) ** 2).sum().sqrt())
