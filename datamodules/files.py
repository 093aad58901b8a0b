"""One local file as a table; what cannot be read is refused in a sentence."""

import codecs
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa

from pl_fed.errors import FederatedConfigError, shortened

BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
_NO_ROWS = ("corresponds to no data", "BatchSize must be greater than 0")  # of JSON, of Parquet


def load_file(path: Path, cache_dir: Path | None) -> datasets.Dataset:
    """Load a table; of a CSV file every cell is the text that is written there, and an empty one is None.

    Args:
        path: The file.
        cache_dir: Folder for its Arrow form; None means the one of `datasets`.

    Raises:
        FederatedConfigError: If the file cannot be read or has no rows.
    """
    if path.suffix not in BUILDERS:
        raise FederatedConfigError(
            f"Expected `dataset` to end in one of {', '.join(sorted(BUILDERS))} but got {path.name!r}: convert "
            "the file."
        )
    builder, cache = BUILDERS[path.suffix], None if cache_dir is None else str(cache_dir)
    try:
        if builder != "parquet":
            _decode(path)
        options = _csv_options(path) if builder == "csv" else {}
        return datasets.load_dataset(builder, data_files=str(path), split="train", cache_dir=cache, **options)
    except FederatedConfigError:
        raise
    except (StopIteration, pd.errors.EmptyDataError):
        raise FederatedConfigError(f"Expected rows in {path.name!r} but the file is empty.") from None
    except (ValueError, pa.ArrowException, datasets.exceptions.DatasetGenerationError) as error:
        raise FederatedConfigError(_refusal(path, error)) from error


def _decode(path: Path) -> None:
    """Read a text once: Arrow takes JSON in any encoding, and Python then fails on its cells."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            decoder.decode(block)
    decoder.decode(b"", final=True)


def _csv_options(path: Path) -> dict[str, Any]:
    """Return what keeps pandas from guessing types and missing values; it can only be told column by column."""
    options = {"sep": "\t" if path.suffix == ".tsv" else ",", "keep_default_na": False, "na_values": [""]}
    begin = pd.read_csv(path, nrows=1, **options)
    if any("\0" in name for name in begin.columns):
        raise FederatedConfigError(_not_utf8(path, "zero bytes, as UTF-16 has them"))
    if begin.empty:
        raise FederatedConfigError(f"Expected rows in {path.name!r} but it has none below its header: add some.")
    if not isinstance(begin.index, pd.RangeIndex):  # pandas would shift the cells to the left
        raise FederatedConfigError(
            f"Expected {len(begin.columns)} cells in the first row of {path.name!r}, as its header has, but got "
            f"{len(begin.columns) + begin.index.nlevels}: name every column, and put quotes around cells with the "
            "separator in them."
        )
    return {**options, "features": datasets.Features({name: datasets.Value("string") for name in begin.columns})}


def _refusal(path: Path, error: Exception) -> str:
    """Say what is wrong with a file that cannot be read."""
    cause = error.__cause__ or error
    if isinstance(cause, UnicodeDecodeError):
        return _not_utf8(path, f"the byte 0x{cause.object[cause.start]:02x} where it cannot be")
    if any(words in str(cause) for words in _NO_ROWS):
        return f"Expected rows in {path.name!r} but it has none: add some."
    if path.suffix == ".parquet":
        return (
            f"Expected {path.name!r} to be a whole Parquet file but it cannot be read ({shortened(cause)}): copy or "
            "write it again."
        )
    return (
        f"Expected {path.name!r} to be a table with the same columns in every row but it cannot be read "
        f"({shortened(cause)}): mend or remove that row."
    )


def _not_utf8(path: Path, found: str) -> str:
    return f"Expected {path.name!r} to be text in UTF-8 but got {found}: save it as UTF-8."
