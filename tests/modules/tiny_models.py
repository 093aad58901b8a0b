"""Tiny models of real classes, a tokenizer of 32 words, and ragged batches."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

VOCAB = 32
WORDS = ["<pad>", "<eos>", "<unk>", *(f"w{i}" for i in range(3, VOCAB))]  # the word of token 7 is "w7"


def tokenizer(words: list[str] = WORDS, **special: str) -> PreTrainedTokenizerFast:
    core = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = WhitespaceSplit()
    special = special or {"pad_token": "<pad>", "eos_token": "<eos>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", **special)


def save(model: PreTrainedModel, folder: Path, **special: str) -> str:
    model.save_pretrained(folder)
    tokenizer(**special).save_pretrained(folder)
    return str(folder)


def llama_config(**changes: Any) -> LlamaConfig:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaConfig(**{**sizes, "vocab_size": VOCAB, "bos_token_id": None, "eos_token_id": 1, **changes})


Rows = list[dict[str, Any]]


def language_rows(num_rows: int = 12) -> Rows:
    """Return ragged sequences of seven clients, of which client 5 and two others hold several; -1 is nobody's."""
    generator = torch.Generator().manual_seed(3)
    rows = []
    for i in range(num_rows):
        length = int(torch.randint(4, 11, (), generator=generator))
        prompt = int(torch.randint(1, length - 1, (), generator=generator))
        ids = torch.randint(3, VOCAB, (length,), generator=generator)
        rows.append({"input_ids": ids, "prompt": prompt, "client_id": [5, 2, 9, 5, -1][i % 5]})
    return rows


def collate_language(rows: Rows) -> dict[str, torch.Tensor]:
    labels = [torch.where(torch.arange(len(r["input_ids"])) < r["prompt"], -100, r["input_ids"]) for r in rows]
    prompts = [row["input_ids"][: row["prompt"]].flip(0) for row in rows]
    return {
        "input_ids": pad_sequence([row["input_ids"] for row in rows], batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row["input_ids"]) for row in rows], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
        "client_id": torch.tensor([row["client_id"] for row in rows]),
        "prompt_input_ids": pad_sequence(prompts, batch_first=True).flip(1),
        "prompt_attention_mask": pad_sequence([torch.ones_like(p) for p in prompts], batch_first=True).flip(1),
    }


def class_rows(num_rows: int = 24, num_labels: int = 3) -> Rows:
    """Return texts whose class is the word they repeat."""
    generator = torch.Generator().manual_seed(4)
    rows = []
    for i in range(num_rows):
        ids = torch.full((int(torch.randint(3, 8, (), generator=generator)),), 5 + i % num_labels)
        rows.append({"input_ids": ids, "label": i % num_labels, "client_id": i % 4})
    return rows


def collate_classes(rows: Rows) -> dict[str, torch.Tensor]:
    return {
        "input_ids": pad_sequence([row["input_ids"] for row in rows], batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row["input_ids"]) for row in rows], batch_first=True),
        "labels": torch.tensor([row["label"] for row in rows]),
        "client_id": torch.tensor([row["client_id"] for row in rows]),
    }
