"""Tables of scores and texts: CSV, JSON lines, JSON or Parquet, by the ending of the file's name."""

import csv
import errno
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from pl_fed.errors import FederatedConfigError

Row = dict[str, Any]
ENDINGS = (".csv", ".jsonl", ".json", ".parquet")
_NESTED = "clues"  # a list, which CSV holds as JSON
_NUMBERS = ("_score", "_1_to_5", "_uncertainty")
_NAMES = ("file_name", "path")
_FORMULAS = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet would run


def check_ending(path: str | Path, endings: Sequence[str] = ENDINGS, setting: str = "output") -> None:
    """Refuse a file name that does not say a known format.

    Raises:
        FederatedConfigError: If it does not.
    """
    if Path(path).suffix.lower() not in endings:
        raise FederatedConfigError(
            f"Expected `{setting}` to end in {', '.join(endings)} but got '{path}': the ending chooses the format."
        )


def check_output(path: str | Path, endings: Sequence[str] = ENDINGS, setting: str = "output") -> None:
    """Make the folder of a file and refuse one that cannot be written, before the work whose result it is for.

    Raises:
        FederatedConfigError: If its ending is unknown, or it cannot be written.
    """
    check_ending(path, endings, setting)
    check_writable(Path(path), setting)


def check_writable(path: Path, setting: str = "output") -> None:
    """Make the folder of a file and refuse one that cannot be written.

    Raises:
        FederatedConfigError: If it cannot be written.
    """
    probe = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise FederatedConfigError(
            f"Expected `{setting}` to be a file that can be written but got '{path}' ({error.strerror}): give another "
            "path."
        ) from error


def write_rows(rows: Sequence[Row], path: str | Path) -> None:
    """Write a table; an existing file is replaced only when the new one is whole.

    Args:
        rows: All with the same columns.
        path: The file; its folder is made if needed.

    Raises:
        FederatedConfigError: If the ending is unknown.
    """
    check_ending(path)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        _WRITERS[path.suffix.lower()](rows, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_rows(path: str | Path) -> list[Row]:
    """Read a table that `write_rows` wrote, or any with the same columns.

    Raises:
        FederatedConfigError: If there is no such table.
    """
    check_ending(path, setting="scores")
    try:
        rows = _READERS[Path(path).suffix.lower()](Path(path))
    except (OSError, ValueError, RecursionError, csv.Error, pyarrow.ArrowException) as error:
        raise FederatedConfigError(
            f"Expected `scores` to be a table but '{path}' cannot be read ({error}): give one that `score` wrote."
        ) from error
    if not all(isinstance(row, dict) for row in rows):
        raise FederatedConfigError(f"Expected rows with named columns in '{path}' but got other values: check it.")
    return rows


def _clean(value: Any) -> Any:
    """Return a value without lone surrogates, which no file can hold."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {key: _clean(inner) for key, inner in value.items()}
    return [_clean(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _to_csv(rows: Sequence[Row], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]) if rows else ["file_name"])
        writer.writeheader()
        for row in rows:
            writer.writerow({name: _cell(name, value) for name, value in _clean(row).items()})


def _cell(name: str, value: Any) -> Any:
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    # A spreadsheet would run what a model wrote. Names stay as they are: other tables are joined by them.
    risky = isinstance(value, str) and value.startswith(_FORMULAS) and name not in _NAMES
    return f"'{value}" if risky else value


def _from_csv(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8-sig") as stream:
        rows = list(csv.DictReader(stream))
    if any(None in row for row in rows):
        raise ValueError("a row with more cells than the first line")
    return [{name: _value(name, text) for name, text in row.items()} for row in rows]


def _value(name: str, text: str | None) -> Any:
    if not text:
        return [] if name == _NESTED else None if name.endswith(_NUMBERS) else ""
    if name == _NESTED:
        return json.loads(text)
    if name.endswith(_NUMBERS):
        return float(text)
    return text[1:] if text[0] == "'" and text[1:].startswith(_FORMULAS) and name not in _NAMES else text


def _to_jsonl(rows: Sequence[Row], path: Path) -> None:
    path.write_text("".join(f"{json.dumps(_clean(row), ensure_ascii=False)}\n" for row in rows), encoding="utf-8")


def _from_jsonl(path: Path) -> list[Any]:
    # Not `splitlines`: texts may hold other characters that end a line.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def _to_json(rows: Sequence[Row], path: Path) -> None:
    path.write_text(json.dumps(_clean(list(rows)), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _from_json(path: Path) -> list[Any]:
    found = json.loads(path.read_text(encoding="utf-8"))
    return found if isinstance(found, list) else [found]


def _to_parquet(rows: Sequence[Row], path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(_clean(list(rows))), path)


def _from_parquet(path: Path) -> list[Row]:
    rows: list[Row] = pyarrow.parquet.read_table(path).to_pylist()
    return rows


_WRITERS = {".csv": _to_csv, ".jsonl": _to_jsonl, ".json": _to_json, ".parquet": _to_parquet}
_READERS = {".csv": _from_csv, ".jsonl": _from_jsonl, ".json": _from_json, ".parquet": _from_parquet}
