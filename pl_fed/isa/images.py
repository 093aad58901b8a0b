"""From paths to images that are upright, RGB and of 8 bits a channel, or a reason why not."""

import glob
import hashlib
import io
import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pl_fed.errors import FederatedConfigError

# Of photographs, also those that Pillow reads only with a plugin: each is a row with an error, not left out in silence.
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"),
    *(".avif", ".heic", ".heif", ".jp2", ".jxl"),
)
MAX_BYTES = 512 * 2**20
# What Pillow raises for files that it cannot read, the warning about sizes made an error included.
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, MemoryError, Image.DecompressionBombError, Warning)


class ImageReadError(ValueError):
    """An image cannot be read; the others go on."""


@dataclass(frozen=True)
class ImageFile:
    """Where an image is.

    Args:
        path: Where to read it.
        name: What it is called in tables: its place below the folder that was asked for.
    """

    path: Path
    name: str


@dataclass(frozen=True)
class LoadedImage:
    """An image.

    Args:
        file: Where it came from.
        sha256: Hash of the file's bytes.
        pixels: Upright and RGB.
        note: What was left out or changed, for people; empty if nothing.
    """

    file: ImageFile
    sha256: str
    pixels: Image.Image
    note: str


def find_images(paths: Iterable[str | Path]) -> list[ImageFile]:
    """Return the images below folders, those that match globs, and all files that are named, in that order, each once.

    Args:
        paths: Files of any ending, folders (searched for the usual endings, hidden ones left out), or globs.

    Raises:
        FederatedConfigError: If a path does not exist, or nothing was found.
    """
    found: dict[Path, str] = {}
    for path in map(str, paths):
        for file, name in _matches(path):
            found.setdefault(file, name)
    if not found:
        raise FederatedConfigError(
            f"Expected images in {', '.join(map(printable, map(str, paths)))} but got none: give files, folders or "
            f"globs; in folders the endings {', '.join(SUFFIXES)} count."
        )
    uses = Counter(found.values())
    return [ImageFile(f, n if uses[n] == 1 else printable(str(f))) for f, n in found.items()]


def _matches(path: str) -> list[tuple[Path, str]]:
    if os.path.isdir(path):
        files = sorted(file for file in Path(path).rglob("*") if _is_image(file, Path(path)))
        return [(file, printable(file.relative_to(path).as_posix())) for file in files]
    if os.path.lexists(path):  # before globs: brackets are legal in names
        return [(Path(path), printable(os.path.basename(path)))]
    if not glob.has_magic(path):
        raise FederatedConfigError(
            f"Expected '{printable(path)}' to be a file, a folder or a glob but there is no such thing: check the path."
        )
    files = [Path(match) for match in sorted(glob.glob(path, recursive=True)) if not os.path.isdir(match)]
    return [(file, printable(file.name)) for file in files if file.suffix.lower() in SUFFIXES]


def _is_image(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return file.suffix.lower() in SUFFIXES and not hidden and not file.is_dir()


def printable(name: str) -> str:
    r"""Return a name that every table can hold: bytes that are no UTF-8 and line breaks are written as escapes.

    Spaces of any kind stay, such as the narrow one in the names of screenshots, so that tables join by the real names.

    Example:
        >>> printable("a\nb" + b"\xff".decode(errors="surrogateescape"))
        'a\\nb\\xff'
    """
    return "".join(map(_printable, name))


def _printable(character: str) -> str:
    if character.isprintable() or character == "\u200d" or unicodedata.category(character) == "Zs":
        return character
    if "\udc80" <= character <= "\udcff":  # how Python holds a byte of a name that is no UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def unescaped(path: Path) -> Path:
    """Return where a path leads in which a table has the escapes of `printable`; the path itself if nowhere else."""
    found = Path(path.anchor)
    for part in path.relative_to(found).parts:
        plain = found / part
        escaped = "\\" in part and not os.path.exists(plain)
        found = next((found / n for n in _names(found) if printable(n) == part), plain) if escaped else plain
    return found


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except (OSError, ValueError):  # no folder, or no name of one
        return []


def read_image(file: ImageFile) -> LoadedImage:
    """Read an image: turned upright, RGB, the first of several frames, 16 bits scaled down, transparency on white.

    Raises:
        ImageReadError: If it cannot be read, with the reason.
    """
    content = read_bytes(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as opened:
                num_frames = getattr(opened, "n_frames", 1)
                opened.load()
                upright = ImageOps.exif_transpose(opened)
                pixels, note = _as_rgb(upright)
    except UnidentifiedImageError as error:
        raise ImageReadError("no image of a format that Pillow reads") from error
    except _UNREADABLE as error:
        raise ImageReadError(str(error).rstrip(".") or type(error).__name__) from error
    notes = [f"first of {num_frames} frames"] if num_frames > 1 else []
    return LoadedImage(
        file, hashlib.sha256(content).hexdigest(), pixels, "; ".join([*notes, *([note] if note else [])])
    )


def read_bytes(file: ImageFile) -> bytes:
    """Return an image's bytes.

    Raises:
        ImageReadError: If there are none, too many, or they may not be read.
    """
    try:
        if not file.path.is_file():  # opening a pipe would wait for its writer
            raise ImageReadError("no such file" if not file.path.exists() else "not a regular file")
        if (num_bytes := file.path.stat().st_size) > MAX_BYTES:
            raise ImageReadError(f"a file of {num_bytes} bytes, above the limit of {MAX_BYTES}")
        content = file.path.read_bytes()
    except OSError as error:
        raise ImageReadError(error.strerror or str(error)) from error
    if not content:
        raise ImageReadError("an empty file")
    return content


def _as_rgb(image: Image.Image) -> tuple[Image.Image, str]:
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.float64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ImageReadError(f"grey values from {grey.min():.0f} to {grey.max():.0f}, beyond 16 bits")
        return Image.fromarray(np.rint(grey / 257).astype(np.uint8)).convert("RGB"), "16 bits scaled to 8"
    if image.mode.startswith("F"):
        raise ImageReadError("an image of floating-point values, whose range is not known")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB"), "transparency on white"
    return image.convert("RGB"), "" if image.mode in ("RGB", "L", "P", "1") else f"converted from {image.mode}"


def shrink(image: Image.Image, max_side: int) -> Image.Image:
    """Return an image whose longer side is at most `max_side` pixels."""
    scale = max_side / max(image.size)
    if scale >= 1:
        return image
    size: Sequence[int] = [max(1, round(side * scale)) for side in image.size]
    return image.resize((size[0], size[1]), Image.Resampling.LANCZOS)
