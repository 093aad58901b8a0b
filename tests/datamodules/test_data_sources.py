"""Data by name: files and folders first, then the hub, then the packages."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest

from pl_fed import assets
from pl_fed.datamodules import sources
from pl_fed.datamodules.labels import read_labels
from pl_fed.datamodules.sources import check_columns, load_splits
from pl_fed.errors import FederatedConfigError

ROWS = [{"text": "a b", "label": 0}, {"text": "c, d", "label": 1}, {"text": "e", "label": 0}]
# `datasets` leaves the CSV files that it reads for the garbage collector to close.
leaves_files_open = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
Write = Callable[[str, list[dict[str, Any]]], Path]


@leaves_files_open
@pytest.mark.parametrize("name", ["data.jsonl", "data.json", "data.csv", "data.tsv", "data.parquet"])
def test_every_format_gives_the_same_texts_and_classes(name: str, write_rows: Write, tmp_path: Path) -> None:
    if name.endswith("parquet"):
        path = tmp_path / name
        datasets.Dataset.from_list(ROWS).to_parquet(path)
    else:
        path = write_rows(name, ROWS)
    splits = load_splits(str(path), cache_dir=tmp_path / "cache")
    assert list(splits) == ["train"]
    assert splits["train"]["text"][:] == [row["text"] for row in ROWS]
    assert read_labels(splits, "label")[1].tolist() == [0, 1, 0]


@leaves_files_open
def test_folder(write_rows: Write, tmp_path: Path) -> None:
    write_rows("folder/dev.csv", ROWS[:1])
    write_rows("folder/train.csv", ROWS)
    write_rows("folder/notes.csv", ROWS)
    splits = load_splits(str(tmp_path / "folder"), cache_dir=tmp_path / "cache")
    assert [(name, len(rows)) for name, rows in splits.items()] == [("train", 3), ("validation", 1)]


def test_saved_data_set(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list(ROWS)
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "two")
    assert list(load_splits(str(tmp_path / "one"))) == ["train"]
    assert list(load_splits(str(tmp_path / "two"))) == ["train", "test"]


def test_bad_paths(write_rows: Write, tmp_path: Path) -> None:
    with pytest.raises(FederatedConfigError, match="a file that exists but there is no .*missing.jsonl"):
        load_splits(str(tmp_path / "missing.jsonl"))
    (tmp_path / "data.xml").touch()
    with pytest.raises(FederatedConfigError, match=r"end in one of .csv, .json, .* but got 'data.xml'"):
        load_splits(str(tmp_path / "data.xml"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FederatedConfigError, match=r"name the files train, validation and test"):
        load_splits(str(tmp_path / "empty"))
    write_rows("other/test.jsonl", ROWS)
    with pytest.raises(FederatedConfigError, match="a split named train but got test"):
        load_splits(str(tmp_path / "other"), cache_dir=tmp_path / "cache")
    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(FederatedConfigError, match="'broken.jsonl' to be a table with the same columns"):
        load_splits(str(tmp_path / "broken.jsonl"), cache_dir=tmp_path / "cache")


def test_empty_split() -> None:
    rows = datasets.Dataset.from_list(ROWS)
    with pytest.raises(FederatedConfigError, match="its split test is empty"):
        sources._canonical({"train": rows, "test": rows.select([])}, "name")


def test_check_columns() -> None:
    splits = {"train": datasets.Dataset.from_list(ROWS)}
    check_columns(splits, ["text", "label"], "name")
    with pytest.raises(FederatedConfigError, match="column 'body' in the train split of 'name' but it has text, label"):
        check_columns(splits, ["text", "body"], "name")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace the hub and the packages; the list says who was asked."""
    asked: list[str] = []
    packaged = SimpleNamespace(
        HUB_ERRORS=assets.HUB_ERRORS,
        hub_or_caches=assets.hub_or_caches,
        hub_reachable=lambda: True,
        hub_refusal=lambda error, name, packaged: None,
        is_packaged_dataset=lambda name: name in ("short", "org/packaged"),
        load_packaged_dataset=lambda name: (
            asked.append(f"package {name}") or datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})
        ),
        packaged_datasets=lambda: (SimpleNamespace(name="short"),),
    )

    def load_dataset(name: str, config_name: str | None) -> datasets.DatasetDict:
        asked.append(f"hub {name} {config_name}")
        if name == "org/choice" and config_name is None:
            raise ValueError("Config name is missing.")
        if name not in ("org/known", "org/choice"):
            raise datasets.exceptions.DatasetNotFoundError(name)
        return datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})

    monkeypatch.setattr(sources, "assets", packaged)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("org/known", ["hub org/known None"]),
        ("org/packaged", ["hub org/packaged None", "package org/packaged"]),
        ("short", ["package short"]),  # never asked for on the hub, where others may use the name
    ],
)
def test_order(name: str, expected: list[str], calls: list[str]) -> None:
    assert len(load_splits(name)["train"]) == 3
    assert calls == expected


def test_hub_out_of_reach(calls: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only what was prepared before is asked for."""
    monkeypatch.setattr(sources.assets, "hub_reachable", lambda: False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    with pytest.raises(
        FederatedConfigError, match="got 'org/known'.*the hub cannot be reached.*packaged are only short"
    ):
        load_splits("org/known")
    for folder in ("hash.incomplete", "hash"):  # the first is what a process left that was killed
        assert not sources._in_hub_cache("org/known")
        home = tmp_path / "org___known" / "default" / "0.0.0" / folder
        home.mkdir(parents=True)
        (home.parent / "hash_builder.lock").touch()
        (home / "dataset_info.json").touch()
    assert len(load_splits("org/known")["train"]) == 3
    assert calls == ["hub org/known None"]


def test_unknown_to_the_hub(calls: list[str]) -> None:
    with pytest.raises(FederatedConfigError, match=r"a packaged one but got 'org/unknown' \(org/unknown\): choose"):
        load_splits("org/unknown")
    with pytest.raises(FederatedConfigError, match="got 'not/a/hub/id'.*the hub has no such data set.* only short"):
        load_splits("not/a/hub/id")


def test_hub_configuration(calls: list[str]) -> None:
    assert len(load_splits("org/choice", "one")["train"]) == 3
    with pytest.raises(
        FederatedConfigError, match="`loading.config_name` .* of 'org/choice' but got None: Config name is"
    ):
        load_splits("org/choice")
