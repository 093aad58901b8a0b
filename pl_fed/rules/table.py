"""The properties of the rules, side by side."""

from collections.abc import Sequence

import pl_fed.rules
from pl_fed.rules.base import Rule

COLUMNS = (
    "rule",
    "source",
    "exact",
    "unequal ranks",
    "personalised",
    "sums only",
    "robust mean",
    "server optimizer",
    "SCAFFOLD",
    "up",
    "down",
)

LEGEND = """exact: the new global model is the old one plus the weighted mean of the clients' dense updates
unequal ranks: "yes" as published; "ours": a slot that a client does not hold gets no change from it
personalised: every client has its own model, and there is no global one
sums only: the server needs weighted sums of the updates, no single one (secure aggregation)
up, down: numbers a layer and client; D = d_in + d_out, r_k is the client's rank"""


def shipped_rules() -> list[Rule]:
    """Return every rule that ships, with its defaults."""
    classes = [getattr(pl_fed.rules, name) for name in pl_fed.rules.__all__]
    return [found() for found in classes if issubclass(found, Rule) and found is not Rule]


def properties(rule: Rule) -> dict[str, str]:
    """Return one row of the table, by column."""
    diagonal = "diagonal" in rule.optimizer_sides()
    basis = rule.rotates or rule.reinitialises
    values = (
        type(rule).__name__,
        rule.source,
        _word(rule.exact and not rule.personalised),
        "yes" if rule.heterogeneous else "ours",
        _word(rule.personalised),
        _word(rule.sums_only and rule.mean is None),
        _word(rule.averages),
        "any" if not rule.rotates else "plain",
        "no" if basis else ("without the diagonal" if diagonal else "yes"),
        rule.up,
        rule.down,
    )
    return dict(zip(COLUMNS, values, strict=True))


def _word(value: bool) -> str:
    return "yes" if value else "no"


def markdown(rules: Sequence[Rule]) -> str:
    """Return the table of some rules in Markdown, with aligned columns.

    Example:
        >>> from pl_fed.rules import FFALoRA
        >>> print(markdown([FFALoRA()]).splitlines()[2][:34])
        | FFALoRA | arXiv 2403.12313 | yes
    """
    rows = [dict(zip(COLUMNS, COLUMNS, strict=True)), *(properties(rule) for rule in rules)]
    width = {column: max(len(row[column]) for row in rows) for column in COLUMNS}
    lines = ["| " + " | ".join(row[c].ljust(width[c]) for c in COLUMNS) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width[c] + 2) for c in COLUMNS) + "|")
    return "\n".join(lines)
