"""From texts about images to token ids that fit a model's window, cut section by section; in training and in use."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from pl_fed.isa.shortening import shorten

FORMAT = 1  # part of the keys of token caches: raise it when the same text gives other tokens than before


@dataclass(frozen=True)
class StoryEncoder:
    """Turns texts into token ids; one that is too long loses parts of its longest sections first.

    Args:
        tokenizer: The model's tokenizer.
        max_length: Largest number of tokens of a text, special ones included.
        column: Where batches have the text.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    column: str = "text"

    def __call__(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """Encode a batch of columns, as the token tables of the data sets want it."""
        encoded = [self.encode(text) for text in batch[self.column]]
        return {
            "input_ids": [ids for ids, _ in encoded],
            "prompt_length": [0] * len(encoded),
            "is_cut": [is_cut for _, is_cut in encoded],
        }

    def encode(self, text: str) -> tuple[list[int], bool]:
        """Return the token ids of a text, and whether it was cut."""
        room = self.max_length - self.tokenizer.num_special_tokens_to_add()
        short = shorten(text, self._count, max(room, 0))
        # a single word may be too long yet
        ids: list[int] = self.tokenizer(short, truncation=True, max_length=self.max_length).input_ids
        return ids, short != text

    def _count(self, text: str) -> int:
        return len(self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def share_cut(texts: Sequence[str], num_kept: int, tokenizer: PreTrainedTokenizerBase) -> float:
    """Return the share of the texts' tokens that is missing; nan of nothing.

    Args:
        texts: The whole texts.
        num_kept: Tokens that are left of them.
        tokenizer: The model's tokenizer.
    """
    full = sum(map(len, tokenizer(list(texts), verbose=False).input_ids)) if texts else 0
    return 1 - num_kept / full if full else math.nan
