"""Whether the hub can be used, and what of it is already on this machine."""

import functools
import http.client
import json
import os
import urllib.error
import urllib.request
from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

_TIMEOUT_SECONDS = 2.0
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


# Remembered: a machine without a network should pay the timeout once, not once per model.
@functools.lru_cache
def _probe(endpoint: str) -> str | None:
    request = urllib.request.Request(endpoint, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS):
            return None
    except urllib.error.HTTPError as error:
        error.close()
        # 401, 404 or 405 at the root of a mirror still means that somebody is there.
        return None if error.code < 500 else f"{endpoint} answered with status {error.code}"
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
