"""Ratings of images by one or several raters: entity score and semantic score, each in [0, 1]."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

from pl_fed.errors import FederatedConfigError
from pl_fed.isa.ratings_layouts import SCORES, Rating, find_ratings
from pl_fed.isa.ratings_tables import read_table

Scale = Literal["auto", "1-5", "0-1"]
Missing = Literal["error", "allow"]
LEVELS = (1.0, 5.0)
BY_RATER = "rater"


@dataclass(frozen=True)
class RatedImage:
    """An image with the scores that one group of raters gives it.

    Args:
        file_name: Its name.
        group: The group; empty where all raters are one.
        scores: Means of the group's raters, entity and semantic, in [0, 1]; nan without a rating.
        by_rater: The scores of every rater; nan where there is none.
    """

    file_name: str
    group: str
    scores: Float[np.ndarray, "2"]
    by_rater: Float[np.ndarray, "raters 2"]


@dataclass(frozen=True)
class Ratings:
    """Ratings of images.

    Args:
        source: Where they come from.
        file_names: The images, in the order of the source.
        raters: The raters, in the order of the source.
        scores: Entity and semantic score in [0, 1]; nan where there is none.
        columns: Other columns, such as a site: the text by (image, rater).
    """

    source: str
    file_names: tuple[str, ...]
    raters: tuple[str, ...]
    scores: Float[np.ndarray, "images raters 2"]
    columns: dict[str, dict[tuple[int, int], str]] = field(default_factory=dict)

    def means(self) -> Float[np.ndarray, "images 2"]:
        """Return the mean over the raters of every image; nan where nobody has rated it."""
        return mean_known(self.scores)

    def groups(self, column: str | None) -> list[str]:
        """Return the names of the groups of raters in order; one without a name if `column` is None.

        Raises:
            FederatedConfigError: If there is no such column, or a rating has no value there.
        """
        return sorted({group for group in self._group_table(column).flat if group is not None}) if column else [""]

    def of_group(self, column: str | None, group: str) -> "Ratings":
        """Return the ratings of one group; the others become nan."""
        if column is None:
            return self
        mine = (self._group_table(column) == group)[:, :, None]  # (images, raters, 1)
        return Ratings(self.source, self.file_names, self.raters, np.where(mine, self.scores, np.nan), self.columns)

    def by_group(self, column: str | None = None) -> list[RatedImage]:
        """Return every image once for each group of raters that has rated it.

        Args:
            column: A column such as ``site``, or ``rater`` for groups of one; None takes all raters as one group.

        Raises:
            FederatedConfigError: If there is no such column, or a rating has no value there.
        """
        found = []
        for group in self.groups(column):
            part = self.of_group(column, group)
            seen = ~np.isnan(part.scores).all((1, 2)) if column else np.ones(len(self.file_names), bool)
            means = part.means()
            found += [RatedImage(self.file_names[i], group, means[i], part.scores[i]) for i in np.flatnonzero(seen)]
        return found

    def _group_table(self, column: str) -> np.ndarray:
        """Return the group of every rating as (images, raters); None where there is none."""
        table = np.full((len(self.file_names), len(self.raters)), None, object)
        if column == BY_RATER:
            table[:] = list(self.raters)
        elif column in self.columns:
            for place, value in self.columns[column].items():
                table[place] = value
            self._check_groups(column, table)
        else:
            known = ", ".join([BY_RATER, *self.columns])
            raise FederatedConfigError(
                f"Expected a column of '{self.source}' to group by but got '{column}': it has {known}."
            )
        return table

    def _check_groups(self, column: str, table: np.ndarray) -> None:
        without = np.argwhere((table == None) & ~np.isnan(self.scores).all(2))  # noqa: E711 - elementwise
        if len(without):
            image, rater = without[0]
            raise FederatedConfigError(
                f"Expected a value in column '{column}' of every rating in '{self.source}' but that of "
                f"'{self.file_names[image]}' by '{self.raters[rater]}' has none: fill it in."
            )


def mean_known(scores: Float[np.ndarray, "images raters 2"]) -> Float[np.ndarray, "images 2"]:
    """Return means over raters, of the ratings that are there; nan where none is."""
    known = ~np.isnan(scores)
    counts = known.sum(1)  # (images, 2)
    sums = np.where(known, scores, 0.0).sum(1)
    means: np.ndarray = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    return means


def read_ratings(path: str | Path, scale: Scale = "auto", missing: Missing = "error") -> Ratings:
    r"""Read ratings from a .csv, .tsv, .jsonl or .parquet file in any layout of `pl_fed.isa.ratings_layouts`.

    Args:
        path: The file.
        scale: ``1-5`` becomes [0, 1] by (x - 1) / 4; ``0-1`` is left; ``auto`` finds out by values above or below 1.
        missing: What to do with an empty cell: refuse it, or ``allow`` that the rater has not rated the image.

    Raises:
        FederatedConfigError: If a rating is missing, given twice or outside of the scale; says where it is written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "mine.csv")
        >>> _ = path.write_text("file_name,rater,entity,semantic\na.png,Ann,3,5\na.png,Bob,2,4\n")
        >>> read_ratings(path).means().tolist()
        [[0.375, 0.875]]
    """
    name = Path(path).name
    return make_ratings(find_ratings(read_table(path), name), name, scale, missing)


def make_ratings(found: Sequence[Rating], source: str, scale: Scale = "auto", missing: Missing = "error") -> Ratings:
    """Put ratings into a table and bring them to [0, 1].

    Args:
        found: The ratings as they are written.
        source: Where they come from.
        scale: As in `read_ratings`.
        missing: As in `read_ratings`.

    Raises:
        FederatedConfigError: As in `read_ratings`.
    """
    _check_option("scale", scale, get_args(Scale))
    _check_option("missing", missing, get_args(Missing))
    low, high = (0.0, 1.0) if _found_scale(found, scale, source) == "0-1" else LEVELS
    images, raters = ({name: i for i, name in enumerate(dict.fromkeys(names))} for names in _names(found))
    scores = np.full((len(images), len(raters), 2), np.nan)
    columns: dict[str, dict[tuple[int, int], str]] = {}
    places: dict[tuple[int, int], str] = {}
    for rating in found:
        place = images[rating.file_name], raters[rating.rater]
        if place in places:
            raise FederatedConfigError(
                f"Expected one rating of '{rating.file_name}' by '{rating.rater}' but got them in {places[place]} and "
                f"in {rating.place}: remove one."
            )
        places[place] = rating.place
        _check(rating, low, high, missing)
        scores[place] = (np.array(rating.values) - low) / (high - low)
        for column, value in rating.columns.items():
            columns.setdefault(column, {})[place] = value
    return Ratings(source, tuple(images), tuple(raters), scores, columns)


def _check_option(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise FederatedConfigError(f"Expected `{name}` to be one of {', '.join(known)} but got '{value}'.")


def _names(found: Sequence[Rating]) -> tuple[list[str], list[str]]:
    return [rating.file_name for rating in found], [rating.rater for rating in found]


def _check(rating: Rating, low: float, high: float, missing: Missing) -> None:
    for score, value in zip(SCORES, rating.values, strict=True):
        if math.isnan(value) and missing == "error":
            raise FederatedConfigError(
                f"Expected the {score} rating of '{rating.file_name}' by '{rating.rater}' in {rating.place} but the "
                "cell is empty: fill it in, or set `missing` to allow."
            )
        if not math.isnan(value) and not low <= value <= high:
            raise FederatedConfigError(
                f"Expected the {score} rating of '{rating.file_name}' by '{rating.rater}' in {rating.place} from "
                f"{low:g} to {high:g} but got {value:g}: correct it, or set `scale`."
            )


def _found_scale(found: Sequence[Rating], scale: Scale, source: str) -> Scale:
    """Return the scale that is stated, or the only one that fits."""
    if scale != "auto":
        return scale
    values = [(value, rating.place) for rating in found for value in rating.values if not math.isnan(value)]
    below, above = ([pair for pair in values if side * pair[0] < side] for side in (1.0, -1.0))
    if bool(below) == bool(above):
        both = [f"{value:g} in {place}" for value, place in (*below[:1], *above[:1])]
        raise FederatedConfigError(
            f"Expected ratings of '{source}' that tell their scale, with values below 1 (0-1) or above 1 (1-5), but "
            f"got {' and '.join(both) or 'no other values than 1'}: set `scale` to 1-5 or 0-1, or correct them."
        )
    return "0-1" if below else "1-5"
