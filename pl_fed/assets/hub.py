"""Whether the hub can be used, and what of it is already on this machine."""

import functools
import http.client
import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

TIMEOUT_SECONDS = 2.0
_OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_PREPROCESSING = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "preprocessor_config.json",
)


def hub_reachable() -> bool:
    """Return whether the hub answers; asks at most once per process and never when an offline variable is set."""
    return hub_obstacle() is None


def hub_obstacle() -> str | None:
    """Return why the hub cannot be used, as half a sentence, or None if it can."""
    for variable in _OFFLINE_VARIABLES:
        if os.environ.get(variable, "").upper() in constants.ENV_VARS_TRUE_VALUES:
            return f"{variable}={os.environ[variable]} forbids it"
    return _probe(constants.ENDPOINT)


@contextmanager
def hub_or_caches(name: str) -> Iterator[None]:
    """Let the libraries load `name`, a folder or hub id, from their caches alone where the hub cannot be used.

    They would ask for every file of a cached model or data set first, and wait for a time-out each time.
    """
    if Path(name).is_dir() or hub_obstacle() is None:
        yield
        return
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True  # read at every request
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def hub_has_gone() -> bool:
    """Return whether the hub was there when it was first asked and is not now."""
    return hub_reachable() and _ask_in_time(constants.ENDPOINT) is not None


# Remembered: a machine without a network should pay the timeout once, not once per model.
@functools.lru_cache
def _probe(endpoint: str) -> str | None:
    return _ask_in_time(endpoint)


def _ask_in_time(endpoint: str) -> str | None:
    """Ask in a thread: a socket's timeout holds for each of an endpoint's addresses and for each piece of an answer."""
    answers: list[str | None] = []
    thread = threading.Thread(target=lambda: answers.append(_ask(endpoint)), daemon=True)
    thread.start()
    thread.join(TIMEOUT_SECONDS)
    return answers[0] if answers else f"{endpoint} did not answer (timed out)"


def _ask(endpoint: str) -> str | None:
    try:
        request = urllib.request.Request(endpoint, method="HEAD")
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS):
            return None
    except urllib.error.HTTPError as error:
        error.close()
        # 401, 404 or 405 at the root of a mirror still means that somebody is there.
        return None if error.code < 500 else f"{endpoint} answered with status {error.code}"
    except ValueError:
        return f"HF_ENDPOINT={endpoint} is no web address"
    except (OSError, http.client.HTTPException) as error:
        return f"{endpoint} did not answer ({getattr(error, 'reason', error)})"


def in_hub_cache(model: str) -> bool:
    """Return whether the local hub cache holds config, weights and tokenizer of `model`.

    Args:
        model: A hub id such as ``org/name``.
    """
    try:
        config = try_to_load_from_cache(model, "config.json", cache_dir=constants.HF_HUB_CACHE)
    except HFValidationError:
        return False
    return isinstance(config, str) and _is_complete(Path(config).parent)


def _is_complete(snapshot: Path) -> bool:
    has_weights = any(
        (snapshot / name).is_file() or _has_all_parts(snapshot / f"{name}.index.json") for name in _WEIGHTS
    )
    return has_weights and any((snapshot / name).is_file() for name in _PREPROCESSING)


def _has_all_parts(index: Path) -> bool:
    if not index.is_file():
        return False
    parts = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return all((index.parent / part).is_file() for part in parts)
