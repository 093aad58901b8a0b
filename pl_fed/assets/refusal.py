"""Why the hub did not give a model or data set, and what to do about it, from the errors of its clients."""

from collections.abc import Iterable, Iterator

import httpx
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub import get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from pl_fed.assets.catalogue import PackagedAsset
from pl_fed.assets.hub import TIMEOUT_SECONDS, hub_has_gone

HUB_ERRORS = (OSError, ValueError, httpx.TransportError)  # what the clients raise; a lost connection is no OSError


def hub_refusal(error: BaseException, name: str, packaged: Iterable[PackagedAsset] = ()) -> str | None:
    """Return what follows "... but got 'org/name'" in an error message, or None if the hub is not to blame.

    Args:
        error: What a library raised when it loaded something from the hub.
        name: The id that was asked for.
        packaged: What could be had without the hub, to name where the hub has no such thing.

    Example:
        >>> hub_refusal(ValueError("a file of it is broken"), "org/name") is None
        True
    """
    causes = list(_causes(_asked_again(name) if isinstance(error, DatasetNotFoundError) else error))
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return (
            ", which the hub gives only to accounts that were granted access: ask for that on its page there, and set"
            " HF_TOKEN to a token of your account."
        )
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return (
            ", which the hub does not have or does not show to you: check the spelling, set HF_TOKEN if it is private,"
            f" or take one of those that are packaged ({', '.join(asset.hub_id or asset.name for asset in packaged)})."
        )
    # transformers tries other files after a lost connection, and reports that it found none of them
    if any(isinstance(cause, httpx.TransportError) for cause in causes) or hub_has_gone():
        return (
            ", which the hub stopped sending before all of it was here: run the same command again when the hub"
            " answers; files that are complete are kept."
        )
    return None


def _asked_again(dataset: str) -> Exception | None:
    """Return what is wrong with a data set's page; `datasets` drops that."""
    try:
        get_hf_file_metadata(hf_hub_url(dataset, "README.md", repo_type="dataset"), timeout=TIMEOUT_SECONDS)
    except HUB_ERRORS as error:
        return error
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
