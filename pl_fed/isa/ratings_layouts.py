"""The three layouts of ratings: scores as they are (ISA), a row for each rating (long), a column for each rater (wide).

| layout | columns |
|---|---|
| ISA | `file_name`, `entity_score`, `semantic_score` |
| long | `file_name`, `rater`, `entity`, `semantic` |
| wide | `file_name`, and `entity_<rater>` and `semantic_<rater>` for every rater |
"""

import math
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pl_fed.errors import FederatedConfigError
from pl_fed.isa.ratings_tables import TableRow

SCORES = ("entity", "semantic")
ONLY_RATER = "mean"  # the rater of scores that are averages already
NO_RATERS = {"score", "1_to_5", "uncertainty"}  # ends of the columns that our own tables of scores have
MISSING = {"", "nan", "na", "n/a", "none", "null"}


@dataclass(frozen=True)
class Rating:
    """What one rater says of one image.

    Args:
        place: Where it is written.
        file_name: The image.
        rater: Who says it.
        values: Entity and semantic score as they are written; nan where there is none.
        columns: The other columns of the row, as text.
    """

    place: str
    file_name: str
    rater: str
    values: tuple[float, float]
    columns: dict[str, str]


def find_ratings(rows: Sequence[TableRow], name: str) -> list[Rating]:
    """Return the ratings of a table in any of the layouts.

    Args:
        rows: The table.
        name: Its file, for a reader of an error.

    Raises:
        FederatedConfigError: If it has none of the layouts, or a cell is no rating.
    """
    columns = list(dict.fromkeys(column for row in rows for column in row.cells))
    if "file_name" not in columns:
        raise FederatedConfigError(
            f"Expected column 'file_name' in '{name}' but it has {', '.join(columns)}: rename the column with the "
            "names of the images."
        )
    if "rater" in columns:
        return list(_long(rows, _score_columns(columns, name)))
    if {"entity_score", "semantic_score"} <= set(columns):
        _check_no_raters(columns, name)
        return list(_long(rows, ("entity_score", "semantic_score")))
    return list(_wide(rows, _wide_raters(columns, name)))


def _score_columns(columns: Sequence[str], name: str) -> tuple[str, str]:
    for suffix in ("", "_score"):
        if all(score + suffix in columns for score in SCORES):
            return SCORES[0] + suffix, SCORES[1] + suffix
    raise FederatedConfigError(
        f"Expected columns 'entity' and 'semantic' beside 'rater' in '{name}' but it has {', '.join(columns)}: rename "
        "them."
    )


def _check_no_raters(columns: Sequence[str], name: str) -> None:
    """Refuse a table that could be of the ISA layout and of the wide one, of which one would be lost."""
    ends = [column.removeprefix("entity_") for column in columns if column.startswith("entity_")]
    raters = [end for end in ends if end not in NO_RATERS and f"semantic_{end}" in columns]
    if raters:
        both = ", ".join(f"'{score}_{rater}'" for rater in raters for score in SCORES)
        raise FederatedConfigError(
            f"Expected either 'entity_score' and 'semantic_score' or columns of raters in '{name}' but it also has "
            f"{both}: remove the columns that are not to be read, or rename the first two if 'score' is a rater."
        )


def _wide_raters(columns: Sequence[str], name: str) -> list[str]:
    by_score = [[c.removeprefix(f"{score}_") for c in columns if c.startswith(f"{score}_")] for score in SCORES]
    if not by_score[0] or set(by_score[0]) != set(by_score[1]):
        raise FederatedConfigError(
            "Expected columns 'entity_score' and 'semantic_score', or 'rater', 'entity' and 'semantic', or "
            f"'entity_<rater>' and 'semantic_<rater>' for every rater, but '{name}' has {', '.join(columns)}: rename "
            "them."
        )
    return by_score[0]


def _long(rows: Sequence[TableRow], scores: tuple[str, str]) -> Iterator[Rating]:
    for row in rows:
        rater = _text(row, "rater") if "rater" in row.cells else ONLY_RATER
        others = _others(row, {"file_name", "rater", *scores})
        values = (_number(row, scores[0]), _number(row, scores[1]))
        yield Rating(row.place, _text(row, "file_name"), rater, values, others)


def _wide(rows: Sequence[TableRow], raters: Sequence[str]) -> Iterator[Rating]:
    used = {"file_name", *(f"{score}_{rater}" for score in SCORES for rater in raters)}
    for row in rows:
        file_name, others = _text(row, "file_name"), _others(row, used)
        for rater in raters:
            values = (_number(row, f"entity_{rater}"), _number(row, f"semantic_{rater}"))
            yield Rating(row.place, file_name, rater, values, others)


def _others(row: TableRow, used: set[str]) -> dict[str, str]:
    return {name: str(cell) for name, cell in row.cells.items() if name not in used and cell not in (None, "")}


def _text(row: TableRow, column: str) -> str:
    cell = row.cells.get(column)
    if cell is None or not str(cell).strip() or (column == "file_name" and not isinstance(cell, str)):
        raise FederatedConfigError(f"Expected text in column '{column}' of {row.place} but got {cell!r}: fill it in.")
    return str(cell)


def _number(row: TableRow, column: str) -> float:
    """Return a rating; nan if there is none."""
    cell: Any = row.cells.get(column)
    if cell is None or (isinstance(cell, str) and cell.strip().lower() in MISSING):
        return math.nan
    try:
        value = math.inf if isinstance(cell, bool) else float(cell)
    except (TypeError, ValueError, OverflowError):
        value = math.inf
    if math.isinf(value):
        raise FederatedConfigError(
            f"Expected a number in column '{column}' of {row.place} but got {reprlib.repr(cell)}: write "
            "ratings like 3 or 0.5."
        )
    return value
