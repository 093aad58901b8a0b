"""Tokens on disk: made once for each (data, tokenizer, settings), memory mapped ever after.

The file is written beside its final name and renamed, and a lock lets one process work while others wait, so several
ranks or runs can share the folder. A file that cannot be read, or has another number of rows, is made again.
"""

import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from filelock import FileLock

CACHE_FORMAT = 1  # part of every key: raise it when the same input gives other tokens than before
FEATURES = datasets.Features(
    {
        "input_ids": datasets.Sequence(datasets.Value("int32")),
        "prompt_length": datasets.Value("int32"),  # tokens before the response; 0 where there is none
        "is_cut": datasets.Value("bool"),  # longer than the limit
    }
)
Encode = Callable[[dict[str, list[Any]]], dict[str, list[Any]]]


@dataclass(frozen=True)
class TokenStats:
    """What tokenising did to the data; lengths in tokens.

    Args:
        num_examples: Examples that are used.
        num_dropped: Examples left out because they are empty or no token of the response was left.
        num_cut: Used examples that were longer than the limit.
        num_tokens: Tokens of the used examples.
        longest: Length of the longest.
    """

    num_examples: int
    num_dropped: int
    num_cut: int
    num_tokens: int
    longest: int

    def __str__(self) -> str:
        """Say it in one line."""
        mean, cut = self.num_tokens / max(1, self.num_examples), self.num_cut / max(1, self.num_examples)
        dropped = f", {self.num_dropped} dropped without anything to learn from" if self.num_dropped else ""
        lengths = f"{mean:.1f} tokens on average, {self.longest} at most"
        return f"{self.num_examples} examples of {lengths}, {cut:.1%} cut{dropped}"


class TokenTable:
    """Rows of token ids of several token files, read straight from the memory map.

    Args:
        files: Data sets with the columns of `FEATURES`.
    """

    def __init__(self, files: Sequence[datasets.Dataset]) -> None:
        chunks = [chunk for rows in files for chunk in rows.data.column("input_ids").chunks]
        self._values = [chunk.values.to_numpy() for chunk in chunks]
        self._offsets = [chunk.offsets.to_numpy() for chunk in chunks]
        self._starts: list[int] = np.cumsum([0, *map(len, chunks)]).tolist()
        self.lengths: list[int] = [n for offsets in self._offsets for n in np.diff(offsets).tolist()]
        self.prompt_lengths, self.is_cut = (
            np.concatenate([rows.data.column(name).to_numpy() for rows in files])
            for name in ("prompt_length", "is_cut")
        )

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._starts[-1]

    def __getitem__(self, idx: int) -> np.ndarray:
        """Return the token ids of a row, as a read-only view."""
        chunk = bisect_right(self._starts, idx) - 1
        offsets, row = self._offsets[chunk], idx - self._starts[chunk]
        ids: np.ndarray = self._values[chunk][offsets[row] : offsets[row + 1]]
        return ids

    def usable(self, sizes: dict[str, int]) -> dict[str, list[int]]:
        """Return the indices of the rows that have tokens by split, given the splits' sizes in order."""
        found, start = {}, 0
        for name, size in sizes.items():
            found[name] = [i for i in range(start, start + size) if self.lengths[i] > 0]
            start += size
        return found

    def stats(self) -> TokenStats:
        """Summarise all rows; those of length zero count as dropped."""
        lengths = np.asarray(self.lengths)
        used = lengths > 0
        return TokenStats(
            num_examples=int(used.sum()),
            num_dropped=int((~used).sum()),
            num_cut=int((self.is_cut & used).sum()),
            num_tokens=int(lengths.sum()),
            longest=int(lengths.max(initial=0)),
        )


def content_hash(data: datasets.Dataset, columns: Sequence[str]) -> str:
    """Hash the content of some columns, wherever it came from and however it is stored."""
    digest = hashlib.sha256()
    for batch in data.select_columns(list(columns)).with_format(None).iter(batch_size=1000):
        digest.update(json.dumps([batch[name] for name in columns], default=str).encode())
    return digest.hexdigest()


def tokenise_once(
    data: datasets.Dataset, columns: Sequence[str], encode: Encode, settings: Sequence[str], folder: Path
) -> datasets.Dataset:
    """Return the tokens of `data`, from the cache if it has them.

    Args:
        data: The rows.
        columns: What `encode` reads.
        encode: Turns a batch of these columns into the columns of `FEATURES`.
        settings: Everything besides the rows that decides what `encode` returns.
        folder: The cache.
    """
    parts = [str(CACHE_FORMAT), *columns, *settings, content_hash(data, columns)]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
    target, partial = folder / f"{key}.arrow", folder / f"{key}.partial"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{key}.lock"):
        if (found := _open(target, len(data))) is not None:
            return found
        data.select_columns(list(columns)).with_format(None).map(
            encode,
            batched=True,
            remove_columns=list(columns),
            features=FEATURES,
            cache_file_name=str(partial),
            load_from_cache_file=False,
            new_fingerprint=key,  # else the tokenizer is pickled and hashed
            desc="Tokenising",
        )
        os.replace(partial, target)
    made = _open(target, len(data))
    assert made is not None, f"{target} was just written"
    return made


def _open(path: Path, num_rows: int) -> datasets.Dataset | None:
    """Map a token file into memory; None if it is missing, damaged or of another size."""
    try:
        rows = datasets.Dataset.from_file(str(path))
    except (OSError, ValueError):  # Arrow raises either
        return None
    return rows if len(rows) == num_rows and rows.features == FEATURES else None
