"""What the federated data sets have in common: load, tokenise, divide, and hand out loaders."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from flwr_datasets.partitioner import IidPartitioner, Partitioner
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, Subset
from transformers import PreTrainedTokenizerBase

from pl_fed import assets
from pl_fed.datamodules.batches import Collate, ExampleDataset
from pl_fed.datamodules.config import LoadingConfig, SplitConfig
from pl_fed.datamodules.partition import Indices, choose, divide
from pl_fed.datamodules.report import Row, draw_partition, partition_rows
from pl_fed.datamodules.sources import Rows, Splits, load_splits
from pl_fed.datamodules.tokens import Encode, TokenTable, tokenise_once
from pl_fed.datamodules.vocabulary import check_vocabulary, find_tokenizer, pad_token_id, tokenizer_hash
from pl_fed.errors import FederatedConfigError
from pl_fed.loaders import ClientLoader, RoundLoader
from pl_fed.rounds import derive_seed


class FederatedData(LightningDataModule, ABC):
    """A text data set split over clients; a subclass says what an example is.

    After `setup` there are `partition`, `num_clients`, `client_names` and `token_stats`.

    Args:
        dataset: Hub id, name of a packaged set, or path of a file or folder.
        partitioner: Any partitioner of flwr-datasets; None means ten clients with random shares of equal size.
        splits: Sizes of the splits, and the seed.
        tokenizer: Name or folder of the tokenizer; None means the `tokenizer` of the LightningModule.
        max_length: Largest number of tokens of an example.
        batch_size: Examples in a training batch.
        loading: How examples are read and put into batches.
    """

    def __init__(
        self,
        dataset: str,
        partitioner: Partitioner | None,
        splits: SplitConfig,
        tokenizer: str | None,
        max_length: int,
        batch_size: int,
        loading: LoadingConfig,
    ) -> None:
        super().__init__()
        for name, value in (("max_length", max_length), ("batch_size", batch_size)):
            if value < 1:
                raise FederatedConfigError(f"Expected `{name}` to be at least 1 but got {value}.")
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
        self.tokenizer, self.max_length, self.batch_size = tokenizer, max_length, batch_size
        self._fitted: PreTrainedTokenizerBase | None = None  # the tokenizer that the data was prepared with

    @abstractmethod
    def _load(self) -> Rows:
        """Load the rows that can be used."""

    @abstractmethod
    def _encoder(self, tokenizer: PreTrainedTokenizerBase) -> tuple[list[str], Encode, list[str]]:
        """Return the columns to tokenise, what does it, and the settings that decide its result."""

    @abstractmethod
    def _collate(self, pad_token_id: int, evaluation: bool, predicts: bool = False) -> Collate:
        """Return what makes a batch of examples; `predicts` is set for batches that the model is to continue."""

    @property
    def _module(self) -> Any:
        return None if self.trainer is None else self.trainer.lightning_module

    @property
    def _cache(self) -> Path:
        given = self.loading.cache_dir
        return assets.cache_dir() / "tokens" if given is None else Path(given).expanduser()

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

    def setup(self, stage: str | None = None) -> None:
        """Load, tokenise and divide the data, unless that is done for this tokenizer already."""
        done = self._fitted if self.tokenizer is not None else None
        found = done or find_tokenizer(self.tokenizer, self._module)
        if found is self._fitted:
            return
        check_vocabulary(found, self._module)
        rows = self._limit(self._load())
        tokens = self._tokenise(rows.splits, found)
        usable = tokens.usable({name: len(split) for name, split in rows.splits.items()})
        if not usable["train"]:
            raise FederatedConfigError(
                f"Expected examples to learn from but all {len(rows.splits['train'])} are empty or lost their response "
                f"to `max_length`={self.max_length}: raise it."
            )
        self.partition = divide(rows.splits["train"], usable["train"], self.partitioner, self.splits, rows.groups)
        self._rows, self._own, self._pad = rows, usable, pad_token_id(found)
        targets = tokens.prompt_lengths if rows.targets is None else rows.targets
        self._examples = ExampleDataset(tokens, targets, self.partition.holders(len(tokens)))
        self.token_stats, self._fitted = tokens.stats(), found
        rank_zero_info(f"{self.dataset}: {self.token_stats}; {self.num_clients} clients.")

    def _tokenise(self, splits: Splits, tokenizer: PreTrainedTokenizerBase) -> TokenTable:
        columns, encode, settings = self._encoder(tokenizer)
        settings = [type(self).__name__, tokenizer_hash(tokenizer), str(self.max_length), *settings]
        return TokenTable([tokenise_once(rows, columns, encode, settings, self._cache) for rows in splits.values()])

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
        lengths = self._examples.tokens.lengths if self.loading.length_grouped else None
        options = self._options(evaluation=False)
        return RoundLoader(self._examples, self.partition.train, self.batch_size, lengths=lengths, **options)

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
        ordered = [self._by_length(shard) for shard in shards]
        size, options = self.loading.eval_batch_size, self._options(evaluation=True)
        return ClientLoader(self._examples, ordered, size, personalised, **options)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return the data's own test split, else all clients' test examples; in order."""
        indices = self._own.get("test") or self._held_out("test", self.partition.test)
        return self._plain(indices, by_length=False, predicts=True)

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

    def _by_length(self, indices: Sequence[int]) -> Indices:
        if not self.loading.length_grouped:
            return list(indices)
        return sorted(indices, key=self._examples.tokens.lengths.__getitem__, reverse=True)

    def _plain(self, indices: Sequence[int], by_length: bool = True, predicts: bool = False) -> DataLoader[Any]:
        data = Subset(self._examples, self._by_length(indices) if by_length else indices)
        return DataLoader(data, batch_size=self.loading.eval_batch_size, **self._options(True, predicts))

    def _check_model(self) -> None:
        """Check that data and model fit; again for every loader, as the model may come after `setup`."""
        if self._fitted is not None:
            check_vocabulary(self._fitted, self._module)

    def _options(self, evaluation: bool, predicts: bool = False) -> dict[str, Any]:
        self._check_model()
        return {
            "collate_fn": self._collate(self._pad, evaluation, predicts),
            "num_workers": self.loading.num_workers,
            "generator": torch.Generator().manual_seed(
                derive_seed(self.splits.seed, 0xDA)
            ),  # leaves the global one alone
        }
