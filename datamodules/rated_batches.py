"""Rated images and how they become batches."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pl_fed.datamodules.batches import Example, pad
from pl_fed.datamodules.decoding import ImageTable
from pl_fed.datamodules.image_batches import ImageCollator
from pl_fed.datamodules.tokens import TokenTable
from pl_fed.isa.ratings import RatedImage


class RatedDataset(Dataset[Example]):
    """All rated images; a shard is a list of their indices.

    Args:
        rated: Names and scores.
        images: The decoded images, if they are used.
        texts: Texts by kind.
        tokens: Their tokens by kind, if there is a tokenizer.
        client_ids: The client that holds the image; -1 for the server's.
    """

    def __init__(
        self,
        rated: list[RatedImage],
        images: ImageTable | None,
        texts: dict[str, list[str]],
        tokens: dict[str, TokenTable],
        client_ids: np.ndarray,
    ) -> None:
        self.rated, self.images, self.texts, self.tokens, self.client_ids = rated, images, texts, tokens, client_ids

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.rated)

    def __getitem__(self, idx: int) -> Example:
        """Return one example."""
        rated = self.rated[idx]
        return {
            "image": None if self.images is None else self.images[idx],
            "texts": {kind: texts[idx] for kind, texts in self.texts.items()},
            "tokens": {kind: tokens[idx] for kind, tokens in self.tokens.items()},
            "targets": rated.scores,
            "ratings": rated.by_rater,
            "file_name": rated.file_name,
            "client_id": int(self.client_ids[idx]),
            "idx": int(idx),
        }


@dataclass(frozen=True)
class RatedCollator:
    """Makes a batch for a scorer.

    Args:
        images: Makes `images` of pixels; None leaves them out.
        pad_token_id: Fills up tokens.
        multiple_of: Their length becomes a multiple of it.
    """

    images: ImageCollator | None
    pad_token_id: int = 0
    multiple_of: int | None = None

    def __call__(self, examples: list[Example]) -> dict[str, Any]:
        """Return what `RatedImages` documents."""
        batch: dict[str, Any] = {
            "targets": _stack(examples, "targets"),
            "ratings": _stack(examples, "ratings"),
            "client_id": torch.tensor([example["client_id"] for example in examples]),
            "file_names": [example["file_name"] for example in examples],
        }
        if self.images is not None:
            batch["images"] = self.images.images(examples)
        for kind in examples[0]["texts"]:
            batch[f"{kind}_text"] = [example["texts"][kind] for example in examples]
        for number, kind in enumerate(examples[0]["tokens"]):
            rows = [example["tokens"][kind] for example in examples]
            prefix = f"{kind}_" if number else ""
            batch[f"{prefix}input_ids"] = pad(rows, self.pad_token_id, self.multiple_of)
            mask = [np.ones(len(row), np.int64) for row in rows]
            batch[f"{prefix}attention_mask"] = pad(mask, 0, self.multiple_of)
        return batch


def _stack(examples: list[Example], key: str) -> Tensor:
    return torch.from_numpy(np.stack([example[key] for example in examples])).float()
