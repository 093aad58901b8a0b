"""What the cells of a column may be: texts, and numbers where a CSV file, all of whose cells are text, means some."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import datasets

from pl_fed.datamodules.sources import Splits
from pl_fed.errors import FederatedConfigError

NUMBER = re.compile(r"[+-]?(0|[1-9][0-9]{0,17})(\.[0-9]+)?")  # whole ones fit 64 bits


def is_csv(rows: datasets.Dataset) -> bool:
    """Tell whether rows were read from a CSV file, so that a number can only be written as text."""
    return bool(rows.builder_name == "csv")


def numbers(cells: Iterable[Any]) -> dict[Any, int | float]:
    """Return the number that each text is, or nothing unless all cells but missing ones are numbers.

    They are codes and no numbers if one has leading zeros or two are written differently but equal.

    Example:
        >>> numbers(["10", None, "2"]), numbers(["1", "2.5"]), numbers(["01", "1"]), numbers(["1.5", "1.50"])
        ({'10': 10, '2': 2}, {'1': 1.0, '2.5': 2.5}, {}, {})
    """
    texts: dict[str, None] = {}
    for cell in cells:
        if cell is None:
            continue
        if not isinstance(cell, str) or not NUMBER.fullmatch(cell):
            return {}
        texts[cell] = None
    kind = float if any("." in text for text in texts) else int
    found = {text: kind(text) for text in texts}
    return found if len(set(found.values())) == len(found) else {}


def lossless_numbers(cells: list[Any]) -> list[Any]:
    """Return cells as numbers if their texts can be had back from these, else as they are.

    Example:
        >>> lossless_numbers(["10", "2"]), lossless_numbers(["1", "2.5"])
        ([10, 2], ['1', '2.5'])
    """
    found = numbers(cells)
    if any(str(number) != text for text, number in found.items()):
        return cells
    return [found.get(cell) for cell in cells] if found else cells


def describe(value: Any) -> str:
    """Return a value and its kind for an error."""
    shown = repr(value)
    return f"{shown if len(shown) <= 60 else shown[:57] + '...'} ({type(value).__name__})"


def check_texts(splits: Splits, columns: Sequence[str], name: str) -> None:
    """Check that columns hold text, or what is one when it is written out: numbers, truth values, dates.

    Args:
        splits: The rows.
        columns: Names of columns that all splits have.
        name: The data set's name.

    Raises:
        FederatedConfigError: If one has a list, a record or bytes.
    """
    for split, rows in splits.items():
        for column in columns:
            feature = rows.features[column]
            if isinstance(feature, datasets.ClassLabel | datasets.Value) and "binary" not in feature.dtype:
                continue  # the others are lists and records, or anything, row by row
            for value in rows.with_format(None)[column]:
                if not (value is None or isinstance(value, str | int | float)):
                    raise FederatedConfigError(
                        f"Expected text in column '{column}' in the {split} split of '{name}' but got "
                        f"{describe(value)}: write it as text, or set `columns`."
                    )


def check_ids(cells: Sequence[Any], column: str) -> None:
    """Check that a column can tell clients apart: texts or numbers, one in every row.

    Raises:
        FederatedConfigError: If cells are missing, of several kinds, or lists, records or bytes.
    """
    if missing := sum(value is None for value in cells):
        raise FederatedConfigError(
            f"Expected a value in every row of `partitioner.partition_by`='{column}' but {missing} of {len(cells)} "
            "have none: fill them in or leave these rows out of the data."
        )
    for value in cells:
        if isinstance(value, list | dict | bytes):
            raise FederatedConfigError(
                f"Expected texts or numbers in `partitioner.partition_by`='{column}' but got {describe(value)}: write "
                "them as text, or choose another column."
            )
    kinds = {"number" if type(value) in (int, float) else type(value).__name__: value for value in cells}
    if len(kinds) > 1:
        raise FederatedConfigError(
            f"Expected values of one kind in `partitioner.partition_by`='{column}' but got "
            f"{' and '.join(map(describe, kinds.values()))}: write all as text."
        )
