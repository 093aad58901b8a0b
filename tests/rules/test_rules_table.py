"""The table of properties, as the command line prints it."""

import importlib
import inspect
import pkgutil
import re

import pytest

import pl_fed.rules
from pl_fed.cli import main
from pl_fed.rules import AFLoRA, FedIT, Median, Rule
from pl_fed.rules.table import COLUMNS, properties, shipped_rules


def test_every_rule_of_the_package_is_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Rules are found in the source files, not in the list that the table uses."""
    files = [
        importlib.import_module(f"pl_fed.rules.{info.name}") for info in pkgutil.iter_modules(pl_fed.rules.__path__)
    ]
    found = {
        name
        for file in files
        for name, value in vars(file).items()
        if inspect.isclass(value) and issubclass(value, Rule) and value is not Rule
    }
    main(["rules"])
    printed = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines() if "|" in line]
    assert rows[0] == list(COLUMNS)
    assert {row[0] for row in rows[2:]} == found and len(rows) == len(found) + 2
    assert all(cell for row in rows[2:] for cell in row), "no empty cell"


def test_sources_are_those_of_the_files() -> None:
    """The arXiv id in the table stands in the header of the rule's file."""
    for rule in shipped_rules():
        number = re.search(r"\d{4}\.\d{5}", rule.source)
        header = inspect.getmodule(type(rule)).__doc__ or ""  # type: ignore[union-attr]
        assert number is None or f"arXiv {number.group()}" in " ".join(header.split()), type(rule).__name__
        assert number is not None or rule.source == "control"


def test_a_row_speaks_of_the_arguments() -> None:
    """A robust mean needs every update; a rotated basis takes only the plain server optimizer and no SCAFFOLD."""
    assert properties(FedIT())["sums only"] == "yes" and properties(FedIT(Median()))["sums only"] == "no"
    plain, rotated = properties(AFLoRA(train_diagonal=False)), properties(AFLoRA(refactor=True))
    assert (plain["server optimizer"], plain["SCAFFOLD"]) == ("any", "yes")
    assert (rotated["server optimizer"], rotated["SCAFFOLD"]) == ("plain", "no")
    assert properties(AFLoRA(aggregation="literal"))["exact"] == "no"
