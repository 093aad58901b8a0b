"""Splits by content: where an image goes depends on its pixels and the seed alone.

So it stays where it is when others are added, copies of it go with it, and an image that several clients have rated is
in the same split at all of them: nobody is tested on what another trains on.
"""

import hashlib
from collections.abc import Sequence

import datasets
from flwr_datasets.partitioner import Partitioner

from pl_fed.datamodules.config import SplitConfig
from pl_fed.datamodules.partition import Indices, Partition, assign, choose
from pl_fed.errors import FederatedConfigError
from pl_fed.rounds import derive_seed


def split_of(content: str, config: SplitConfig) -> str:
    """Return ``public``, ``test``, ``validation`` or ``train``.

    Args:
        content: Hash of the image's pixels.
        config: Shares of the splits, and the seed.

    Example:
        >>> split_of("6a1f", SplitConfig(validation_fraction=0.0, test_fraction=0.0))
        'train'
    """
    if _share(content, config.seed, "public") < config.public_fraction:
        return "public"
    place = _share(content, config.seed, "split")
    if place < config.test_fraction:
        return "test"
    return "validation" if place < config.test_fraction + config.validation_fraction else "train"


def _share(content: str, seed: int, purpose: str) -> float:
    """Return a number in [0, 1) that is uniform over contents."""
    digest = hashlib.sha256(f"{purpose}/{seed}/{content}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def divide_by_content(
    data: datasets.Dataset, contents: Sequence[str], partitioner: Partitioner, config: SplitConfig
) -> Partition:
    """Split rated images over the server and the clients.

    Args:
        data: The rows, with the columns that the partitioner reads.
        contents: Hash of the pixels of every row's image.
        partitioner: Gives what is not public to clients.
        config: Shares of the splits, and the seed.

    Raises:
        FederatedConfigError: If a number of public examples is asked for, or a client has nothing to train on.
    """
    if config.public_examples is not None:
        raise FederatedConfigError(
            f"Expected `splits.public_fraction` for rated images but got `splits.public_examples` of "
            f"{config.public_examples}: a number would move images when others are added."
        )
    splits = [split_of(content, config) for content in contents]
    private = [i for i, split in enumerate(splits) if split != "public"]
    mixed = choose(private, len(private), derive_seed(config.seed, 0xA5))
    shards, names = assign(partitioner, data, mixed)
    parts: dict[str, list[Indices]] = {
        split: [[i for i in shard if splits[i] == split] for shard in shards]
        for split in ("train", "validation", "test")
    }
    if empty := [name for name, shard in zip(names, parts["train"], strict=True) if not shard]:
        raise FederatedConfigError(
            f"Expected every client to have images to train on but '{empty[0]}' has none ({len(empty)} of {len(names)} "
            "clients): use fewer clients, or lower the fractions of `splits`."
        )
    public = [i for i, split in enumerate(splits) if split == "public"]
    return Partition(names, parts["train"], parts["validation"], parts["test"], public)
