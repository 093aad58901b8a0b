"""Decoded images on disk: made once for each (images, size, channels), memory mapped ever after.

As with tokens, the file is written beside its final name and renamed, a lock lets one process work while others wait,
and a file that cannot be read, or is of another shape, is made again.
"""

import hashlib
import io
import json
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from filelock import FileLock
from PIL import Image, ImageOps

from pl_fed.errors import FederatedConfigError

CACHE_FORMAT = 1  # part of every key: raise it when the same input gives other pixels than before
BATCH = 256
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow says of bad files


@dataclass(frozen=True)
class ImageShape:
    """What images are decoded to.

    Args:
        channels: 1 for grey, 3 for RGB.
        height: In pixels.
        width: In pixels.
        resize: Whether images of another size are resized; else they are refused.
    """

    channels: int
    height: int
    width: int
    resize: bool


class ImageTable:
    """Rows of images of several files, read straight from the memory map.

    Args:
        files: Arrays of (images, channels, height, width), uint8.
    """

    def __init__(self, files: Sequence[np.ndarray]) -> None:
        self._files = files
        self._starts: list[int] = np.cumsum([0, *map(len, files)]).tolist()

    def __len__(self) -> int:
        """Return the number of images."""
        return self._starts[-1]

    def __getitem__(self, idx: int) -> np.ndarray:
        """Return an image (channels, height, width) as a read-only view."""
        file = bisect_right(self._starts, idx) - 1
        image: np.ndarray = self._files[file][idx - self._starts[file]]
        return image


def image_shape(data: datasets.Dataset, column: str, size: int | None, channels: int | None) -> ImageShape:
    """Return what to decode to; what is not given is that of the first image."""
    where, value = next(_values(data.select([0]), column))
    image = open_upright(value, where)
    found = 1 if image.mode in ("1", "L", "LA") else 3
    height, width = (image.height, image.width) if size is None else (size, size)
    return ImageShape(channels or found, height, width, size is not None)


def content_hash(data: datasets.Dataset, column: str) -> str:
    """Hash a column of images: their bytes, or the path, size and time of change of those that are files."""
    digest = hashlib.sha256()
    for _, value in _values(data, column):
        digest.update(_identity(value))
    return digest.hexdigest()


def decode_once(data: datasets.Dataset, column: str, shape: ImageShape, folder: Path) -> np.ndarray:
    """Return the images of `data` as (images, channels, height, width), from the cache if it has them.

    Args:
        data: The rows.
        column: What holds the images.
        shape: What they are decoded to.
        folder: The cache.

    Raises:
        FederatedConfigError: If an image cannot be read, or is of another size.
    """
    wanted = (len(data), shape.channels, shape.height, shape.width)
    parts = [CACHE_FORMAT, *wanted, shape.resize, content_hash(data, column)]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
    target, partial = folder / f"{key}.npy", folder / f"{key}.partial"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{key}.lock"):
        if (found := _mapped(target, wanted)) is not None:
            return found
        try:
            images = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=wanted)
            for i, (where, value) in enumerate(_values(data, column)):
                images[i] = _decode(value, where, shape)
            images.flush()
            del images
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
    made = _mapped(target, wanted)
    assert made is not None, f"{target} was just written"
    return made


def _mapped(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Map a file into memory; None if it is missing, damaged or of another shape."""
    try:
        found: np.ndarray = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    return found if found.shape == shape and found.dtype == np.uint8 else None


def _values(data: datasets.Dataset, column: str) -> Iterator[tuple[str, Any]]:
    """Yield each image as it is stored, and where it is for a reader of an error."""
    data = data.select_columns([column]).with_format(None)
    if isinstance(data.features[column], datasets.Image):
        data = data.cast_column(column, datasets.Image(decode=False))
    else:
        data = data.with_format("numpy")  # lists of lists of numbers would take twenty times as long
    for start in range(0, len(data), BATCH):
        for i, value in enumerate(data[start : start + BATCH][column]):
            path = value.get("path") if isinstance(value, dict) else None
            yield path or f"row {start + i} of column '{column}'", value


def _identity(value: Any) -> bytes:
    """Return what tells an image from others."""
    if not isinstance(value, dict):
        pixels = np.ascontiguousarray(value)
        content = repr(pixels.tolist()).encode() if pixels.dtype == object else pixels.tobytes()
        return f"{pixels.shape}{pixels.dtype}".encode() + content
    if value.get("bytes") is not None:
        return hashlib.sha256(value["bytes"]).digest()
    path = value.get("path")
    stat = os.stat(path) if path is not None and os.path.exists(path) else None
    return json.dumps([path, stat and [stat.st_size, stat.st_mtime_ns]]).encode()


def _refuse(where: str, reason: object) -> FederatedConfigError:
    return FederatedConfigError(
        f"Expected an image of 8 bits a channel in {where} but got: {reason}. Replace it, or take it out of the data."
    )


def open_upright(value: Any, where: str) -> Image.Image:
    """Return one image as Pillow has it, upright.

    Args:
        value: The image: its pixels, or a dict with its `bytes` or its `path`.
        where: Where it is, for a reader of an error.

    Raises:
        FederatedConfigError: If it cannot be read, or has more than 8 bits a channel.
    """
    try:
        with _read(value) as opened:
            opened.load()
            image = ImageOps.exif_transpose(opened)
    except UNREADABLE as error:
        raise _refuse(where, str(error).rstrip(".")) from error
    if image.mode[0] in "IF":  # 16 or 32 bits, which Pillow would cut at 255
        raise _refuse(where, f"one of mode {image.mode}")
    return image


def _read(value: Any) -> Image.Image:
    if value is None or (isinstance(value, dict) and value.get("bytes") is None and value.get("path") is None):
        raise ValueError("nothing")
    if not isinstance(value, dict):
        return Image.fromarray(_pixels(value))
    return Image.open(value["path"] if value.get("bytes") is None else io.BytesIO(value["bytes"]))


def _pixels(value: Any) -> np.ndarray:
    pixels = np.asarray(value)
    if pixels.dtype == object and pixels.ndim == 1:  # rows of a column whose images have several sizes
        pixels = np.stack([np.asarray(row) for row in pixels])
    if pixels.ndim not in (2, 3) or pixels.dtype.kind not in "iu":
        raise ValueError(f"values of type {pixels.dtype} and shape {pixels.shape}")
    if pixels.min(initial=0) < 0 or pixels.max(initial=0) > 255:
        raise ValueError(f"numbers from {pixels.min()} to {pixels.max()}")
    return pixels.astype(np.uint8).squeeze(-1) if pixels.shape[2:] == (1,) else pixels.astype(np.uint8)


def _decode(value: Any, where: str, shape: ImageShape) -> np.ndarray:
    """Return one image as (channels, height, width)."""
    image = open_upright(value, where)
    if (image.height, image.width) != (shape.height, shape.width) and not shape.resize:
        raise FederatedConfigError(
            f"Expected images of {shape.height} x {shape.width}, as the first is, but {where} is {image.height} x "
            f"{image.width}: set `transform.size`."
        )
    image = image.convert("L" if shape.channels == 1 else "RGB")  # before resizing: palettes have no in-between
    if image.size != (shape.width, shape.height):
        image = image.resize((shape.width, shape.height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)  # (height, width) or (height, width, 3)
    return pixels[None] if shape.channels == 1 else pixels.transpose(2, 0, 1)
