import email.message
import http.client
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import datasets
import pytest
from huggingface_hub import constants, is_offline_mode

from pl_fed.assets import hub
from pl_fed.assets.hub import _probe, hub_obstacle, hub_or_caches, hub_reachable, in_hub_cache
from tests.helpers.endpoint import Server


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget the offline variables of the test session and what an earlier test found out."""
    with monkeypatch.context() as patch:
        patch.delenv("HF_HUB_OFFLINE", raising=False)
        patch.delenv("TRANSFORMERS_OFFLINE", raising=False)
        _probe.cache_clear()
        yield
    _probe.cache_clear()


def answer_with(monkeypatch: pytest.MonkeyPatch, answer: Exception | None) -> list[tuple[str, str, float]]:
    asked = []

    def urlopen(request: urllib.request.Request, timeout: float) -> nullcontext[None]:
        asked.append((request.get_method(), request.full_url, timeout))
        if answer is not None:
            raise answer
        return nullcontext()

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return asked


def status(code: int) -> urllib.error.HTTPError:
    return urllib.error.HTTPError("https://hub", code, "text", email.message.Message(), None)


def test_asks_once_with_a_short_timeout(online, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answer_with(monkeypatch, None)
    assert hub_reachable() and hub_reachable()
    assert asked == [("HEAD", constants.ENDPOINT, 2.0)]


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
@pytest.mark.parametrize("value", ["1", "true", "YES"])
def test_offline_variables_forbid_to_ask(online, monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    asked = answer_with(monkeypatch, None)
    with monkeypatch.context() as patch:
        patch.setenv(variable, value)
        assert not hub_reachable()
        assert hub_obstacle() == f"{variable}={value} forbids it"
    assert asked == []


def test_falsy_offline_variable_does_not(online, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, None)
    with monkeypatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "0")
        assert hub_reachable()


@pytest.mark.parametrize(
    ("answer", "obstacle"),
    [
        (status(401), None),
        (status(404), None),
        (status(503), "answered with status 503"),
        (urllib.error.URLError("Name or service not known"), "did not answer (Name or service not known)"),
        (TimeoutError("timed out"), "did not answer (timed out)"),
        (http.client.BadStatusLine("nonsense"), "did not answer (nonsense)"),
    ],
)
def test_answers(online, monkeypatch: pytest.MonkeyPatch, answer: Exception, obstacle: str | None) -> None:
    answer_with(monkeypatch, answer)
    found = hub_obstacle()
    assert found is None if obstacle is None else found == f"{constants.ENDPOINT} {obstacle}"


def test_refused_connection(online, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real socket: nobody listens on the discard port of this machine."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with monkeypatch.context() as patch:
        patch.setenv("no_proxy", "127.0.0.1")
        assert not hub_reachable()


def test_a_trickling_answer_is_none(online, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every byte is in time for a socket's timeout, and the answer never ends."""
    with Server(lambda handler: None) as server:
        vars(server)["RequestHandlerClass"].do_HEAD = lambda handler: server.trickle_headers(handler)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setattr(hub, "TIMEOUT_SECONDS", 0.2)
        with monkeypatch.context() as patch:
            patch.setenv("no_proxy", "127.0.0.1")
            patch.setattr(constants, "ENDPOINT", server.url)
            assert hub_obstacle() == f"{server.url} did not answer (timed out)"
        assert not server.over.is_set()
        server.over.set()
        server.shutdown()


def test_an_endpoint_that_is_no_address(online, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "my-hub")
    assert hub_obstacle() == "HF_ENDPOINT=my-hub is no web address"


def test_only_a_hub_that_is_there_is_asked(online, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without one both libraries read their caches alone; afterwards they have their own settings again."""
    for library in (constants, datasets.config):
        monkeypatch.setattr(library, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "hub_obstacle", lambda: "it is away")
    with pytest.raises(KeyError), hub_or_caches("org/name"):
        assert constants.HF_HUB_OFFLINE and datasets.config.HF_HUB_OFFLINE and is_offline_mode()
        raise KeyError
    with hub_or_caches(str(tmp_path)):  # a folder is nobody's business
        assert not constants.HF_HUB_OFFLINE and not datasets.config.HF_HUB_OFFLINE
    monkeypatch.setattr(hub, "hub_obstacle", lambda: None)
    with hub_or_caches("org/name"):
        assert not constants.HF_HUB_OFFLINE and not datasets.config.HF_HUB_OFFLINE


SHARDS = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}


@pytest.mark.parametrize(
    ("files", "complete"),
    [
        (["config.json", "model.safetensors", "tokenizer.json"], True),
        (["config.json", "pytorch_model.bin", "vocab.txt"], True),
        (["config.json", "model.safetensors", "preprocessor_config.json"], True),
        (["config.json", "model.safetensors.index.json", "model-1.safetensors", "tokenizer.json"], False),
        (
            ["config.json", "model.safetensors.index.json", "model-1.safetensors", "model-2.safetensors", "vocab.json"],
            True,
        ),
        (["config.json", "tokenizer.json"], False),
        (["config.json", "model.safetensors"], False),
        (["model.safetensors", "tokenizer.json"], False),
    ],
)
def test_hub_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: list[str], complete: bool) -> None:
    """The layout of the hub's cache: `refs/main` names the commit, `snapshots/<commit>` has its files."""
    repository = tmp_path / "models--org--tiny"
    snapshot = repository / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c0ffee")
    for name in files:
        (snapshot / name).write_text(json.dumps(SHARDS))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert in_hub_cache("org/tiny") is complete
    assert not in_hub_cache("org/other")
    assert not in_hub_cache("not/a/hub/id")
