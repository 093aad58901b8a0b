"""Classes of examples: from whatever a column holds to numbers and names."""

from typing import Any

import datasets
import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from pl_fed.datamodules.cells import describe, is_csv, numbers
from pl_fed.datamodules.sources import Splits
from pl_fed.errors import FederatedConfigError


def read_labels(splits: Splits, column: str) -> tuple[Splits, np.ndarray, list[str]]:
    """Number the classes and leave out rows without one: missing, or -1 among named classes (hidden test sets).

    Returns:
        The splits, the class of every row of all splits, and the names of the classes.

    Raises:
        FederatedConfigError: If the labels are no classes or no training row has one.
    """
    values = _values(splits, column)
    feature = splits["train"].features[column]
    is_named = isinstance(feature, datasets.ClassLabel)
    everything = [value for column_values in values.values() for value in column_values if value is not None]
    for value in everything:
        if not isinstance(value, int | str):
            raise FederatedConfigError(
                f"Expected integers or strings as classes in column '{column}' but got {describe(value)}: set "
                "`columns.label`."
            )
    seen = set(everything)
    classes = list(range(feature.num_classes)) if is_named else _in_order(seen)
    number = {value: i for i, value in enumerate(classes)}
    kept = {
        name: [i for i, value in enumerate(column_values) if value in number] for name, column_values in values.items()
    }
    if not kept["train"]:
        raise FederatedConfigError(f"Expected training rows with a class in column '{column}' but none has one.")
    if missing := sum(map(len, splits.values())) - sum(map(len, kept.values())):
        rank_zero_info(f"Left out {missing} rows without a class in column '{column}'.")
    labelled = {
        name: rows if len(kept[name]) == len(rows) else rows.select(kept[name])
        for name, rows in splits.items()
        if kept[name]
    }
    labels = np.array([number[values[name][i]] for name in labelled for i in kept[name]])
    return labelled, labels, list(feature.names) if is_named else [str(value) for value in classes]


def _values(splits: Splits, column: str) -> dict[str, list[Any]]:
    """Return the cells of each split, those of CSV files as numbers if all of them are."""
    values: dict[str, list[Any]] = {name: rows[column][:] for name, rows in splits.items()}
    written = [name for name, rows in splits.items() if is_csv(rows)]
    found = numbers(cell for name in written for cell in values[name])
    return values | {name: [found.get(cell) for cell in values[name]] for name in written if found}


def _in_order(classes: set[Any]) -> list[Any]:
    """Sort integers by value and strings by letter; of both together, integers come first."""
    return sorted(classes, key=lambda value: (isinstance(value, str), value))
