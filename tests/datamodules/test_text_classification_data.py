"""`TextClassificationData` from file to batch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from flwr_datasets.partitioner import (
    IidPartitioner,
    NaturalIdPartitioner,
)
from transformers import PreTrainedTokenizerFast

from pl_fed.datamodules import SplitConfig, TextColumns, sources
from pl_fed.datamodules import tokens as tokens_module
from pl_fed.datamodules.text_classification import read_labels
from pl_fed.errors import FederatedConfigError
from pl_fed.loaders import ClientLoader, RoundLoader

Write = Callable[[str, list[dict[str, Any]]], Path]
Row = Callable[[int], dict[str, Any]]
LABELS = ["no", "yes"]


def numbers(tokenizer: PreTrainedTokenizerFast, loader: Any) -> list[int]:
    """Return which texts a loader gave, by their first word."""
    firsts = [row[0] for batch in loader for row in batch["input_ids"].tolist()]
    return [int(tokenizer.convert_ids_to_tokens(token)[1:]) for token in firsts]


def test_round_has_every_training_text_once(make_text: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    """60 texts over 3 clients are 20 each, of which 2 are for validation, 2 for test and 16 are trained on."""
    data = make_text()
    data.setup()
    assert (data.num_clients, data.client_names) == (3, ["client 0", "client 1", "client 2"])
    assert (data.num_labels, data.label_names) == (2, LABELS)
    loader = data.train_dataloader()
    assert isinstance(loader, RoundLoader)
    seen = numbers(tokenizer, loader)
    assert len(seen) == len(set(seen)) == 48
    assert set(seen) == {i for shard in data.partition.train for i in shard}


def test_batches(make_text: Any, tokenizer: PreTrainedTokenizerFast, text_row: Row) -> None:
    data = make_text()
    data.setup()
    for batch in data.train_dataloader():
        ids, mask = batch["input_ids"], batch["attention_mask"]
        assert ids.shape == mask.shape and ids.shape[1] == mask.sum(1).max()
        for row, real, label, client_id in zip(ids, mask, batch["labels"], batch["client_id"], strict=True):
            i = int(tokenizer.convert_ids_to_tokens(int(row[0]))[1:])
            assert tokenizer.decode(row[real.bool()]) == text_row(i)["text"]
            assert LABELS[label] == text_row(i)["label"]
            assert i in data.partition.train[client_id]


def test_evaluation_loaders(make_text: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    data = make_text({"personalised": True, "eval_batch_size": 3})
    data.setup()
    held_out = {name: {i for shard in getattr(data.partition, name) for i in shard} for name in ("validation", "test")}
    assert set(numbers(tokenizer, data.val_dataloader())) == held_out["validation"]
    own, clients, personalised = data.test_dataloader()
    assert set(numbers(tokenizer, own)) == set(range(70, 80))
    assert {int(i) for batch in own for i in batch["client_id"]} == {-1}
    for loader, flag in ((clients, False), (personalised, True)):
        assert isinstance(loader, ClientLoader) and loader.personalised is flag
        assert set(numbers(tokenizer, loader)) == held_out["test"]
        assert all(len(set(batch["client_id"].tolist())) == 1 for batch in loader)
    assert numbers(tokenizer, data.predict_dataloader()) == list(range(70, 80))


def test_loaders_leave_the_global_generator_alone(make_text: Any) -> None:
    data = make_text({"personalised": True}, splits=SplitConfig(public_examples=6))
    data.setup()
    before = torch.get_rng_state()
    for loader in (data.train_dataloader(), data.val_dataloader(), *data.test_dataloader(), data.public_dataloader()):
        list(loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_own_validation_split(
    make_text: Any, tokenizer: PreTrainedTokenizerFast, write_rows: Write, text_row: Row
) -> None:
    data = make_text(splits=SplitConfig(validation_fraction=0.0, test_fraction=0.0))
    data.setup()
    assert set(numbers(tokenizer, data.val_dataloader())) == set(range(60, 70))
    assert [set(numbers(tokenizer, loader)) for loader in data.test_dataloader()] == [set(range(70, 80))]
    alone = make_text(splits=SplitConfig(validation_fraction=0.0, test_fraction=0.0))
    alone.dataset = str(write_rows("alone.jsonl", [text_row(i) for i in range(60)]))
    alone.setup()
    assert alone.val_dataloader() == alone.test_dataloader() == []
    with pytest.raises(FederatedConfigError, match="Expected clients with test examples but none has any"):
        alone.predict_dataloader()


def test_public_split(make_text: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    """A fifth of 60 texts is 12, 6 of each label, and on no client."""
    data = make_text(splits=SplitConfig(public_fraction=0.2))
    data.setup()
    public = numbers(tokenizer, data.public_dataloader())
    assert sorted(public) == sorted(data.partition.public)
    assert sum(i % 2 for i in public) == 6
    assert not set(public) & {i for shard in data.partition.shards for i in shard}
    assert sum(map(len, data.partition.shards)) == 48
    assert [len(batch["labels"]) for batch in data.public_dataloader(5)] == [5, 5, 2]
    assert public == numbers(tokenizer, data.public_dataloader())  # the same order in every run
    assert public != sorted(public)
    without = make_text()
    without.setup()
    assert without.public_dataloader() is None


def test_limits(make_text: Any) -> None:
    data = make_text(splits=SplitConfig(limit_train=30, limit_test=4))
    data.setup()
    assert sum(map(len, data.partition.shards)) == 30
    assert [len(loader.dataset) for loader in data.test_dataloader()[:1]] == [4]
    data = make_text(splits=SplitConfig(limit_train=1000))
    data.setup()
    assert sum(map(len, data.partition.shards)) == 60


def test_limits_keep_classes_and_labels(make_text: Any, tokenizer: PreTrainedTokenizerFast, text_row: Row) -> None:
    """With two users of three left, all three are classes; with any limit, a text keeps its label."""
    data = make_text(
        splits=SplitConfig(limit_train=2, validation_fraction=0.0),
        partitioner=IidPartitioner(1),
        columns=TextColumns(label="user"),
    )
    data.setup()
    assert data.label_names == ["user 0", "user 1", "user 2"]
    for batch in [*data.train_dataloader(), *data.predict_dataloader()]:
        for row, label in zip(batch["input_ids"], batch["labels"], strict=True):
            i = int(tokenizer.convert_ids_to_tokens(int(row[0]))[1:])
            assert data.label_names[label] == text_row(i)["user"]


def test_length_grouped(make_text: Any) -> None:
    """Texts have 1 to 5 words; grouped, the batches of a client hold mostly one length, so little is padded."""
    padding = []
    for flag in (True, False):
        data = make_text({"length_grouped": flag})
        data.setup()
        masks = [batch["attention_mask"] for batch in data.train_dataloader()]
        padding.append(sum((1 - mask).sum().item() for mask in masks))
    assert padding[0] < 0.5 * padding[1]


def test_cut(make_text: Any) -> None:
    """Of every 5 texts, those of 4 and 5 words are cut to 3."""
    data = make_text(max_length=3)
    data.setup()
    assert data.token_stats.num_cut == 32
    assert data.token_stats.longest == 3


def test_tokenised_once(make_text: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_text()
    data.setup()
    monkeypatch.setattr(datasets.Dataset, "map", lambda *_, **__: pytest.fail("tokenised again"))
    again = make_text(partitioner=NaturalIdPartitioner("user"))  # another partition of the same tokens
    again.setup("fit")
    again.setup("test")
    assert again.client_names == ["user 0", "user 1", "user 2"]


def test_setup_and_loaders_are_cheap_the_second_time(make_text: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_text()
    data.prepare_data()
    data.setup("fit")
    examples = data._examples
    monkeypatch.setattr(sources, "load_file", lambda *_: pytest.fail("loaded again"))
    monkeypatch.setattr(tokens_module, "content_hash", lambda *_: pytest.fail("hashed again"))
    data.setup("validate")
    assert data.train_dataloader().dataset is data.train_dataloader().dataset is examples


def test_other_seed_other_partition(make_text: Any) -> None:
    partitions = []
    for seed in (0, 0, 1):
        data = make_text(splits=SplitConfig(seed=seed))
        data.setup()
        partitions.append(data.partition)
    assert partitions[0] == partitions[1] != partitions[2]


def test_labels() -> None:
    """Named classes keep their numbers, and -1 is no class there; other integers are classes by value."""
    named = datasets.ClassLabel(names=["x", "y", "z"])
    train = datasets.Dataset.from_dict({"label": [2, -1, 0]}, features=datasets.Features({"label": named}))
    test = datasets.Dataset.from_dict({"label": [-1, -1]}, features=datasets.Features({"label": named}))
    splits, labels, names = read_labels({"train": train, "test": test}, "label")
    assert ({name: rows["label"][:] for name, rows in splits.items()}, labels.tolist()) == ({"train": [2, 0]}, [2, 0])
    assert names == ["x", "y", "z"]
    plain = {"train": datasets.Dataset.from_dict({"label": [10, -1, None]})}
    splits, labels, names = read_labels(plain, "label")
    assert (splits["train"]["label"][:], labels.tolist(), names) == ([10, -1], [1, 0], ["-1", "10"])
    with pytest.raises(FederatedConfigError, match="integers or strings as classes in column 'label' but got 0.5"):
        read_labels({"train": datasets.Dataset.from_dict({"label": [0.5]})}, "label")
    with pytest.raises(FederatedConfigError, match="training rows with a class in column 'label' but none has one"):
        read_labels({"train": train.select([1])}, "label")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"columns": TextColumns(text="body")},
            "column 'body' in the train split of '.*' but it has text, label, user",
        ),
        ({"columns": TextColumns(label="class")}, "column 'class' in the train split"),
        ({"partitioner": IidPartitioner(61)}, "as many clients as the 60 examples that are left to them but got 61"),
        (
            {"partitioner": NaturalIdPartitioner("town")},
            "`partitioner.partition_by` to be one of text, label, user but got",
        ),
        ({"splits": SplitConfig(public_examples=60)}, "smaller than the 60 training examples but got 60"),
        ({"dataset": "nowhere/nothing"}, "but got 'nowhere/nothing'"),
        ({"tokenizer": None}, "Expected `tokenizer` or a LightningModule"),
    ],
)
def test_impossible_setups(changes: dict[str, Any], message: str, make_text: Any) -> None:
    data = make_text(**{name: value for name, value in changes.items() if name != "dataset"})
    data.dataset = changes.get("dataset", data.dataset)
    with pytest.raises(FederatedConfigError, match=message):
        data.setup()


def test_shards_too_small_to_validate_on(make_text: Any) -> None:
    data = make_text(partitioner=IidPartitioner(12))
    data.setup()
    with pytest.raises(FederatedConfigError, match=r"which is 0.1 of shards of at most 5 examples"):
        data.val_dataloader()
    with pytest.raises(FederatedConfigError, match="clients with test examples but none has any"):
        data.test_dataloader()


def test_bad_arguments(make_text: Any) -> None:
    with pytest.raises(FederatedConfigError, match="`max_length` to be at least 1 but got 0"):
        make_text(max_length=0)
    with pytest.raises(FederatedConfigError, match="`batch_size` to be at least 1 but got 0"):
        make_text(batch_size=0)
    with pytest.raises(
        FederatedConfigError, match="`splits.test_fraction` above 0 for `loading.personalised` but got 0"
    ):
        make_text({"personalised": True}, splits=SplitConfig(test_fraction=0.0))
    with pytest.raises(FederatedConfigError, match="`loading.generation` to be false for classification"):
        make_text({"generation": True})
