"""Texts with a class each, split over clients."""

from dataclasses import dataclass
from typing import Any

from flwr_datasets.partitioner import Partitioner
from transformers import PreTrainedTokenizerBase

from pl_fed.datamodules.batches import Collate, TextCollator
from pl_fed.datamodules.cells import check_texts
from pl_fed.datamodules.config import LoadingConfig, SplitConfig, TextColumns
from pl_fed.datamodules.labels import read_labels
from pl_fed.datamodules.sources import Rows, check_columns
from pl_fed.datamodules.text import FederatedText
from pl_fed.datamodules.tokens import Encode
from pl_fed.errors import FederatedConfigError


class TextClassificationData(FederatedText):
    """Federated text classification.

    Batches have `input_ids` and `attention_mask` (batch, length), and `labels` and `client_id` (batch,). After `setup`
    there are also `label_names` and `num_labels`.

    Args:
        dataset: Hub id, name of a packaged set, or path of a .jsonl, .json, .csv, .tsv or .parquet file or of a folder
            with the files train, validation and test.
        columns: Which columns hold the text and its class.
        partitioner: Any partitioner of flwr-datasets; None means ten clients with random shares of equal size.
        splits: Sizes of the splits, and the seed.
        tokenizer: Name or folder of the tokenizer; None means the `tokenizer` of the LightningModule.
        max_length: Largest number of tokens of a text.
        batch_size: Texts in a training batch.
        loading: How examples are read and put into batches.

    Example:
        >>> from flwr_datasets.partitioner import DirichletPartitioner
        >>> partitioner = DirichletPartitioner(num_partitions=10, partition_by="label", alpha=0.5)
        >>> data = TextClassificationData("20newsgroups", partitioner=partitioner, max_length=128)
    """

    label_names: list[str]

    def __init__(
        self,
        dataset: str,
        columns: TextColumns = TextColumns(),  # noqa: B008 - frozen
        partitioner: Partitioner | None = None,
        splits: SplitConfig = SplitConfig(),  # noqa: B008 - frozen
        tokenizer: str | None = None,
        max_length: int = 256,
        batch_size: int = 8,
        loading: LoadingConfig = LoadingConfig(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(dataset, partitioner, splits, tokenizer, max_length, batch_size, loading)
        if loading.generation:
            raise FederatedConfigError(
                "Expected `loading.generation` to be false for classification but got true: there are no prompts."
            )
        self.columns = columns

    @property
    def num_labels(self) -> int:
        """Number of classes; there after `setup`."""
        return len(self.label_names)

    def _load(self) -> Rows:
        splits = self._load_splits()
        check_columns(splits, [self.columns.text, self.columns.label], self.dataset)
        check_texts(splits, [self.columns.text], self.dataset)
        splits, labels, self.label_names = read_labels(splits, self.columns.label)
        groups = [self.label_names[i] for i in labels[: len(splits["train"])]]
        return Rows(splits, groups, self.label_names, labels)

    def _encoder(self, tokenizer: PreTrainedTokenizerBase) -> tuple[list[str], Encode, list[str]]:
        return [self.columns.text], TextEncoder(tokenizer, self.columns.text, self.max_length), []

    def _collate(self, pad_token_id: int, evaluation: bool, predicts: bool = False) -> Collate:
        return TextCollator(pad_token_id, self.loading.pad_to_multiple_of)

    def _check_model(self) -> None:
        super()._check_model()
        model_labels = getattr(getattr(getattr(self._module, "model", None), "config", None), "num_labels", None)
        if model_labels is not None and model_labels < self.num_labels:
            raise FederatedConfigError(
                f"Expected a model of at least {self.num_labels} labels for '{self.dataset}' but it has "
                f"{model_labels}: set its `num_labels`."
            )


@dataclass(frozen=True)
class TextEncoder:
    """Turns batches of texts into token ids.

    Args:
        tokenizer: The model's tokenizer.
        column: The column with the text.
        max_length: Largest number of tokens of a text; the rest of it is cut.
    """

    tokenizer: PreTrainedTokenizerBase
    column: str
    max_length: int

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Encode a batch of columns."""
        texts = ["" if text is None else str(text) for text in batch[self.column]]
        encoded = self.tokenizer(texts, truncation=True, max_length=self.max_length)
        ids = encoded["input_ids"]
        if encoded.encodings is None:  # a tokenizer in Python does not say what it cut
            is_cut = [len(row) >= self.max_length for row in ids]
        else:
            is_cut = [bool(row.overflowing) for row in encoded.encodings]
        return {"input_ids": ids, "prompt_length": [0] * len(ids), "is_cut": is_cut}
