"""Examples and how they become batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import Dataset

from pl_fed.datamodules.tokens import TokenTable

IGNORED = -100  # the label that cross entropy leaves out
Example = dict[str, Any]
Collate = Callable[[list[Example]], dict[str, Tensor]]


class ExampleDataset(Dataset[Example]):
    """All examples of all splits; a shard is a list of its indices.

    Args:
        tokens: Token ids by example.
        targets: The class by example, or the length of the prompt in tokens.
        client_ids: The client that holds the example; -1 for the server's and the data's own splits.
    """

    def __init__(self, tokens: TokenTable, targets: np.ndarray, client_ids: np.ndarray) -> None:
        self.tokens, self.targets, self.client_ids = tokens, targets, client_ids

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.tokens)

    def __getitem__(self, idx: int) -> Example:
        """Return one example."""
        return {
            "input_ids": self.tokens[idx],
            "target": int(self.targets[idx]),
            "client_id": int(self.client_ids[idx]),
        }


def pad(
    rows: Sequence[np.ndarray], value: int, multiple_of: int | None = None, left: bool = False
) -> Int64[Tensor, "batch length"]:
    """Stack rows of different lengths.

    Args:
        rows: Token ids or labels.
        value: What to fill up with.
        multiple_of: The length becomes a multiple of it.
        left: Put the filling in front.
    """
    length = max(map(len, rows))
    if multiple_of is not None:
        length = -(-length // multiple_of) * multiple_of
    padded = np.full((len(rows), length), value, np.int64)
    for target, row in zip(padded, rows, strict=True):
        target[length - len(row) if left else 0 : length if left else len(row)] = row
    return torch.from_numpy(padded)  # (batch, length)


@dataclass(frozen=True)
class TextCollator:
    """Makes a batch for classification: `labels` has one class for each text.

    Args:
        pad_token_id: Fills up `input_ids`.
        multiple_of: The length becomes a multiple of it.
    """

    pad_token_id: int
    multiple_of: int | None = None

    def __call__(self, examples: list[Example]) -> dict[str, Tensor]:
        """Return `input_ids` and `attention_mask` (batch, length), `labels` and `client_id` (batch,)."""
        rows = [example["input_ids"] for example in examples]
        return {
            **self._inputs(rows),
            "labels": torch.tensor([example["target"] for example in examples]),
            "client_id": torch.tensor([example["client_id"] for example in examples]),
        }

    def _inputs(self, rows: Sequence[np.ndarray], left: bool = False) -> dict[str, Tensor]:
        mask = [np.ones(len(row), np.int64) for row in rows]
        return {
            "input_ids": pad(rows, self.pad_token_id, self.multiple_of, left),
            "attention_mask": pad(mask, 0, self.multiple_of, left),
        }


@dataclass(frozen=True)
class InstructionCollator(TextCollator):
    """Makes a batch for a causal model: `labels` are the response's tokens, and -100 on the prompt and the padding.

    Args:
        pad_token_id: Fills up `input_ids`.
        multiple_of: The length becomes a multiple of it.
        with_prompts: Add `prompt_input_ids` and `prompt_attention_mask`, padded on the left for generation.
    """

    with_prompts: bool = False

    def __call__(self, examples: list[Example]) -> dict[str, Tensor]:
        """Return `input_ids`, `attention_mask` and `labels` (batch, length) and `client_id` (batch,)."""
        rows = [example["input_ids"] for example in examples]
        prompts = [row[: example["target"]] for row, example in zip(rows, examples, strict=True)]
        labels = [
            np.concatenate([np.full(len(p), IGNORED), row[len(p) :]]) for p, row in zip(prompts, rows, strict=True)
        ]
        batch = {
            **self._inputs(rows),
            "labels": pad(labels, IGNORED, self.multiple_of),
            "client_id": torch.tensor([example["client_id"] for example in examples]),
        }
        if self.with_prompts:
            batch |= {f"prompt_{name}": value for name, value in self._inputs(prompts, left=True).items()}
        return batch
