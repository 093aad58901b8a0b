from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, Logger

from pl_fed.callbacks._run_folder import read_json, replace_text, run_folder, writes_files
from tests.helpers.tiny import make_trainer


class RunLogger(Logger):
    """Has what a `WandbLogger` has: a save dir, a project as its name, and a run id as its version."""

    def __init__(self, save_dir: str | None, version: str | None = "abc123") -> None:
        super().__init__()
        self.where, self.run_id = save_dir, version

    @property
    def save_dir(self) -> str | None:
        return self.where

    @property
    def name(self) -> str:
        return "project"

    @property
    def version(self) -> str | None:
        return self.run_id

    def log_metrics(self, *_: Any, **__: Any) -> None: ...

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda folder: False, "root"),
        (lambda folder: CSVLogger(folder, name="a", version=3), "a/version_3"),
        (lambda folder: RunLogger(f"{folder}"), "project/abc123"),
        (lambda folder: [RunLogger(f"{folder}"), CSVLogger(folder, name="a", version="b")], "a/b"),
        (lambda folder: RunLogger(None), "root/project/abc123"),
        (lambda folder: RunLogger(f"{folder}", version=None), "root"),
    ],
    ids=["no-logger", "csv", "wandb", "csv-goes-first", "wandb-without-folder", "wandb-not-started"],
)
def test_run_folder(make: Any, expected: str, tmp_path: Path) -> None:
    trainer = make_trainer("auto", logger=make(tmp_path), default_root_dir=tmp_path / "root")
    assert run_folder(trainer) == tmp_path / expected


@pytest.mark.filterwarnings("ignore:.*fast_dev_run")
def test_quick_look_leaves_no_files(tmp_path: Path) -> None:
    assert writes_files(make_trainer("auto"))
    assert not writes_files(make_trainer("auto", fast_dev_run=True))


def test_replacing_leaves_one_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    assert read_json(path) == {}
    for number in (1, 2):
        replace_text(path, f'{{"a": {number}}}\n')
        assert read_json(path) == {"a": number}
    assert list(path.parent.iterdir()) == [path]
