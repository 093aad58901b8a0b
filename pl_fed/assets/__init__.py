"""Models and data sets by their hub ids, also on machines that reach no hub.

Many machines that train reach a package registry but no model hub. For a few models and data sets a package of such a
registry holds the same content; it is fetched with the registry's own client, checked by SHA-256, converted once and
cached. What the packages contain is not part of this project; mind the licences in the tables.
"""

from pl_fed.assets.cache import cache_dir
from pl_fed.assets.catalogue import PackagedAsset, PackagedFile, PackageSource
from pl_fed.assets.errors import AssetFetchError, AssetHashError, AssetNotFoundError
from pl_fed.assets.hub import hub_or_caches, hub_reachable
from pl_fed.assets.refusal import HUB_ERRORS, hub_refusal
from pl_fed.assets.resolve import (
    is_packaged_dataset,
    load_packaged_dataset,
    packaged_datasets,
    packaged_models,
    resolve_model,
)

__all__ = [
    "HUB_ERRORS",
    "AssetFetchError",
    "AssetHashError",
    "AssetNotFoundError",
    "PackageSource",
    "PackagedAsset",
    "PackagedFile",
    "cache_dir",
    "hub_or_caches",
    "hub_reachable",
    "hub_refusal",
    "is_packaged_dataset",
    "load_packaged_dataset",
    "packaged_datasets",
    "packaged_models",
    "resolve_model",
]
