"""What the federated text data sets have in common: tokens, made once, and batches of like length."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from flwr_datasets.partitioner import Partitioner
from transformers import PreTrainedTokenizerBase

from pl_fed.datamodules.base import FederatedData
from pl_fed.datamodules.batches import Collate, ExampleDataset
from pl_fed.datamodules.config import LoadingConfig, SplitConfig
from pl_fed.datamodules.partition import Indices
from pl_fed.datamodules.sources import Splits
from pl_fed.datamodules.tokens import Encode, TokenTable, tokenise_once
from pl_fed.datamodules.vocabulary import check_vocabulary, find_tokenizer, pad_token_id, tokenizer_hash
from pl_fed.errors import FederatedConfigError


class FederatedText(FederatedData):
    """A text data set split over clients; a subclass says what an example is.

    After `setup` there is also `token_stats`.

    Args:
        dataset: Hub id, name of a packaged set, or path of a file or folder.
        partitioner: Any partitioner of flwr-datasets; None means ten clients with random shares of equal size.
        splits: Sizes of the splits, and the seed.
        tokenizer: Name or folder of the tokenizer; None means the `tokenizer` of the LightningModule.
        max_length: Largest number of tokens of an example.
        batch_size: Examples in a training batch.
        loading: How examples are read and put into batches.
    """

    cache_name = "tokens"
    _examples: ExampleDataset

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
        if max_length < 1:
            raise FederatedConfigError(f"Expected `max_length` to be at least 1 but got {max_length}.")
        super().__init__(dataset, partitioner, splits, batch_size, loading)
        self.tokenizer, self.max_length = tokenizer, max_length
        self._fitted: PreTrainedTokenizerBase | None = None  # the tokenizer that the data was prepared with

    @abstractmethod
    def _encoder(self, tokenizer: PreTrainedTokenizerBase) -> tuple[list[str], Encode, list[str]]:
        """Return the columns to tokenise, what does it, and the settings that decide its result."""

    @abstractmethod
    def _collate(self, pad_token_id: int, evaluation: bool, predicts: bool = False) -> Collate:
        """Return what makes a batch of examples; `predicts` is set for batches that the model is to continue."""

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
        holders = self._divide(rows, usable)
        targets = tokens.prompt_lengths if rows.targets is None else rows.targets
        self._examples, self._pad = ExampleDataset(tokens, targets, holders), pad_token_id(found)
        self.token_stats, self._fitted = tokens.stats(), found
        self._announce(str(self.token_stats))

    def _tokenise(self, splits: Splits, tokenizer: PreTrainedTokenizerBase) -> TokenTable:
        columns, encode, settings = self._encoder(tokenizer)
        settings = [type(self).__name__, tokenizer_hash(tokenizer), str(self.max_length), *settings]
        return TokenTable([tokenise_once(rows, columns, encode, settings, self._cache) for rows in splits.values()])

    def _lengths(self) -> Sequence[int] | None:
        return self._examples.tokens.lengths if self.loading.length_grouped else None

    def _in_order(self, indices: Sequence[int]) -> Indices:
        lengths = self._lengths()
        return list(indices) if lengths is None else sorted(indices, key=lengths.__getitem__, reverse=True)

    def _check_model(self) -> None:
        if self._fitted is not None:
            check_vocabulary(self._fitted, self._module)

    def _collator(self, evaluation: bool, predicts: bool) -> Any:
        return self._collate(self._pad, evaluation, predicts)
