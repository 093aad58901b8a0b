"""Where a run leaves its files; every callback that writes one asks here."""

import json
import os
from pathlib import Path
from typing import Any

from pl_fed._lightning import Trainer


def run_folder(trainer: Trainer) -> Path:
    """Return the folder of this run; it may not exist yet.

    It is the `log_dir` of the first logger that has one (CSV, TensorBoard). A `WandbLogger` has none: then it is
    ``save_dir/project/run id``, where `ModelCheckpoint` also puts its folder. Without loggers it is
    `default_root_dir`.
    """
    for logger in trainer.loggers:
        own = getattr(logger, "log_dir", None)
        if isinstance(own, (str, os.PathLike)):
            return Path(own)
    for logger in trainer.loggers:
        if logger.name is not None and logger.version is not None:
            return Path(logger.save_dir or trainer.default_root_dir) / str(logger.name) / str(logger.version)
    return Path(trainer.default_root_dir)


def writes_files(trainer: Trainer) -> bool:
    """Tell whether this process leaves files: the first one does, except in a `fast_dev_run`."""
    return trainer.is_global_zero and not trainer.fast_dev_run  # type: ignore[attr-defined]  # set at run time


def replace_text(path: Path, text: str) -> None:
    """Write a file at once: a reader finds the old text or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8", newline="")
    partial.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; empty without one."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
