"""What a user reads when a hub does not give a model or data set, from a real conversation with one on this machine."""

import errno
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch
from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http
from transformers import AutoModelForSequenceClassification

from pl_fed.assets.hub import _probe
from pl_fed.datamodules.sources import load_splits
from pl_fed.datamodules.vocabulary import find_tokenizer
from pl_fed.errors import FederatedConfigError
from pl_fed.modules.loading import load_base_model, load_tokenizer
from pl_fed.modules.settings import ModelLoading
from tests.helpers.hub import LoopbackHub
from tests.helpers.hub_content import AG_NEWS, GPT2, data_of_the_hub, models_of_the_hub

GATED = {"org/gated": 401, "org/forbidden": 403}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    """Serve one model and one data set to this process, which has empty caches; nobody waits between attempts."""
    model, data = models_of_the_hub()[GPT2], data_of_the_hub()[AG_NEWS]
    with LoopbackHub({"org/tiny": model}, {"org/tiny": data}, GATED) as hub, monkeypatch.context() as patch:
        for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            patch.delenv(variable, raising=False)
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        patch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
        for library in (constants, datasets.config):
            patch.setattr(library, "HF_HUB_OFFLINE", False)
        impatient = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
        for client in (file_download, _http):
            patch.setattr(client, "time", impatient)
        _probe.cache_clear()
        yield hub
    _probe.cache_clear()


def load_weights(model: str) -> torch.nn.Module:
    kind = AutoModelForSequenceClassification
    return load_base_model(kind, model, ModelLoading(), torch.device("cpu"), num_labels=4)[0]


LOADERS = {
    "`model`.*a tokenizer": lambda name: load_tokenizer(name, ModelLoading()),
    "`model`.*a model for": load_weights,
    "`tokenizer`": lambda name: find_tokenizer(name, None),
    "`dataset`": load_splits,
}


@pytest.mark.parametrize("what", LOADERS)
@pytest.mark.parametrize("name", ["org/unknown", *GATED])
def test_what_the_hub_does_not_give(hub: LoopbackHub, what: str, name: str, tmp_path: Path) -> None:
    packaged = "20_newsgroups, " if what == "`dataset`" else "SmolLM2"
    reason = rf"the hub does not have or does not show to you: check the spelling, set HF_TOKEN .* \(.*{packaged}"
    if name in GATED:
        reason = "the hub gives only to accounts that were granted access: ask for that .*, and set HF_TOKEN"
    with pytest.raises(FederatedConfigError, match=f"Expected {what}.* but got '{name}', which {reason}") as caught:
        LOADERS[what](name)
    assert "\n" not in str(caught.value) and str(caught.value).count(name) == 1
    assert not list(tmp_path.rglob("snapshots/*/*"))


@pytest.mark.parametrize(
    ("what", "file"),
    [("`dataset`", ".parquet"), ("`model`.*a tokenizer", "tokenizer.json"), ("`model`.*a model for", "safetensors")],
)
def test_a_hub_that_goes_away_in_the_middle(hub: LoopbackHub, what: str, file: str, tmp_path: Path) -> None:
    """Nobody uses what is half here: once the hub is back, the rest is fetched, and what was whole is not."""
    hub.breaks_off = (file,)
    expected = f"Expected {what}.* but got 'org/tiny', which the hub stopped sending .*: run the same command again"
    with pytest.raises(FederatedConfigError, match=expected):
        LOADERS[what]("org/tiny")
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith((".incomplete", ".arrow", file))]
    hub.breaks_off, whole = (), {path.name for path in tmp_path.rglob("snapshots/*/*") if path.is_file()}
    hub.come_back()
    start = len(hub.requests)
    LOADERS[what]("org/tiny")
    fetched = {r.rpartition("/")[2] for r in hub.requests[start:] if r.startswith("GET") and "/resolve/" in r}
    assert whole and not fetched & whole
    assert any(name.endswith(file) for name in fetched)


def test_the_hub_comes_before_a_package(hub: LoopbackHub) -> None:
    """A packaged id is asked for on a hub that is there; only one that lacks it leads to the package."""
    hub.repositories["datasets"]["SetFit/20_newsgroups"] = data_of_the_hub()[AG_NEWS]
    splits = load_splits("SetFit/20_newsgroups")
    assert splits["train"].features["label"].names == ["World", "Sports", "Business", "Sci/Tech"]


def test_a_repository_without_tables(hub: LoopbackHub) -> None:
    hub.repositories["datasets"]["org/empty"] = {"README.md": b"# Nothing"}
    with pytest.raises(FederatedConfigError, match=r"got 'org/empty' \(.*\): choose another or download its files"):
        load_splits("org/empty")


@pytest.mark.parametrize("name", ["org/tiny", "SetFit/20_newsgroups"])
def test_a_full_disk_is_not_the_hub_s(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def load_dataset(*arguments: str | None) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(OSError, match="No space left"):
        load_splits(name)


def test_another_configuration_of_a_packaged_set(hub: LoopbackHub) -> None:
    """Not the package instead, which has only one."""
    hub.repositories["datasets"]["SetFit/20_newsgroups"] = data_of_the_hub()[AG_NEWS]
    with pytest.raises(FederatedConfigError, match="`loading.config_name` .* but got 'bydate'"):
        load_splits("SetFit/20_newsgroups", "bydate")
