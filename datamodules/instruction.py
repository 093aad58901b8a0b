"""Instructions with a response each, split over clients."""

from flwr_datasets.partitioner import Partitioner
from transformers import PreTrainedTokenizerBase

from pl_fed.datamodules.batches import Collate, InstructionCollator
from pl_fed.datamodules.cells import check_texts
from pl_fed.datamodules.config import InstructionColumns, LoadingConfig, SplitConfig
from pl_fed.datamodules.prompts import PromptEncoder
from pl_fed.datamodules.sources import Rows, check_columns
from pl_fed.datamodules.text import FederatedText
from pl_fed.datamodules.tokens import Encode


class InstructionData(FederatedText):
    """Federated instruction tuning of a causal language model.

    Batches have `input_ids`, `attention_mask` and `labels` (batch, length), and `client_id` (batch,). Labels are -100
    on the prompt and the padding, so the loss is on the response. With `loading.generation`, evaluation batches also
    have `prompt_input_ids` and `prompt_attention_mask`, padded on the left.

    Args:
        dataset: Hub id, name of a packaged set, or path of a .jsonl, .json, .csv, .tsv or .parquet file or of a folder
            with the files train, validation and test.
        columns: Which columns make an example, and the template that joins them.
        partitioner: Any partitioner of flwr-datasets; None means ten clients with random shares of equal size.
        splits: Sizes of the splits, and the seed.
        tokenizer: Name or folder of the tokenizer; None means the `tokenizer` of the LightningModule.
        max_length: Largest number of tokens of prompt and response together.
        batch_size: Examples in a training batch.
        loading: How examples are read and put into batches.

    Example:
        >>> from flwr_datasets.partitioner import NaturalIdPartitioner
        >>> columns = InstructionColumns(topic="topic")
        >>> data = InstructionData("chatterbot-corpus", columns, NaturalIdPartitioner(partition_by="topic"))
    """

    def __init__(
        self,
        dataset: str,
        columns: InstructionColumns = InstructionColumns(),  # noqa: B008 - frozen
        partitioner: Partitioner | None = None,
        splits: SplitConfig = SplitConfig(),  # noqa: B008 - frozen
        tokenizer: str | None = None,
        max_length: int = 512,
        batch_size: int = 4,
        loading: LoadingConfig = LoadingConfig(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(dataset, partitioner, splits, tokenizer, max_length, batch_size, loading)
        self.columns = columns

    def _load(self) -> Rows:
        splits, topic = self._load_splits(), self.columns.topic
        check_columns(splits, self._text_columns(), self.dataset)
        check_texts(splits, self._text_columns(), self.dataset)
        if topic is None:
            return Rows(splits, ["examples"] * len(splits["train"]), [])
        check_columns({"train": splits["train"]}, [topic], self.dataset)
        return Rows(splits, [str(value) for value in splits["train"][topic][:]], [])

    def _text_columns(self) -> list[str]:
        names = self.columns
        return [names.instruction, names.response, *([names.input] if names.input else [])]

    def _encoder(self, tokenizer: PreTrainedTokenizerBase) -> tuple[list[str], Encode, list[str]]:
        encoder = PromptEncoder(tokenizer, self.columns, self.max_length)
        return self._text_columns(), encoder, [str(self.columns.template), str(self.columns.system)]

    def _collate(self, pad_token_id: int, evaluation: bool, predicts: bool = False) -> Collate:
        return InstructionCollator(
            pad_token_id, self.loading.pad_to_multiple_of, predicts or (evaluation and self.loading.generation)
        )
