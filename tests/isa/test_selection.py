"""Which rows are chosen, and which tables are none of scores."""

from pathlib import Path
from typing import Any

import pytest

from pl_fed.errors import FederatedConfigError
from pl_fed.isa.selection import Criteria, select
from pl_fed.isa.tables import read_rows
from tests.helpers.isa import row


def test_selection_by_hand() -> None:
    rows = [row("a", 0.5, 0.9), row("b", 0.9, 0.95), row("c", 0.4, 0.5), row("d", 0.6, 0.5), row("e", None, None)]
    rows += [row("f", 0.5, 0.4)]
    assert [r["file_name"] for r in select(rows, Criteria(0.5, (0.4, 0.6)))] == ["a", "c", "d"]
    assert [r["file_name"] for r in select(rows, Criteria(0.5, (0.4, 0.6), top=2))] == ["a", "c"]
    assert select(rows, Criteria(1.0)) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_ss": 3.0}, "`min_ss` from 0 to 1 but got 3.0"),
        ({"es": (0.6, 0.4)}, "`es` to be a lowest and a highest score from 0 to 1 but got"),
        ({"top": 0}, "`top` of at least 1 but got 0"),
    ],
)
def test_criteria_that_cannot_be_met(options: dict[str, Any], message: str) -> None:
    with pytest.raises(FederatedConfigError, match=message):
        Criteria(**options)


def test_rows_that_are_no_scores() -> None:
    with pytest.raises(FederatedConfigError, match="but got none called semantic_score"):
        select([{"file_name": "a", "entity_score": 1}], Criteria())
    with pytest.raises(FederatedConfigError, match="scores from 0 to 1 but 'a' has .3, 4."):
        select([{"file_name": "a", "entity_score": 3, "semantic_score": 4}], Criteria())
    for value in (float("nan"), 10**400):
        with pytest.raises(FederatedConfigError, match="scores from 0 to 1 but 'a' has"):
            select([{"file_name": "a", "entity_score": 0, "semantic_score": value}], Criteria())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", 'file_name,entity_score,semantic_score,clues\na.png,0.5,0.5,"[""x""]"\n'),
        ("t.csv", "file_name,entity_score,semantic_score,clues\na.png,0.5,0.5,3\n"),
        ("t.csv", 'file_name,entity_score,semantic_score,clues\na.png,0.5,0.5,"[{""section"": 1}]"\n'),
        ("t.jsonl", '{"file_name": "a.png", "entity_score": 0.5, "semantic_score": 0.5, "description": 7}\n'),
    ],
)
def test_rows_that_cannot_be_drawn(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(FederatedConfigError, match="a text in `description` and sections in `clues` but 'a.png' has"):
        select(read_rows(tmp_path / name), Criteria())
