"""A small folder of rated images with two sites, two raters and two kinds of text."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pl_fed.datamodules import ImageTransform, LoadingConfig, RatedImages, RatedSource, SplitConfig

BuildRated = Callable[..., RatedImages]
NO_SPLITS = SplitConfig(validation_fraction=0.0, test_fraction=0.0)


def picture(i: int) -> np.ndarray:
    """Return image i, of its own size: grey, with its number in the first pixel of every channel."""
    pixels = np.full((6 + i % 3, 5, 3), 100, np.uint8)
    pixels[0, 0] = i
    return pixels


def levels(i: int) -> tuple[int, int]:
    """Return the levels that rater Ann gives; Bob gives a level less of both, but never below 1."""
    return 1 + i % 5, 1 + (i // 5) % 5


def write_rated(folder: Path, numbers: range, both_sites: bool = False) -> Path:
    """Write images/i.png, ratings.csv and texts.jsonl; even images are of the north, or all of both sites."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with (folder / "ratings.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "rater", "entity", "semantic", "site"])
        for i in numbers:
            Image.fromarray(picture(i)).save(folder / "images" / f"{i}.png")
            for rater, less in (("Ann", 0), ("Bob", 1)):
                site = ("north" if rater == "Ann" else "south") if both_sites else ["north", "south"][i % 2]
                writer.writerow([f"{i}.png", rater, *(max(1, level - less) for level in levels(i)), site])
    rows = [
        {"file_name": f"{i}.png", "kind": kind, "model_output": " ".join([f"w{i}", *["a"] * (i % (3 + more))])}
        for i in numbers
        for kind, more in (("naive", 0), ("cot", 4))
    ]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def rated_data(folder: Path, source: dict[str, Any] | None = None, **changes: Any) -> RatedImages:
    """Make data of a folder of `write_rated`, ready to use; the cache lies beside it."""
    places = {"ratings": str(folder / "ratings.csv"), "images": str(folder / "images")}
    loading = LoadingConfig(cache_dir=str(folder.parent / "cache"), **changes.pop("loading", {}))
    options: dict[str, Any] = {"transform": ImageTransform(size=6, channels=3), "batch_size": 4, "loading": loading}
    data = RatedImages(RatedSource(**places | (source or {})), **options | changes)
    data.prepare_data()
    data.setup()
    return data
