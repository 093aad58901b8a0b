"""Checks of image files before anything is trained on them; what a check found is kept until the file changes."""

import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from PIL import Image

from pl_fed.datamodules.decoding import UNREADABLE, open_upright
from pl_fed.errors import FederatedConfigError
from pl_fed.isa.images import unescaped

CHECK_FORMAT = 1  # part of every key: raise it when the same file is judged in another way than before
SEVERAL_VIEWS = ("MPO",)  # photographs with a preview or a second eye's view; the first is the picture


@dataclass(frozen=True)
class CheckedImage:
    """What is known of an image file.

    Args:
        content: Hash of its upright RGB pixels, the same for copies under another name or with other metadata; empty
            where it cannot be used.
        reason: Why it cannot be used; empty where it can.
    """

    content: str = ""
    reason: str = ""


def check_images(folder: Path, names: Sequence[str], max_megapixels: float, cache: Path) -> dict[str, CheckedImage]:
    """Check image files, each once.

    Args:
        folder: Where they are.
        names: Their names below the folder, as they are or as `pl_fed.isa.images.printable` writes them.
        max_megapixels: Largest picture that is read at all, in millions of pixels.
        cache: Folder for what was found.

    Raises:
        FederatedConfigError: If there is no such folder.
    """
    if not folder.is_dir():
        raise FederatedConfigError(f"Expected `images` to be a folder but there is none at '{folder}': check the path.")
    cache.mkdir(parents=True, exist_ok=True)
    file = cache / f"{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]}.checks.json"
    with FileLock(file.with_suffix(".lock")):
        known = _read(file)
        found, kept = {}, {}
        for name in dict.fromkeys(names):
            key = _key(folder, name, max_megapixels)
            kept[key] = known.get(key) or _check(folder, name, max_megapixels)
            found[name] = kept[key]
        if kept.keys() - known.keys():
            partial = file.with_suffix(".partial")
            rows = {key: [image.content, image.reason] for key, image in (known | kept).items()}
            partial.write_text(json.dumps(rows), "utf-8")
            os.replace(partial, file)
    return found


def _read(file: Path) -> dict[str, CheckedImage]:
    """Return what earlier checks found; nothing if the file is missing or damaged."""
    try:
        return {key: CheckedImage(content, reason) for key, (content, reason) in json.loads(file.read_text()).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _key(folder: Path, name: str, max_megapixels: float) -> str:
    try:
        stat = os.stat(unescaped(folder / name))
    except (OSError, ValueError):  # a name that no file can have
        stat = None
    return json.dumps([CHECK_FORMAT, name, max_megapixels, stat and [stat.st_size, stat.st_mtime_ns]])


def _check(folder: Path, name: str, max_megapixels: float) -> CheckedImage:
    path = unescaped(folder / name)
    if os.path.isabs(name) or Path(os.path.normpath(name)).parts[:1] == ("..",):
        return CheckedImage(reason="the name leads out of the folder")
    if not os.path.isfile(path):
        return CheckedImage(reason="there is no such file")
    if str(path) != str(path).encode("utf-8", "replace").decode():
        return CheckedImage(reason="its path is no UTF-8; rename it")
    if path.stat().st_size == 0:
        return CheckedImage(reason="the file is empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a damaged side note is no reason
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            reason = _header(path, max_megapixels)
            return CheckedImage(reason=reason) if reason else CheckedImage(_content(path))
        except (*UNREADABLE, Image.DecompressionBombWarning, FederatedConfigError) as error:
            return CheckedImage(reason=f"it cannot be read ({_first_sentence(error)})")


def _header(path: Path, max_megapixels: float) -> str:
    """Say what is wrong with an image without decoding it."""
    with Image.open(path) as image:
        megapixels = image.width * image.height / 1e6
        if megapixels > max_megapixels:
            return f"it has {megapixels:.1f} megapixels, more than {max_megapixels:g}"
        num_frames = getattr(image, "n_frames", 1)
        if num_frames > 1 and image.format not in SEVERAL_VIEWS:
            return f"it has {num_frames} frames or pages"
        return f"it has more than 8 bits a channel (mode {image.mode})" if image.mode[0] in "IF" else ""


def _content(path: Path) -> str:
    image = open_upright({"path": str(path), "bytes": None}, path.name).convert("RGB")
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()


def _first_sentence(error: BaseException) -> str:
    text = str(error.__cause__ or error) or type(error).__name__
    return text.splitlines()[0].rstrip(".")
