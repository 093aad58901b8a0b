"""Tables of ratings from CSV, TSV, JSONL and Parquet, cell by cell as they are written, each row with its place."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pl_fed.errors import FederatedConfigError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
DELIMITERS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class TableRow:
    """One row of a table.

    Args:
        place: Where it is, for a reader of an error.
        cells: Value of every column; from CSV always text.
    """

    place: str
    cells: dict[str, Any]


def read_table(path: str | Path) -> list[TableRow]:
    """Read a table; nothing is guessed about types, so ``007.png`` and ``NA`` stay what they are.

    Args:
        path: A .csv, .tsv, .jsonl or .parquet file.

    Raises:
        FederatedConfigError: If it does not exist, has no rows, or is no such table.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() not in SUFFIXES:
        raise FederatedConfigError(
            f"Expected a table that ends in one of {', '.join(SUFFIXES)} but got '{path.name}': convert it."
        )
    if not path.is_file():
        raise FederatedConfigError(f"Expected a table at '{path}' but there is no such file: check the path.")
    reader = {".jsonl": _jsonl, ".parquet": _parquet}.get(path.suffix.lower(), _csv)
    try:
        rows = list(reader(path))
    except UnicodeDecodeError as error:
        raise FederatedConfigError(
            f"Expected '{path.name}' to be text in UTF-8 but got {error.reason} at byte {error.start}: save it as such."
        ) from error
    if not rows:
        raise FederatedConfigError(f"Expected rows in '{path.name}' but it has none: give the file with the ratings.")
    return rows


def _csv(path: Path) -> Iterator[TableRow]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter=DELIMITERS[path.suffix.lower()], strict=True)
        try:
            names = reader.fieldnames or []
            if twice := {name for name in names if names.count(name) > 1}:
                raise FederatedConfigError(
                    f"Expected column names once each in '{path.name}' but got '{min(twice)}' twice: rename one."
                )
            for cells in reader:
                place = f"'{path.name}', line {reader.line_num}"
                if None in cells or None in cells.values():
                    found = len(names) + len(cells.get(None, [])) - list(cells.values()).count(None)
                    raise FederatedConfigError(
                        f"Expected {len(names)} cells in {place}, as in the first line, but got {found}: put quotes "
                        "around cells with the delimiter in them."
                    )
                yield TableRow(place, dict(cells))
        except csv.Error as error:
            raise FederatedConfigError(
                f"Expected '{path.name}' to be a CSV file but got an error after line {reader.line_num}: {error}; mend "
                "it."
            ) from error


def _jsonl(path: Path) -> Iterator[TableRow]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            place = f"'{path.name}', line {number}"
            try:
                cells = json.loads(line)
            except (ValueError, RecursionError) as error:  # too many digits, or levels
                raise FederatedConfigError(f"Expected JSON in {place} but got: {error}; mend the line.") from error
            if not isinstance(cells, dict):
                raise FederatedConfigError(
                    f"Expected a JSON object in {place} but got {type(cells).__name__}: write one object a line."
                )
            yield TableRow(place, cells)


def _parquet(path: Path) -> Iterator[TableRow]:
    try:
        rows = pq.read_table(path).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise FederatedConfigError(
            f"Expected '{path.name}' to be a Parquet file but got: {str(error).rstrip('.')}; write it anew."
        ) from error
    for number, cells in enumerate(rows, 1):
        yield TableRow(f"'{path.name}', row {number}", cells)
