"""Finding the tokenizer, telling two apart, and checking that it fits the model."""

import hashlib
import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pl_fed import assets
from pl_fed.errors import FederatedConfigError, shortened


def find_tokenizer(name: str | None, module: Any) -> PreTrainedTokenizerBase:
    """Return a tokenizer by name, or the one of a LightningModule.

    Args:
        name: A folder, a hub id or a packaged model; None means the module's ``tokenizer``.
        module: The LightningModule, if there is one.

    Raises:
        FederatedConfigError: If there is neither, or it cannot be loaded.
    """
    found: PreTrainedTokenizerBase | None = getattr(module, "tokenizer", None)
    if name is not None:
        found = _load(name)
    if found is None:
        owner = "there is no module" if module is None else f"{type(module).__name__} has none"
        raise FederatedConfigError(
            f"Expected `tokenizer` or a LightningModule with a `tokenizer` but {owner}: set `tokenizer` to the name of "
            "the model."
        )
    return found


def _load(name: str) -> PreTrainedTokenizerBase:
    folder = assets.resolve_model(name, "tokenizer")
    try:
        with assets.hub_or_caches(folder):
            found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    except assets.HUB_ERRORS as error:
        reason = shortened(error)
        refusal = None if Path(folder).is_dir() else assets.hub_refusal(error, name, assets.packaged_models())
        raise FederatedConfigError(
            f"Expected `tokenizer` to be the folder or hub id of a tokenizer but got '{name}'"
            f"{refusal or f' ({reason}): choose another or complete its files.'}"
        ) from error
    return found


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return what to fill up with; masked everywhere, so any token will do where there is none for it."""
    candidates: list[int | None] = [tokenizer.pad_token_id, tokenizer.eos_token_id]
    return next((token for token in candidates if token is not None), 0)


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash everything that decides which tokens a text becomes."""
    if getattr(tokenizer, "is_fast", False):
        vocabulary = json.loads(tokenizer.backend_tokenizer.to_str())
        vocabulary.update(truncation=None, padding=None)  # left behind by the last call
    else:
        vocabulary = sorted(tokenizer.get_vocab().items())
    special = [tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.truncation_side]
    parts = [type(tokenizer).__name__, vocabulary, special, getattr(tokenizer, "chat_template", None)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, module: Any) -> None:
    """Check that the model has an embedding for every token, and means the same token by it.

    Raises:
        FederatedConfigError: If the tokenizer has more tokens than the model has embeddings, or other tokens than the
            module's own tokenizer.
    """
    _check_same_tokens(tokenizer, module)
    for owner in (module, getattr(module, "model", None)):
        embeddings = getattr(owner, "get_input_embeddings", lambda: None)()
        rows = getattr(embeddings, "num_embeddings", None)
        if rows is not None and len(tokenizer) > rows:
            raise FederatedConfigError(
                f"Expected a tokenizer of at most the model's {rows} embeddings but got one of {len(tokenizer)} "
                "tokens: use the model's own tokenizer, or resize the embeddings."
            )


def _check_same_tokens(tokenizer: PreTrainedTokenizerBase, module: Any) -> None:
    """Compare ids; tokens that only one of the two has, as added ones, and another chat template are no mistake."""
    own = getattr(module, "tokenizer", None)
    if not isinstance(own, PreTrainedTokenizerBase) or own is tokenizer:
        return
    expected, given = ({i: token for token, i in found.get_vocab().items()} for found in (own, tokenizer))
    differ = [i for i in sorted(expected.keys() & given.keys()) if expected[i] != given[i]]
    if differ:
        first = differ[0]
        raise FederatedConfigError(
            f"Expected the data's tokenizer to have the model's tokens but {len(differ)} of them differ, such as token "
            f"{first}, '{given[first]}' instead of '{expected[first]}': leave the data's `tokenizer` null, which takes "
            "the model's own, or name that model."
        )
