"""Tiny rated images: texts and pictures whose scores can be seen, the clients that hold them, and quick modules."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pl_fed.modules import LoraSettings, ScoreSettings, SemanticScorer

NUM_CLIENTS = 4
ADAMW = partial(torch.optim.AdamW, lr=2e-2)
SEMANTIC = ScoreSettings(("semantic",), levels=5)


def rated_rows(num_rows: int = 40) -> list[dict[str, Any]]:
    """Return texts that repeat a word of their semantic level, in pictures as bright as their entity level."""
    generator = torch.Generator().manual_seed(6)
    rows = []
    for i in range(num_rows):
        entity, semantic = (i // 5) % 5, i % 5
        ids = torch.full((int(torch.randint(3, 8, (), generator=generator)),), 5 + semantic)
        image = 0.1 * torch.randn(3, 16, 16, generator=generator) + entity / 2 - 1
        targets = torch.tensor([entity / 4, semantic / 4])
        rows.append({"input_ids": ids, "images": image, "targets": targets, "client_id": i % NUM_CLIENTS})
    return rows


def without_semantic(rows: list[dict[str, Any]], every: int) -> list[dict[str, Any]]:
    """Return the rows, every so many of them without a semantic rating."""
    lost = torch.tensor([0.0, math.nan])
    return [{**row, "targets": row["targets"] + (lost if i % every == 0 else 0)} for i, row in enumerate(rows)]


def collate_rated(rows: list[dict[str, Any]]) -> dict[str, Any]:
    ids = [row["input_ids"] for row in rows]
    return {
        "targets": torch.stack([row["targets"] for row in rows]),
        "client_id": torch.tensor([row["client_id"] for row in rows]),
        "file_names": [f"{int(row['targets'].nan_to_num()[1] * 4)}.png" for row in rows],
        "images": torch.stack([row["images"] for row in rows]),
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
    }


def shards(rows: list[dict[str, Any]]) -> list[list[int]]:
    return [[i for i, row in enumerate(rows) if row["client_id"] == k] for k in range(NUM_CLIENTS)]


def scorer(folder: str, **changes: Any) -> SemanticScorer:
    torch.manual_seed(2)
    return SemanticScorer(folder, **{"lora": LoraSettings(r=2), "optimizer": ADAMW, **changes})


def column(batches: Any, name: str) -> Tensor:
    return torch.cat([batch[name] for batch in batches])
