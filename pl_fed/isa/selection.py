"""Chooses images by their scores: a story rich enough, in a picture neither empty nor crowded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pl_fed.errors import FederatedConfigError
from pl_fed.isa.tables import Row

_NEEDED = ("file_name", "entity_score", "semantic_score")
EVERY = (0.0, 1.0)


@dataclass(frozen=True)
class Criteria:
    """Which images are wanted; scores from 0 to 1.

    Args:
        min_ss: Lowest semantic score.
        es: Lowest and highest entity score.
        top: Most images that are taken, those of the highest semantic score; None for all.
    """

    min_ss: float = 0.0
    es: tuple[float, float] = EVERY
    top: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.min_ss <= 1:
            raise FederatedConfigError(f"Expected `min_ss` from 0 to 1 but got {self.min_ss}: (level - 1) / 4.")
        if not 0 <= self.es[0] <= self.es[1] <= 1:
            raise FederatedConfigError(
                f"Expected `es` to be a lowest and a highest score from 0 to 1 but got {self.es}: (level - 1) / 4."
            )
        if self.top is not None and self.top < 1:
            raise FederatedConfigError(f"Expected `top` of at least 1 but got {self.top}: raise it.")

    def __str__(self) -> str:
        """Write the query as a reader would."""
        top = "" if self.top is None else f", the best {self.top}"
        return f"SS >= {self.min_ss:g} and {self.es[0]:g} <= ES <= {self.es[1]:g}{top}"


def select(rows: Sequence[Row], criteria: Criteria) -> list[Row]:
    """Return the rows that meet the criteria, the highest semantic score first; ties by name.

    Args:
        rows: Rows of a table of scores; those without a semantic score are left out, and those without an entity score
            unless every one is welcome.
        criteria: What is wanted.

    Raises:
        FederatedConfigError: If the rows are no scores.

    Example:
        >>> rows = [{"file_name": n, "entity_score": 0.5, "semantic_score": s} for n, s in (("a", 0.2), ("b", 0.8))]
        >>> [row["file_name"] for row in select(rows, Criteria(min_ss=0.5))]
        ['b']
    """
    scored = [row for row in rows if _checked(row)]
    wanted = [r for r in scored if r["semantic_score"] >= criteria.min_ss and _inside(r["entity_score"], criteria.es)]
    return sorted(wanted, key=lambda r: (-r["semantic_score"], str(r["file_name"])))[: criteria.top]


def _inside(score: float | None, band: tuple[float, float]) -> bool:
    return band == EVERY if score is None else band[0] <= score <= band[1]


def _checked(row: Row) -> bool:
    """Say whether a row has a semantic score.

    Raises:
        FederatedConfigError: If it is no row of scores.
    """
    if missing := [name for name in _NEEDED if name not in row]:
        raise FederatedConfigError(
            f"Expected `scores` with the columns {', '.join(_NEEDED)} but got none called {', '.join(missing)}: give a"
            " table that `score` wrote."
        )
    values = [row["entity_score"], row["semantic_score"]]
    if row["semantic_score"] is None:
        return False
    if not all(v is None or (isinstance(v, (int, float)) and 0 <= v <= 1) for v in values):
        raise FederatedConfigError(
            f"Expected scores from 0 to 1 but '{row['file_name']}' has {values}: for levels use (level - 1) / 4."
        )
    if not (_is_text(row.get("description")) and all(map(_is_finding, _list(row.get("clues"))))):
        raise FederatedConfigError(
            f"Expected a text in `description` and sections in `clues` but '{row['file_name']}' has other values: give"
            " a table that `score` wrote."
        )
    return True


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _list(value: Any) -> list[Any]:
    """Return what stands for findings; something that is none if it is no list."""
    return value if isinstance(value, list) else [] if value is None else [value]


def _is_finding(value: Any) -> bool:
    known = isinstance(value, dict) and {"section", "clues", "conclusion"} <= value.keys()
    return known and isinstance(value["clues"], list)
