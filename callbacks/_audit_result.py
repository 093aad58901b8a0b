"""What an audit under defences found, and its twins for machines and editors: JSON, CSV and Markdown."""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, field, fields
from pathlib import Path
from typing import Any

from pl_fed.attacks.defences import DefenceRow
from pl_fed.attacks.defended_attacks import TRUE_MIX
from pl_fed.attacks.report import AuditReport, ClientRow
from pl_fed.errors import FederatedConfigError

ABSENT = "—"
NOT_MEASURED = "not measured"
SAME_COST = {"tripwire, evaded": "tripwire"}  # one defence against two attackers
HOW_TO_MEASURE = "python cli.py audit --config configs/audit_defences.yaml"


@dataclass(frozen=True)
class Accuracy:
    """What a model reaches when it is trained under a defence.

    Args:
        mean: Mean of its test figure over seeds.
        spread: Standard deviation over seeds; None for one seed.
        num_seeds: Number of seeds.
        remark: What else to know, such as that it is of another model.
    """

    mean: float
    spread: float | None
    num_seeds: int
    remark: str = ""

    def __str__(self) -> str:
        """Write mean, spread, seeds and the remark."""
        spread = "" if self.spread is None else f" ± {self.spread:.3f}"
        seeds = f"{self.num_seeds} seed{'s' if self.num_seeds > 1 else ''}"
        return f"{self.mean:.3f}{spread} ({seeds}{self.remark and ', '}{self.remark})"


@dataclass(frozen=True)
class AuditResult:
    """Everything that the page shows.

    Args:
        rows: What each attack finds under each defence.
        setting: A sentence on what was simulated for them.
        report: The plain audit, client by client.
        accuracy: What each defence costs, by its name.
        figure: Name of the figure in `accuracy`.
    """

    rows: tuple[DefenceRow, ...]
    setting: str
    report: AuditReport
    accuracy: dict[str, Accuracy] = field(default_factory=dict)
    figure: str = "test accuracy"

    @property
    def attacks(self) -> list[str]:
        """Names of the attacks, in order."""
        return list(dict.fromkeys(row.attack for row in self.rows))

    @property
    def defences(self) -> list[str]:
        """Names of the defences, in order."""
        return list(dict.fromkeys(row.defence for row in self.rows))

    def cell(self, attack: str, defence: str) -> DefenceRow | None:
        """Return what an attack finds under a defence."""
        return next((row for row in self.rows if (row.attack, row.defence) == (attack, defence)), None)

    @property
    def costs(self) -> dict[str, Accuracy]:
        """What a model reaches under each defence that was measured; an attacker who evades one changes no cost."""
        like = {name: SAME_COST.get(name, name) for name in self.defences}
        return {name: self.accuracy[other] for name, other in like.items() if other in self.accuracy}

    def cost(self, defence: str) -> str:
        """Return what a model reaches under a defence, in words."""
        return str(self.costs[defence]) if defence in self.costs else NOT_MEASURED

    def leak(self, defence: str) -> DefenceRow | None:
        """Return the row of the attack that finds most under a defence, of those that read what clients send."""
        rows = [row for row in self.rows if row.defence == defence and row.attack != TRUE_MIX]
        return max(rows, key=lambda row: row.label_accuracy, default=None)

    def to_json(self) -> str:
        """Return strict JSON; what is infinite becomes null."""
        return json.dumps(_finite(asdict(self)), indent=1, allow_nan=False, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, path: Path) -> "AuditResult":
        """Read what `to_json` wrote.

        Args:
            text: The JSON.
            path: Where it came from, for the error.

        Raises:
            FederatedConfigError: If it is something else.
        """
        try:
            found = json.loads(text)
            rows = tuple(DefenceRow(**row) for row in found["rows"])
            accuracy = {name: Accuracy(**value) for name, value in found["accuracy"].items()}
            return cls(rows, found["setting"], _report(found["report"]), accuracy, found["figure"])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise FederatedConfigError(
                f"Expected an audit in '{path}' but got something else ({error}): remove it and run the audit again."
            ) from error

    def csv(self) -> str:
        """Return all rows with all their figures."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([f.name for f in fields(DefenceRow)])
        writer.writerows(astuple(row) for row in self.rows)
        return text.getvalue()

    def markdown(self) -> str:
        """Return the table and the notes."""
        legend = "Label accuracy, in brackets the share of clients whose counts are all right. Guessing gives"
        lines = ["# Label inference under defences", "", self.setting, "", f"{legend} {self.rows[0].guess:.3f}."]
        head = ["defence", *self.attacks, "tripwire alarms", self.figure]
        lines += ["", _line(head), _line(["---"] * len(head)), *(_line(row) for row in self.table()), ""]
        lines += [f"- {defence}: {note}" for defence, note in self.notes()]
        if len(self.costs) < len(self.defences):
            lines += ["", f"What is {NOT_MEASURED}: `{HOW_TO_MEASURE}`."]
        return "\n".join([*lines, ""])

    def table(self) -> list[list[str]]:
        """Return one line of cells for each defence."""
        lines = []
        for defence in self.defences:
            cells = [self.cell(attack, defence) for attack in self.attacks]
            alarms = next((cell.alarms for cell in cells if cell is not None and cell.alarms is not None), None)
            shown = [ABSENT if c is None else f"{c.label_accuracy:.3f} ({c.exact_match:.2f})" for c in cells]
            lines.append([defence, *shown, ABSENT if alarms is None else f"{alarms:.0%}", self.cost(defence)])
        return lines

    def notes(self) -> list[tuple[str, str]]:
        """Return what the figures of each defence rest on, by its name."""
        found = dict.fromkeys((row.defence, row.note) for row in self.rows if row.note and row.attack != TRUE_MIX)
        return list(found)


def _report(found: dict[str, Any]) -> AuditReport:
    clients = [
        {**row, "true": tuple(row["true"]), "recovered": None if row["recovered"] is None else tuple(row["recovered"])}
        for row in found["rows"]
    ]
    limits = {name: math.inf if found[name] is None else found[name] for name in ("condition", "margin")}
    rows = tuple(ClientRow(**client) for client in clients)
    return AuditReport(**{**found, **limits, "rows": rows, "notes": tuple(found["notes"])})


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
