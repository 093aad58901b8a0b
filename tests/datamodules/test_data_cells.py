"""What cells may be, from a CSV file or elsewhere, up to the clients."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from flwr_datasets.partitioner import ContinuousPartitioner, InnerDirichletPartitioner, NaturalIdPartitioner
from transformers import PreTrainedTokenizerFast

from pl_fed.datamodules import InstructionColumns, InstructionData, LoadingConfig, SplitConfig
from pl_fed.datamodules.cells import check_texts, lossless_numbers, numbers
from pl_fed.datamodules.files import load_file
from pl_fed.datamodules.partition import assign
from pl_fed.errors import FederatedConfigError

# `datasets` leaves the files that it reads for the garbage collector to close.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
Write = Callable[[str, list[dict[str, Any]]], Path]


def test_numbers() -> None:
    assert numbers(["+1", "-1", "0"]) == {"+1": 1, "-1": -1, "0": 0}
    assert numbers(["123456789012345678"]) == {"123456789012345678": 123456789012345678}
    for codes in (["007"], ["1", "x"], ["1", ""], ["1e5"], [" 1"], ["1", "+1"], ["1", "1.0"], [1, "1"], ["1" * 19], []):
        assert numbers(codes) == {}, codes
    assert lossless_numbers(["-5", "10", "5"]) == [-5, 10, 5]
    assert lossless_numbers(["1.5", "0.25"]) == [1.5, 0.25]
    for texts in (["+1"], ["1.50"], ["1.5", "2"], ["01"]):
        assert lossless_numbers(texts) == texts


def test_instructions_train_on_the_text_in_the_file(
    write_rows: Write, make_tokenizer: Callable[..., PreTrainedTokenizerFast], tmp_path: Path
) -> None:
    """Tokens, clients and their order from CSV and JSON lines are the same."""
    answers = ["4", "3.5", "007", "1.50", "1e5", "None"]
    words = [*answers, "4.0", "7.0", "1.5", "100000.0", "Instruction:", "Response:", "###", "a"]
    make_tokenizer(words).save_pretrained(tmp_path / "tokenizer")
    rows = [{"instruction": "a", "response": answer, "site": ["01", "1"][i % 2]} for i, answer in enumerate(answers)]
    seen = []
    for end in ("csv", "jsonl"):
        data = InstructionData(
            str(write_rows(f"data.{end}", rows)),
            InstructionColumns(topic="site"),
            NaturalIdPartitioner("site"),
            SplitConfig(0.0, 0.0),
            str(tmp_path / "tokenizer"),
            loading=LoadingConfig(cache_dir=str(tmp_path / "cache")),
        )
        data.setup()
        seen.append(([data._examples[i]["input_ids"].tolist() for i in range(6)], data.client_names, data.partition))
    assert seen[0] == seen[1]
    assert seen[0][1] == ["01", "1"]
    tokenizer = make_tokenizer(words)
    assert [tokenizer.decode(ids).split()[-2] for ids in seen[0][0]] == answers


@pytest.mark.parametrize(
    ("ids", "names"), [([10, 9, 10, 1], ["1", "9", "10"]), (["01", "1", "01", "2"], ["01", "1", "2"])]
)
def test_natural_ids_as_in_json_lines(ids: list[Any], names: list[str], write_rows: Write, tmp_path: Path) -> None:
    rows = [{"text": "a", "site": site} for site in ids]
    found = [
        assign(NaturalIdPartitioner("site"), load_file(write_rows(f"data.{end}", rows), tmp_path / "cache"), range(4))
        for end in ("csv", "jsonl")
    ]
    assert found[0] == found[1]
    assert found[0][1] == names


def test_partitioners_that_want_numbers(write_rows: Write, tmp_path: Path) -> None:
    """Classes 0, 1, ... and values of any notation reach the partitioner as those of JSON lines."""
    values = [0.5, 2, 1e-3, 40, 3.25, 10]
    rows = [{"label": i % 3, "age": value} for i, value in enumerate(values)]
    tables = [load_file(write_rows(f"data.{end}", rows), tmp_path / "cache") for end in ("csv", "jsonl")]
    for partitioner in (InnerDirichletPartitioner([3, 3], "label", 100.0), ContinuousPartitioner(3, "age", 1.0)):
        assert assign(partitioner, tables[0], range(6)) == assign(partitioner, tables[1], range(6))


@pytest.mark.parametrize("value", [["a", "b"], {"a": "b"}, b"x 1", [b"x"]])
def test_columns_that_are_no_text(value: Any) -> None:
    rows = datasets.Dataset.from_dict({"text": [None, value], "label": [0, 1]})
    with pytest.raises(
        FederatedConfigError, match=rf"text in column 'text' in the train .*\({type(value).__name__}\): "
    ):
        check_texts({"train": rows}, ["label", "text"], "name")


def test_one_row_that_is_no_text(tmp_path: Path) -> None:
    """JSON lines may mix kinds in a column; what can be written out is text."""
    path = tmp_path / "mixed.jsonl"
    cells = ["a", 3, None, 0.5, True]
    path.write_text("".join(json.dumps({"text": cell}) + "\n" for cell in cells))
    check_texts({"train": load_file(path, tmp_path / "cache")}, ["text"], "name")
    path.write_text("".join(json.dumps({"text": cell}) + "\n" for cell in [*cells, ["b" * 100]]))
    with pytest.raises(
        FederatedConfigError, match=r"split of 'name' but got \['b{55}\.\.\. \(list\): write it as text"
    ):
        check_texts({"train": load_file(path, tmp_path / "cache")}, ["text"], "name")


@pytest.mark.parametrize("value", [[1], {"a": 1}, b"a"])
def test_natural_ids_that_are_none(value: Any) -> None:
    rows = datasets.Dataset.from_dict({"site": [value, value]})
    with pytest.raises(FederatedConfigError, match=r"partition_by`='site' but got .* \((list|dict|bytes)\)"):
        assign(NaturalIdPartitioner("site"), rows, range(2))


def test_natural_ids_of_several_kinds(tmp_path: Path) -> None:
    path = tmp_path / "mixed.jsonl"
    path.write_text("".join(json.dumps({"site": cell}) + "\n" for cell in (1, "a", 2)))
    with pytest.raises(FederatedConfigError, match=r"of one kind in .*'site' but got 2 \(int\) and 'a' \(str\): write"):
        assign(NaturalIdPartitioner("site"), load_file(path, tmp_path / "cache"), range(3))
    rows = datasets.Dataset.from_dict({"site": [1, 0.5, 1]})
    assert assign(NaturalIdPartitioner("site"), rows, range(3)) == ([[1], [0, 2]], ["0.5", "1.0"])


def test_a_column_with_the_name_of_the_index() -> None:
    rows = datasets.Dataset.from_dict({"__index__": ["b", "a", "b"]})
    assert assign(NaturalIdPartitioner("__index__"), rows, range(3)) == ([[1], [0, 2]], ["a", "b"])
