"""Image data sets by name: a folder of images for each class, scikit-learn's digits, the hub, or a package."""

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np

from pl_fed.datamodules.files import BUILDERS
from pl_fed.datamodules.sources import SPLITS, Splits, load_splits
from pl_fed.errors import FederatedConfigError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
DIGITS = "digits"
_SPLIT_NAMES = {name for names in SPLITS.values() for name in names}


def load_image_splits(name: str, config_name: str | None = None, cache_dir: Path | None = None) -> Splits:
    """Load a data set of images with its own splits; no image is decoded yet.

    Args:
        name: A folder with a folder of images for each class, maybe below folders train, validation and test;
            ``digits``, the 1,797 digits of scikit-learn; or what `load_splits` takes.
        config_name: Configuration of a hub data set that has several.
        cache_dir: Folder for the Arrow form of local files; None means the one of `datasets`.

    Returns:
        ``train``, and ``validation`` and ``test`` where the data has them.

    Raises:
        FederatedConfigError: If there is no such data or it has no training split.
    """
    path = Path(name).expanduser()
    if path.is_dir() and not _has_table(path):
        return _load_folder(path)
    if name == DIGITS and not path.exists():
        return {"train": _load_digits()}
    return load_splits(name, config_name, cache_dir, [DIGITS])


def _has_table(folder: Path) -> bool:
    """Tell whether a folder holds rows instead of images."""
    names = {"dataset_dict.json", "state.json"} | {name + suffix for name in _SPLIT_NAMES for suffix in BUILDERS}
    return any((folder / name).is_file() for name in names)


def _load_folder(folder: Path) -> Splits:
    found = {
        ours: next((folder / name for name in names if (folder / name).is_dir()), None)
        for ours, names in SPLITS.items()
    }
    if found["train"] is None:
        found = {"train": folder}
    parts = {split: _images_by_class(part) for split, part in found.items() if part is not None}
    names = sorted({name for part in parts.values() for name in part})
    if not parts["train"]:
        raise FederatedConfigError(
            f"Expected `dataset` to be a folder with a folder of images for each class but {found['train']} has none: "
            f"put files that end in one of {', '.join(SUFFIXES)} into them."
        )
    return {split: _rows(part, names) for split, part in parts.items() if part}


def _images_by_class(folder: Path) -> dict[str, list[Path]]:
    """Return the images of every subfolder that has any; hidden files and other kinds are left out."""
    found = {}
    for part in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        files = sorted(path for path in part.rglob("*") if path.suffix.lower() in SUFFIXES and path.name[0] != ".")
        if files:
            found[part.name] = files
    return found


def _rows(images: dict[str, list[Path]], names: Sequence[str]) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=names)})
    paths = [str(path) for files in images.values() for path in files]
    labels = [names.index(name) for name, files in images.items() for _ in files]
    return datasets.Dataset.from_dict({"image": paths, "label": labels}, features=features)


def _load_digits() -> datasets.Dataset:
    """Return 1,797 digits of 8 x 8; their 17 shades become those of a byte."""
    if importlib.util.find_spec("sklearn") is None:
        raise FederatedConfigError(
            f"Expected scikit-learn to be installed for `dataset`='{DIGITS}' but it is not: pip install scikit-learn."
        )
    found = importlib.import_module("sklearn.datasets").load_digits()
    images = np.rint(found.images * (255 / 16)).astype(np.uint8)  # (digits, 8, 8)
    label = datasets.ClassLabel(names=[str(i) for i in range(10)])
    features = datasets.Features({"image": datasets.Array2D((8, 8), "uint8"), "label": label})
    return datasets.Dataset.from_dict({"image": images, "label": found.target}, features=features)
