"""What the federated data sets have in common: load, divide, and hand out loaders."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from flwr_datasets.partitioner import IidPartitioner, Partitioner
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, Dataset, Subset

from pl_fed import assets
from pl_fed.datamodules.batches import Collate, Example
from pl_fed.datamodules.config import LoadingConfig, SplitConfig
from pl_fed.datamodules.partition import Indices, choose, divide
from pl_fed.datamodules.report import Row, draw_partition, partition_rows
from pl_fed.datamodules.sources import Rows, Splits, load_splits
from pl_fed.errors import FederatedConfigError
from pl_fed.loaders import ClientLoader, RoundLoader
from pl_fed.rounds import derive_seed


class FederatedData(LightningDataModule, ABC):
    """A data set split over clients; a subclass says what an example is and prepares it in `setup`.

    After `setup` there are `partition`, `num_clients` and `client_names`.

    Args:
        dataset: Hub id, name of a packaged set, or path of a file or folder.
        partitioner: Any partitioner of flwr-datasets; None means ten clients with random shares of equal size.
        splits: Sizes of the splits, and the seed.
        batch_size: Examples in a training batch.
        loading: How examples are read and put into batches.
    """

    cache_name: ClassVar[str]  # folder of what is prepared once
    _examples: Dataset[Example]

    def __init__(
        self,
        dataset: str,
        partitioner: Partitioner | None,
        splits: SplitConfig,
        batch_size: int,
        loading: LoadingConfig,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise FederatedConfigError(f"Expected `batch_size` to be at least 1 but got {batch_size}.")
        if loading.personalised and not splits.test_fraction:
            raise FederatedConfigError(
                "Expected `splits.test_fraction` above 0 for `loading.personalised` but got 0: clients would have "
                "nothing to be tested on."
            )
        if loading.personalised_validation and not splits.validation_fraction:
            raise FederatedConfigError(
                "Expected `splits.validation_fraction` above 0 for `loading.personalised_validation` but got 0: "
                "clients would have nothing to be validated on."
            )
        self.dataset, self.splits, self.loading = dataset, splits, loading
        self.partitioner = IidPartitioner(10) if partitioner is None else partitioner
        self.batch_size = batch_size

    @abstractmethod
    def _load(self) -> Rows:
        """Load the rows that can be used."""

    @abstractmethod
    def _collator(self, evaluation: bool, predicts: bool) -> Collate:
        """Return what makes a batch of examples; `predicts` is set for batches that the model is to continue."""

    @abstractmethod
    def _check_model(self) -> None:
        """Check that data and model fit; again for every loader, as the model may come after `setup`."""

    def _lengths(self) -> Sequence[int] | None:
        """Return the length of every example if those of like length go together."""
        return None

    def _in_order(self, indices: Sequence[int]) -> Indices:
        """Return examples in the order to evaluate them in."""
        return list(indices)

    @property
    def _module(self) -> Any:
        return None if self.trainer is None else self.trainer.lightning_module

    @property
    def _cache(self) -> Path:
        given = self.loading.cache_dir
        return assets.cache_dir() / self.cache_name if given is None else Path(given).expanduser()

    def _load_splits(self) -> Splits:
        """Load the data's own splits."""
        cache = None if self.loading.cache_dir is None else self._cache / "sources"
        return load_splits(self.dataset, self.loading.config_name, cache)

    def _limit(self, rows: Rows) -> Rows:
        """Take no more of each split than the limits."""
        chosen = {}
        for name, split in rows.splits.items():
            limit = self.splits.limit_train if name == "train" else self.splits.limit_test
            if limit is not None and limit < len(split):
                chosen[name] = sorted(choose(range(len(split)), limit, derive_seed(self.splits.seed, 0x11)))
        return rows.select(chosen)

    def prepare_data(self) -> None:
        """Download the data, while the machine's other processes wait."""
        self._load_splits()

    def _divide(self, rows: Rows, usable: dict[str, Indices]) -> np.ndarray:
        """Divide the usable training rows, and return the client of every row of all splits."""
        self.partition = divide(rows.splits["train"], usable["train"], self.partitioner, self.splits, rows.groups)
        self._rows, self._own = rows, usable
        return self.partition.holders(sum(map(len, rows.splits.values())))

    def _announce(self, stats: str) -> None:
        rank_zero_info(f"{self.dataset}: {stats}; {self.num_clients} clients.")

    @property
    def num_clients(self) -> int:
        """Size of the population."""
        return len(self.partition.names)

    @property
    def client_names(self) -> list[str]:
        """Natural ids where the partitioner knows them, else ``client 0`` and so on."""
        return self.partition.names

    def partition_table(self) -> list[Row]:
        """Return one row for each client: sizes of its splits, entropy of its groups, and their counts."""
        return partition_rows(self.partition, self._rows.groups, self._rows.group_order)

    def plot_partition(self, path: str | Path) -> None:
        """Draw the partition into a PNG file."""
        title = f"{self.dataset}, {type(self.partitioner).__name__}"
        draw_partition(self.partition, self._rows.groups, title, Path(path), self._rows.group_order)

    def train_dataloader(self) -> RoundLoader:
        """Return the loader of a round; cheap, since every round asks for it."""
        options = self._options(evaluation=False)
        return RoundLoader(self._examples, self.partition.train, self.batch_size, lengths=self._lengths(), **options)

    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """Return all clients' validation examples; without any, the data's own validation split if it has one."""
        if self.splits.validation_fraction:
            plain = self._plain(self._held_out("validation", self.partition.validation))
            if self.loading.personalised_validation:
                return [plain, self._by_client(self.partition.validation, personalised=True)]
            return plain
        return self._plain(self._own["validation"]) if self._own.get("validation") else []

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """Return the data's own test split if it has one, the clients', and theirs again if `personalised`."""
        loaders: list[DataLoader[Any]] = [self._plain(self._own["test"])] if self._own.get("test") else []
        if self.splits.test_fraction:
            self._held_out("test", self.partition.test)
            for personalised in (False, True)[: 1 + self.loading.personalised]:
                loaders.append(self._by_client(self.partition.test, personalised))
        return loaders

    def _by_client(self, shards: Sequence[Sequence[int]], personalised: bool) -> ClientLoader:
        ordered = [self._in_order(shard) for shard in shards]
        size, options = self.loading.eval_batch_size, self._options(evaluation=True)
        return ClientLoader(self._examples, ordered, size, personalised, **options)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return the data's own test split, else all clients' test examples; in order."""
        indices = self._own.get("test") or self._held_out("test", self.partition.test)
        return self._plain(indices, predicts=True)

    def public_dataloader(self, batch_size: int | None = None) -> DataLoader[Any] | None:
        """Return the server's examples, shuffled by a generator of its own, or None if it has none.

        Args:
            batch_size: Examples in a batch; None means the training batch size.
        """
        if not self.partition.public:
            return None
        data, size = Subset(self._examples, self.partition.public), batch_size or self.batch_size
        return DataLoader(data, batch_size=size, shuffle=True, **self._options(evaluation=False))

    def _held_out(self, name: str, shards: Sequence[Sequence[int]]) -> Indices:
        indices = [i for shard in shards for i in shard]
        if not indices:
            raise FederatedConfigError(
                f"Expected clients with {name} examples but none has any: raise `splits.{name}_fraction`, which is "
                f"{getattr(self.splits, f'{name}_fraction')} of shards of at most "
                f"{max(map(len, self.partition.shards))} examples."
            )
        return indices

    def _plain(self, indices: Sequence[int], predicts: bool = False) -> DataLoader[Any]:
        data = Subset(self._examples, list(indices) if predicts else self._in_order(indices))
        return DataLoader(data, batch_size=self.loading.eval_batch_size, **self._options(True, predicts))

    def _options(self, evaluation: bool, predicts: bool = False) -> dict[str, Any]:
        self._check_model()
        return {
            "collate_fn": self._collator(evaluation, predicts),
            "num_workers": self.loading.num_workers,
            "generator": torch.Generator().manual_seed(
                derive_seed(self.splits.seed, 0xDA)
            ),  # leaves the global one alone
        }
