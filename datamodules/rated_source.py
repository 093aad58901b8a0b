"""Rated images from their files: ratings, pictures and texts put together, with a reason for each that is left out."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from pl_fed.datamodules.rated_checks import check_images
from pl_fed.errors import FederatedConfigError
from pl_fed.isa.images import printable
from pl_fed.isa.ratings import Missing, RatedImage, Ratings, Scale, read_ratings
from pl_fed.isa.ratings_tables import read_table

SHOWN = 3  # names in an error


@dataclass(frozen=True)
class RatedSource:
    """Where ratings, images and texts are.

    Args:
        ratings: A .csv, .tsv, .jsonl or .parquet file; `pl_fed.isa.ratings_layouts` has the layouts.
        images: Folder of the images that the file names.
        texts: Kind of text, such as ``cot``, and the .jsonl file that has it: `file_name` and `model_output`, and
            `kind` where one file has several.
        scale: Scale of the ratings, as in `pl_fed.isa.ratings.read_ratings`.
        missing: What to do with empty cells, alike.
        group_by: Column such as ``site`` (or ``rater``): every image comes once for each of these groups that has rated
            it, with that group's mean. None takes the mean of all raters.
        unusable: What to do with images that cannot be used: stop with an ``error``, or ``skip`` and report them.
        max_megapixels: Largest picture that is read, in millions of pixels.
    """

    ratings: str
    images: str
    texts: dict[str, str] | None = None
    scale: Scale = "auto"
    missing: Missing = "error"
    group_by: str | None = None
    unusable: Literal["error", "skip"] = "error"
    max_megapixels: float = 64.0

    def __post_init__(self) -> None:
        """Check the values that need no data."""
        if self.unusable not in ("error", "skip"):
            raise FederatedConfigError(f"Expected `unusable` to be error or skip but got '{self.unusable}'.")
        if self.max_megapixels <= 0:
            raise FederatedConfigError(f"Expected `max_megapixels` above 0 but got {self.max_megapixels}.")


@dataclass(frozen=True)
class LeftOut:
    """A rated image that is not used.

    Args:
        file_name: Its name.
        reason: Why.
    """

    file_name: str
    reason: str


@dataclass(frozen=True)
class RatedSet:
    """What there is to learn from.

    Args:
        images: The images with their scores, some in several groups.
        contents: Hash of each one's pixels.
        texts: Text of each by kind.
        left_out: Those that cannot be used.
        ratings: All ratings.
    """

    images: list[RatedImage]
    contents: list[str]
    texts: dict[str, list[str]]
    left_out: list[LeftOut]
    ratings: Ratings


def load_rated(source: RatedSource, cache: Path) -> RatedSet:
    """Put ratings, images and texts together.

    Args:
        source: Where they are.
        cache: Folder for what checks of the images find.

    Raises:
        FederatedConfigError: If an image cannot be used and `source.unusable` is ``error``, or none can.
    """
    ratings = read_ratings(source.ratings, source.scale, source.missing)
    texts = {kind: _by_either_name(read_texts(path, kind)) for kind, path in (source.texts or {}).items()}
    folder = Path(source.images).expanduser()
    checked = check_images(folder, ratings.file_names, source.max_megapixels, cache)
    used, left_out = [], {}
    for image in ratings.by_group(source.group_by):
        reason = checked[image.file_name].reason or _lacks(image, texts)
        if reason:
            left_out[image.file_name, image.group] = LeftOut(image.file_name, reason)
        else:
            used.append(image)
    seen = {image.file_name for image in used} | {name for name, _ in left_out}
    left_out |= {(name, ""): LeftOut(name, "nobody has rated it") for name in ratings.file_names if name not in seen}
    _check_left_out(list(left_out.values()), len(used), source)
    by_kind = {kind: [_text(found, image.file_name) for image in used] for kind, found in texts.items()}
    contents = [checked[image.file_name].content for image in used]
    return RatedSet(used, contents, by_kind, list(left_out.values()), ratings)


def _lacks(image: RatedImage, texts: Mapping[str, Mapping[str, str]]) -> str:
    if np.isnan(image.scores).any():
        return "nobody has rated it" if np.isnan(image.scores).all() else "one of the two scores has no rating"
    without = [kind for kind, found in texts.items() if not _text(found, image.file_name).strip()]
    return f"there is no text of kind '{without[0]}'" if without else ""


def _by_either_name(texts: Mapping[str, str]) -> dict[str, str]:
    """Return texts by the name that each has and the one that tables write, which differ where it has a line break."""
    return {printable(name): text for name, text in texts.items()} | dict(texts)


def _text(texts: Mapping[str, str], name: str) -> str:
    return texts.get(name) or texts.get(printable(name), "")


def _check_left_out(left_out: Sequence[LeftOut], num_used: int, source: RatedSource) -> None:
    if not left_out or (source.unusable == "skip" and num_used):
        return
    shown = "; ".join(f"'{row.file_name}': {row.reason}" for row in left_out[:SHOWN])
    more = f"; and {len(left_out) - SHOWN} more" if len(left_out) > SHOWN else ""
    advice = "mend them, or set `unusable` to skip" if num_used else "check `images` and `texts`"
    raise FederatedConfigError(
        f"Expected every image of '{source.ratings}' to be usable but got {len(left_out)} that are not "
        f"({shown}{more}): {advice}."
    )


def read_texts(path: str | Path, kind: str) -> dict[str, str]:
    """Read the texts of one kind.

    Args:
        path: The .jsonl file.
        kind: Which kind, where the file has several.

    Raises:
        FederatedConfigError: If it has no texts of that kind, or two for one image.
    """
    found: dict[str, str] = {}
    for row in read_table(path):
        name, text = row.cells.get("file_name"), row.cells.get("model_output")
        if not isinstance(name, str) or not isinstance(text, str | None):
            raise FederatedConfigError(
                f"Expected texts as 'file_name' and 'model_output' in {row.place} but it has {', '.join(row.cells)}: "
                "rename them."
            )
        if row.cells.get("kind", kind) != kind or text is None:
            continue
        if name in found:
            raise FederatedConfigError(f"Expected one text of '{name}' but got a second in {row.place}: remove one.")
        found[name] = text
    if not found:
        raise FederatedConfigError(
            f"Expected texts of kind '{kind}' in '{Path(path).name}' but it has none: check the column 'kind'."
        )
    return found


def write_left_out(rows: Sequence[LeftOut], path: str | Path) -> None:
    """Write the images that are not used and why, as CSV.

    Args:
        rows: The images.
        path: The file.
    """
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file_name", "reason"])
        writer.writerows((row.file_name, row.reason) for row in rows)
