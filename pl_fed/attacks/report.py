"""The audit's report: what was recovered of each client beside the truth, what guessing gives, and what stops it."""

import math
from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from pl_fed.attacks.accuracy import exact_match, label_accuracy
from pl_fed.attacks.solve import Recovery

SHOWN_CLASSES = 12  # classes of one client that are written out
DEFENCES = """\
What stops it: binding the masks of secure aggregation to the hash of the received model (a client with another model
makes every coordinate of the sum wrong); client-level differential privacy, effective from a noise multiplier of about
0.3 to 1; normalisation layers that stay on the client block this variant. Clipping, quantisation and sending everybody
the same model stop nothing."""


@dataclass(frozen=True)
class ClientRow:
    """One client of the report.

    A client that was not separated counts with what guessing gives.

    Args:
        client: Number of the client in the audited round.
        true: True label counts.
        recovered: Recovered label counts; None if the client was not separated.
        exact: Whether all counts are right.
        accuracy: Label accuracy.
        guess: Label accuracy of guessing the prior mix.
        margin: Largest difference between raw and rounded counts.
    """

    client: int
    true: tuple[int, ...]
    recovered: tuple[int, ...] | None
    exact: bool
    accuracy: float
    guess: float
    margin: float


@dataclass(frozen=True)
class AuditReport:
    """What a malicious server could have learned of a round.

    Args:
        rows: The clients.
        rank: Rank of the linear system.
        num_models: Number of different models.
        condition: Its condition number.
        margin: Largest rounding margin of the clients that were found.
        under_determined: Whether the sum determines fewer clients than were targeted.
        baselines: Mean label accuracy of each estimate that needs no crafted model.
        notes: What the figures rest on.
        setting: A sentence on what was simulated.
    """

    rows: tuple[ClientRow, ...]
    rank: int
    num_models: int
    condition: float
    margin: float
    under_determined: bool
    baselines: dict[str, float]
    notes: tuple[str, ...] = ()
    setting: str = ""

    @property
    def label_accuracy(self) -> float:
        """Mean label accuracy over clients."""
        return sum(row.accuracy for row in self.rows) / len(self.rows)

    @property
    def exact_match(self) -> float:
        """Share of the clients whose counts are all right."""
        return sum(row.exact for row in self.rows) / len(self.rows)

    @property
    def guess(self) -> float:
        """Mean label accuracy of guessing."""
        return sum(row.guess for row in self.rows) / len(self.rows)

    def metrics(self) -> dict[str, float]:
        """Return the figures for a logger; an infinite one is left out."""
        figures = {
            "label_accuracy": self.label_accuracy,
            "exact_match": self.exact_match,
            "guess": self.guess,
            "rank": float(self.rank),
            "condition": self.condition,
            "rounding_margin": self.margin,
            "under_determined": float(self.under_determined),
            **{f"baseline_{name}": value for name, value in self.baselines.items()},
        }
        return {f"audit/{name}": value for name, value in figures.items() if math.isfinite(value)}

    def markdown(self) -> str:
        """Return the report as Markdown."""
        lines = ["# Label inference audit", "", "Run by the owner of the data on their own data. " + self.setting, ""]
        lines += ["| | label accuracy | exact matches |", "|---|---|---|"]
        lines += [f"| **the attack** | **{self.label_accuracy:.3f}** | **{self.exact_match:.3f}** |"]
        lines += [f"| guess | {self.guess:.3f} | |"]
        lines += [f"| {name} | {value:.3f} | |" for name, value in self.baselines.items()]
        state = ", **under-determined**" if self.under_determined else ""
        lines += [
            "",
            f"Rank {self.rank} for {self.num_models} models{state}; condition number {self.condition:.3g}; largest "
            f"rounding margin {self.margin:.3g} (0.5 and more: the counts are not to be trusted).",
            "",
        ]
        lines += [f"- {note}" for note in self.notes] + [""] * bool(self.notes)
        lines += ["| client | true counts | recovered | exact | label accuracy | guess | margin |"]
        lines += ["|---|---|---|---|---|---|---|"]
        lines += [_line(row) for row in self.rows]
        return "\n".join([*lines, "", DEFENCES, ""])


def make_report(
    recovery: Recovery,
    true: Int[Tensor, "clients classes"],
    guessed: Int[Tensor, "clients classes"],
    baselines: dict[str, Int[Tensor, "clients classes"]] | None = None,
    setting: str = "",
) -> AuditReport:
    """Compare what was recovered with the truth, which only the owner of the data has.

    Args:
        recovery: What the attack found.
        true: True label counts.
        guessed: Label counts of the guess baseline.
        baselines: Label counts of other estimates, by name.
        setting: A sentence on what was simulated.
    """
    accuracy, exact = label_accuracy(recovery.counts, true), exact_match(recovery.counts, true) & recovery.found
    guess, margin = label_accuracy(guessed, true), (recovery.raw - recovery.counts).abs().amax(1)
    rows = tuple(
        ClientRow(
            k,
            tuple(true[k].tolist()),
            tuple(recovery.counts[k].tolist()) if bool(recovery.found[k]) else None,
            bool(exact[k]),
            float(accuracy[k]) if bool(recovery.found[k]) else float(guess[k]),
            float(guess[k]),
            float(margin[k]),
        )
        for k in range(len(true))
    )
    others = {name: float(label_accuracy(counts, true).mean()) for name, counts in (baselines or {}).items()}
    figures = (recovery.rank, recovery.num_models, recovery.condition, recovery.margin, recovery.under_determined)
    return AuditReport(rows, *figures, others, recovery.notes, setting)


def counts_text(counts: tuple[int, ...]) -> str:
    """Write label counts: all if they are few, else ``class:count`` of those that occur.

    Example:
        >>> counts_text((3, 0, 1)), counts_text((0,) * 50 + (2,))
        ('3 0 1', '50:2')
    """
    if len(counts) <= SHOWN_CLASSES:
        return " ".join(str(n) for n in counts)
    there = [f"{c}:{n}" for c, n in enumerate(counts) if n]
    return " ".join(there[:SHOWN_CLASSES]) + (" ..." if len(there) > SHOWN_CLASSES else "")


def _line(row: ClientRow) -> str:
    recovered = "not separated" if row.recovered is None else counts_text(row.recovered)
    cells = [str(row.client), counts_text(row.true), recovered, "yes" if row.exact else "no"]
    cells += [f"{row.accuracy:.3f}", f"{row.guess:.3f}", f"{row.margin:.3g}"]
    return f"| {' | '.join(cells)} |"


def mix_of(true: Int[Tensor, "clients classes"]) -> Tensor:
    """Return the label mix of all clients together."""
    return true.sum(0).double() / true.sum().clamp(min=1)
