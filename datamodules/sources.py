"""Data sets by name: a local file or folder, the hub, or the packaged sets for machines that reach no hub."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
from datasets.naming import camelcase_to_snakecase
from huggingface_hub.errors import HFValidationError

from pl_fed import assets
from pl_fed.datamodules.files import BUILDERS, load_file
from pl_fed.errors import FederatedConfigError, shortened

SPLITS = {  # the name that we use, and those that data sets use
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
Splits = dict[str, datasets.Dataset]
_EXPECTED = "Expected `dataset` to be a file, a folder, a data set of the hub or a packaged one"


@dataclass(frozen=True)
class Rows:
    """The rows of a data set that can be used, before they are tokens.

    Args:
        splits: The rows of each split.
        groups: Label or topic of every training row, which the partition is shown by.
        group_order: Names of the groups in the order to show them in; empty means by size.
        targets: The class of every row of all splits; None means the length of its prompt.
    """

    splits: Splits
    groups: list[str]
    group_order: list[str]
    targets: np.ndarray | None = None

    def select(self, chosen: dict[str, list[int]]) -> "Rows":
        """Keep only these rows of the splits named; the groups keep their names even if none of them is left."""
        kept, start = [], 0
        for name, rows in self.splits.items():
            kept += [start + i for i in chosen.get(name, range(len(rows)))]
            start += len(rows)
        splits = {name: rows.select(chosen[name]) if name in chosen else rows for name, rows in self.splits.items()}
        groups = [self.groups[i] for i in chosen.get("train", range(len(self.groups)))]
        return Rows(splits, groups, self.group_order, None if self.targets is None else self.targets[kept])


def load_splits(
    name: str, config_name: str | None = None, cache_dir: Path | None = None, others: Sequence[str] = ()
) -> Splits:
    """Load a data set with its own splits.

    Args:
        name: A path, a hub id, or the name of a packaged set. A path that exists comes first, then the hub if it is
            reachable or has the data in its local cache, then the packages.
        config_name: Configuration of a hub data set that has several.
        cache_dir: Folder for the Arrow form of local files; None means the one of `datasets`.
        others: Names that the caller knows besides, to say so where `name` is unknown.

    Returns:
        ``train``, and ``validation`` and ``test`` where the data has them. The cells of a local CSV file are text.

    Raises:
        FederatedConfigError: If there is no such data, or it cannot be read or has no training split.
    """
    path = Path(name).expanduser()
    if path.exists():
        found = _load_folder(path, cache_dir) if path.is_dir() else {"train": load_file(path, cache_dir)}
    elif path.suffix in BUILDERS:
        raise FederatedConfigError(f"Expected `dataset` to be a file that exists but there is no {path}.")
    else:
        found = _load_hub(name, config_name) or _load_packaged(name, others)
    return _canonical(found, name)


def check_columns(splits: Splits, columns: Sequence[str], name: str) -> None:
    """Check that every split has these columns.

    Raises:
        FederatedConfigError: If one lacks a column.
    """
    for split, rows in splits.items():
        for column in columns:
            if column not in rows.column_names:
                raise FederatedConfigError(
                    f"Expected column '{column}' in the {split} split of '{name}' but it has "
                    f"{', '.join(rows.column_names)}: set `columns`."
                )


def _load_folder(folder: Path, cache_dir: Path | None) -> Splits:
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        saved = datasets.load_from_disk(str(folder))
        return dict(saved) if isinstance(saved, datasets.DatasetDict) else {"train": saved}
    names = {name for names in SPLITS.values() for name in names}
    files = sorted(path for path in folder.iterdir() if path.suffix in BUILDERS and path.stem in names)
    if not files:
        raise FederatedConfigError(
            f"Expected `dataset` to be a folder with a train file (.jsonl, .json, .csv, .tsv or .parquet) but "
            f"{folder} has none: name the files train, validation and test."
        )
    return {path.stem: load_file(path, cache_dir) for path in files}


def _in_hub_cache(name: str) -> bool:
    """Say whether `datasets` has prepared this hub data set on this machine before."""
    *namespace, last = name.split("/")
    folder = Path(datasets.config.HF_DATASETS_CACHE, "___".join([*namespace, camelcase_to_snakecase(last)]))
    finished = (info.parent for info in folder.glob("*/*/*/dataset_info.json"))
    return any(not path.name.endswith("incomplete") for path in finished)


def _load_hub(name: str, config_name: str | None) -> Splits | None:
    """Load from the hub or its cache; None if it is not there."""
    if name.count("/") != 1 and assets.is_packaged_dataset(name):
        return None  # a package's short name; the hub may have something else under it
    if name.count("/") > 1 or not (assets.hub_reachable() or _in_hub_cache(name)):
        return None
    try:
        with assets.hub_or_caches(name):
            return dict(datasets.load_dataset(name, config_name))
    except assets.HUB_ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
            raise  # this machine's: a full disk, a folder that cannot be written
        if isinstance(error, ValueError) and not isinstance(error, HFValidationError):
            raise FederatedConfigError(
                f"Expected `loading.config_name` to name a configuration of '{name}' but got {config_name!r}: {error}"
            ) from error
        if assets.is_packaged_dataset(name):
            return None
        raise FederatedConfigError(_not_given(error, name)) from error


def _not_given(error: Exception, name: str) -> str:
    refusal = assets.hub_refusal(error, name, assets.packaged_datasets())
    reason = shortened(error)
    return f"{_EXPECTED} but got '{name}'{refusal or f' ({reason}): choose another or download its files.'}"


def _load_packaged(name: str, others: Sequence[str]) -> Splits:
    if assets.is_packaged_dataset(name):
        return dict(assets.load_packaged_dataset(name))
    known = ", ".join([*(asset.name for asset in assets.packaged_datasets()), *others])
    hub = "the hub has no such data set" if assets.hub_reachable() else "the hub cannot be reached"
    raise FederatedConfigError(
        f"{_EXPECTED} but got '{name}': there is no such path, {hub}, and packaged are only {known}."
    )


def _canonical(found: Splits, name: str) -> Splits:
    """Rename the splits to ours and leave out others."""
    splits = {ours: found[theirs] for ours, names in SPLITS.items() for theirs in reversed(names) if theirs in found}
    if "train" not in splits:
        raise FederatedConfigError(
            f"Expected '{name}' to have a split named train but got {', '.join(sorted(found))}: rename one, "
            "or give a file."
        )
    if empty := [split for split, rows in splits.items() if len(rows) == 0]:
        raise FederatedConfigError(f"Expected '{name}' to have examples but its split {empty[0]} is empty.")
    return splits
