"""From a name in a config to something that loads."""

from collections.abc import Iterable
from pathlib import Path

from datasets import Dataset, DatasetDict  # noqa: F401 - a shape checker resolves DatasetDict's base by this name
from lightning.fabric.utilities import rank_zero_info

from pl_fed.assets.cache import build_once, cache_dir
from pl_fed.assets.catalogue import PackagedAsset
from pl_fed.assets.errors import AssetNotFoundError
from pl_fed.assets.fetch import fetch_files
from pl_fed.assets.hub import hub_obstacle, in_hub_cache
from pl_fed.assets.tables import DATASETS, MODELS
from pl_fed.assets.tiny import TINY_MODEL, tiny_model


def packaged_models() -> tuple[PackagedAsset, ...]:
    """Return the models that install from a package registry."""
    return MODELS


def packaged_datasets() -> tuple[PackagedAsset, ...]:
    """Return the data sets that install from a package registry."""
    return DATASETS


def is_packaged_dataset(name: str) -> bool:
    """Return whether `load_packaged_dataset` knows `name`, a hub id or short name."""
    return _find(name, packaged_datasets()) is not None


def resolve_model(model: str, setting: str = "model") -> str:
    """Return what to pass to ``from_pretrained`` to get `model` on this machine.

    Args:
        model: A local folder, a hub id, ``tiny-random-llama`` for a random model that is made on the spot, or the short
            name of a packaged model that no hub has.
        setting: What the user calls it, for the error.

    Returns:
        `model` itself if it is a folder, if the local hub cache holds it, or if the hub can be asked for it; otherwise
        the folder of the packaged copy, which the first call fetches and converts.

    Raises:
        AssetNotFoundError: If none of these exists.
        AssetFetchError: If the packaged copy could not be fetched.

    Example:
        >>> import tempfile
        >>> resolve_model(tempfile.gettempdir()) == tempfile.gettempdir()
        True
    """
    if model == TINY_MODEL:
        return tiny_model()
    if Path(model).is_dir():
        return model
    asset = _find(model, packaged_models())
    if asset is not None and asset.hub_id is None:  # no hub to ask
        return str(_cached(asset, "models"))
    if in_hub_cache(model):
        return model
    obstacle = hub_obstacle()
    if obstacle is None:
        return model
    if asset is None:
        raise AssetNotFoundError(
            f"Expected `{setting}` to be a local folder, a model on the hub, one in the hub's local cache (with config,"
            f" weights and tokenizer) or a packaged one but got '{model}': check the name, and know that the hub was"
            f" not used because {obstacle}, and that packaged are only {_available(packaged_models())}."
        )
    return str(_cached(asset, "models"))


def load_packaged_dataset(name: str) -> DatasetDict:
    """Load a data set from its package; later calls read the cached Arrow files.

    Args:
        name: Its short name or its hub id. The hub is not asked.

    Returns:
        The splits of the source: ``train`` and, where it has one, ``test``. Classification sets have the columns
        ``text`` or ``image``, and ``label``; the conversations have ``instruction``, ``response`` and ``topic``.

    Raises:
        AssetNotFoundError: If no package holds it.
        AssetFetchError: If the package could not be fetched.
    """
    asset = _find(name, packaged_datasets())
    if asset is None:
        raise AssetNotFoundError(
            f"Expected a packaged data set but got '{name}': packaged are only {_available(packaged_datasets())}."
        )
    return DatasetDict.load_from_disk(_cached(asset, "datasets"))


def _cached(asset: PackagedAsset, kind: str) -> Path:
    def build(work: Path, finished: Path) -> None:
        files = fetch_files(asset, work)
        rank_zero_info(f"Converting {asset.name} once.")
        asset.build(asset, files, finished)

    target = cache_dir() / kind / asset.cache_name
    if not target.is_dir():
        # Every process says so before it waits for the lock: rank zero need not be the one that builds.
        size = f"{asset.source.num_bytes / 1e6:.1f} MB"
        rank_zero_info(f"Fetching {asset} ({size}, licence: {asset.licence}). {asset.note}")
    return build_once(target, build)


def _find(name: str, assets: Iterable[PackagedAsset]) -> PackagedAsset | None:
    return next((asset for asset in assets if name in (asset.name, asset.hub_id)), None)


def _available(assets: Iterable[PackagedAsset]) -> str:
    return "; ".join(str(asset) for asset in assets)
