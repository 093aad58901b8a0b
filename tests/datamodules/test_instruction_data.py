"""`InstructionData` from file to batch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonargparse
import pytest
from flwr_datasets.partitioner import IidPartitioner, NaturalIdPartitioner
from lightning.pytorch import LightningDataModule
from transformers import PreTrainedTokenizerFast

from pl_fed.datamodules import InstructionColumns, InstructionData, LoadingConfig, SplitConfig
from pl_fed.errors import FederatedConfigError

Write = Callable[[str, list[dict[str, Any]]], Path]
TOPICS = ["art", "sport"]


def example(i: int) -> dict[str, Any]:
    """Instruction i is the word w<i>; its response has 1 + i % 4 words."""
    return {"instruction": f"w{i}", "response": " ".join("abcd"[: 1 + i % 4]), "topic": TOPICS[i % 2]}


@pytest.fixture
def make(write_rows: Write, tmp_path: Path, chat_folder: str) -> Callable[..., InstructionData]:
    file = str(write_rows("data.jsonl", [example(i) for i in range(40)]))

    def build(loading: dict[str, Any] | None = None, **changes: Any) -> InstructionData:
        cached = LoadingConfig(cache_dir=str(tmp_path / "cache"), **(loading or {}))
        options: dict[str, Any] = {"tokenizer": chat_folder, "partitioner": IidPartitioner(2), "loading": cached}
        return InstructionData(file, **options | changes)

    return build


def test_labels_are_the_response(make: Any, chat_tokenizer: PreTrainedTokenizerFast) -> None:
    data = make()
    data.setup()
    seen = []
    for batch in data.train_dataloader():
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            i = int(chat_tokenizer.convert_ids_to_tokens(int(ids[1]))[1:])
            assert chat_tokenizer.decode(labels[labels != -100]) == f"{example(i)['response']} <eos>"
            assert (labels == ids)[labels != -100].all()
            assert (labels == -100).nonzero().flatten().tolist()[:4] == [0, 1, 2, 3]  # <user> w<i> <eos> <bot>
            seen.append(i)
    assert set(seen) == {i for shard in data.partition.train for i in shard}
    assert len(seen) == 32


def test_prompts_for_generation(make: Any, chat_tokenizer: PreTrainedTokenizerFast) -> None:
    """Only evaluation has them, and they begin what the batch has."""
    data = make({"generation": True, "pad_to_multiple_of": 8})
    data.setup()
    assert "prompt_input_ids" not in next(iter(data.train_dataloader()))
    for loader in (data.val_dataloader(), *data.test_dataloader(), data.predict_dataloader()):
        batch = next(iter(loader))
        prompts, masks = batch["prompt_input_ids"], batch["prompt_attention_mask"].bool()
        assert prompts.shape[1] % 8 == batch["input_ids"].shape[1] % 8 == 0
        for prompt, mask, ids in zip(prompts, masks, batch["input_ids"], strict=True):
            assert mask[-1] and prompt[mask].tolist() == ids[: mask.sum()].tolist()
            assert chat_tokenizer.decode(prompt[mask]).endswith("<eos> <bot>")
    assert "prompt_input_ids" not in next(iter(make_ready(make()).val_dataloader()))


def make_ready(data: InstructionData) -> InstructionData:
    data.setup()
    return data


def test_dropped_examples_are_on_no_client(make: Any) -> None:
    """The prompt has 4 tokens and the responses 2 to 5 with <eos>, so 8 tokens cut a quarter of the examples."""
    data = make_ready(make(max_length=8))
    assert (data.token_stats.num_cut, data.token_stats.num_dropped) == (10, 0)
    data = make_ready(make(max_length=5))
    assert (data.token_stats.num_cut, data.token_stats.num_dropped, data.token_stats.longest) == (40, 0, 5)
    with pytest.raises(
        FederatedConfigError, match="all 40 are empty or lost their response to `max_length`=4: raise it"
    ):
        make(max_length=4).setup()


def test_empty_responses(make: Any, write_rows: Write) -> None:
    data = make()
    rows = [example(i) | ({"response": ""} if i % 4 == 0 else {}) for i in range(40)]
    data.dataset = str(write_rows("gaps.jsonl", rows))
    data.setup()
    assert data.token_stats.num_dropped == 10
    assert {i for shard in data.partition.shards for i in shard} == {i for i in range(40) if i % 4}


def test_topics(make: Any) -> None:
    data = make_ready(make(columns=InstructionColumns(topic="topic"), partitioner=NaturalIdPartitioner("topic")))
    assert data.client_names == TOPICS
    rows = data.partition_table()
    assert [(row["name"], row["num art"], row["num sport"]) for row in rows] == [("art", 20, 0), ("sport", 0, 20)]
    plain = make_ready(make())
    assert [row["top_groups"] for row in plain.partition_table()] == ["examples (20)"] * 2


def test_picture(make: Any, tmp_path: Path) -> None:
    make_ready(make(columns=InstructionColumns(topic="topic"))).plot_partition(str(tmp_path / "partition.png"))
    assert (tmp_path / "partition.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "columns",
    [
        InstructionColumns(template="a {instruction} b"),
        InstructionColumns(system="c"),
        InstructionColumns(input="topic"),
    ],
)
def test_every_template_has_tokens_of_its_own(columns: InstructionColumns, make: Any) -> None:
    plain = make_ready(make())
    other = make_ready(make(columns=columns))
    assert other.token_stats.num_tokens != plain.token_stats.num_tokens


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (InstructionColumns(response="answer"), "column 'answer' in the train split"),
        (InstructionColumns(input="context"), "column 'context' in the train split"),
        (InstructionColumns(topic="kind"), "column 'kind' in the train split"),
    ],
)
def test_unknown_columns(columns: InstructionColumns, message: str, make: Any) -> None:
    with pytest.raises(FederatedConfigError, match=message):
        make(columns=columns).setup()


def test_command_line(make: Any) -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    text = """
data:
  class_path: pl_fed.datamodules.InstructionData
  init_args:
    dataset: chatterbot-corpus
    columns: {topic: topic, template: "Q: {instruction} A: "}
    partitioner:
      class_path: flwr_datasets.partitioner.NaturalIdPartitioner
      init_args: {partition_by: topic}
    splits: {validation_fraction: 0.2, public_examples: 3}
    loading: {generation: true}
"""
    config = parser.parse_string(parser.dump(parser.parse_string(text)))
    data = getattr(parser, "instantiate", parser.instantiate_classes)(config).data
    assert isinstance(data, InstructionData)
    assert data.columns == InstructionColumns(topic="topic", template="Q: {instruction} A: ")
    assert data.splits == SplitConfig(validation_fraction=0.2, public_examples=3)
    assert data.loading.generation and isinstance(data.partitioner, NaturalIdPartitioner)
