"""One self-contained page about an audit, for people who decide and did not run it."""

import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from pl_fed.attacks.report import counts_text
from pl_fed.callbacks._audit_figures import MAX_CLIENTS, cost_figure, counts_figure, data_uri, noise_figure
from pl_fed.callbacks._audit_result import ABSENT, HOW_TO_MEASURE, NOT_MEASURED, AuditResult
from pl_fed.callbacks._run_folder import replace_text

LEAK = 0.05  # label accuracy above the guess from which a cell is marked
STYLE = """\
:root { color-scheme: light dark; --ink: #22252a; --quiet: #5f6670; --line: #d5d9df; --paper: #fff; --leak: #fbe3da; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --quiet: #a3abb5; --line: #3a4049; --paper: #16191d; --leak: #5a2a18; }
}
body { color: var(--ink); background: var(--paper); font: 16px/1.5 system-ui, sans-serif; max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-size: .9rem; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .7rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child, td.text { text-align: left; white-space: normal; }
td.leak { background: var(--leak); font-weight: 600; }
img { max-width: 100%; background: #ffffff; border-radius: 6px; padding: .4rem; }
p.quiet, figcaption { color: var(--quiet); font-size: .9rem; }
figure { margin: 1rem 0; }
code { font-size: .9em; overflow-wrap: anywhere; }"""
HTML = """\
<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Label inference audit</title><style>
{style}
</style></head>
<body>
{body}
</body></html>
"""
THREATS = (
    "We assume that the server which coordinates the training is malicious: it may send every participant any model it "
    "likes, but of what they send back it sees only the sum (secure aggregation).",
    "It wants to know how many examples of each class a participant has, for instance how many patients of a clinic "
    "have a diagnosis.",
    "We assume that participants run the training program as it was delivered, with the settings that the server "
    "announces, and that none of them helps the server.",
    "The owner of the data made this page with simulated participants who were attacked on purpose; no data left the "
    "machine.",
)
ATTACKS = {
    "fishing": "A crafted model for each participant; the sum of one round is taken apart.",
    "same model": "One crafted model for everybody; the sums of several rounds with changing cohorts are solved.",
    "LLG": "An honest round's sum, read by Label Leakage from Gradients; everybody is given the mix that it says.",
    "iLRG": "The same by instance-wise batch label restoration.",
    "true mix": "What knowing the true label mix of all participants together would give. It reads no update.",
}
LIMITS = (
    "The figures hold for this model, these data and these settings; other attacks exist, and a cleverer one may find "
    "more, so no figure here proves safety.",
    "Figures near the guess mean that this attack failed. A server that has other knowledge of a participant may guess "
    "better than we do.",
    "Model binding stops different models for different participants. It does not stop one crafted model for "
    "everybody, which leaks as cohorts change; that attack takes every participant's label mix as constant.",
    "Noise hides less the more rounds a participant takes part in: the budget (epsilon) of a whole training is what "
    "ClientDP reports.",
    "Local normalisation layers were tried against a server that crafts these layers only; it may craft others.",
    "Sums of honest updates say much of a cohort's labels too, and of single participants' as cohorts change: see the "
    "row of local normalisation layers under one model for all. Of these defences only noise helps against that.",
    "The tripwire is a warning and no guarantee: a server that knows of it crafts models at which it stays silent, and "
    "reads next to as much.",
)


def write_page(folder: Path, result: AuditResult) -> None:
    """Write ``audit.html`` and its twins ``audit.md``, ``audit.csv`` and ``audit.json``, each whole or not at all."""
    replace_text(folder / "audit.html", page(result))
    replace_text(folder / "audit.md", result.markdown())
    replace_text(folder / "audit.csv", result.csv())
    replace_text(folder / "audit.json", result.to_json())


def write_refusal(folder: Path, reason: str) -> None:
    """Write ``audit.html`` and ``audit.md`` that say why there are no figures."""
    lines = (f"The audit does not apply: {reason}", "That is no proof of safety: there are other attacks.")
    body = "<h1>Label inference audit</h1>" + "".join(_paragraph(_text(line)) for line in lines)
    replace_text(folder / "audit.html", HTML.format(style=STYLE, body=body))
    replace_text(folder / "audit.md", "\n\n".join(("# Label inference under defences", *lines)) + "\n")


def page(result: AuditResult) -> str:
    """Return the page; it needs no other file."""
    parts = [
        "<h1>Label inference audit</h1>",
        _paragraph(_verdict(result)),
        f"<h2>Threat model</h2>{_list(map(escape, THREATS))}",
        f"<h2>Setting</h2>{_paragraph(_text(result.setting))}",
        f"<h2>Attacks and defences</h2>{_matrix(result)}",
        f"<h2>What the server recovered of each participant</h2>{_clients(result)}",
        _noise(result),
        f"<h2>What each defence costs</h2>{_costs(result)}",
        f"<h2>Limits</h2>{_list(map(escape, LIMITS))}",
    ]
    return HTML.format(style=STYLE, body="\n".join(part for part in parts if part))


def _verdict(result: AuditResult) -> str:
    report = result.report
    exact = sum(row.exact for row in report.rows)
    return (
        f"<strong>Of {len(report.rows)} attacked participants, the server read all label counts of {exact} exactly "
        f"and named {report.label_accuracy:.0%} of the labels; guessing names {report.guess:.0%}.</strong>"
    )


def _matrix(result: AuditResult) -> str:
    head = ["Defence", *result.attacks, "Tripwire alarms"]
    lines = []
    for cells in result.table():
        marks = [_mark(result, attack, cells[0]) for attack in result.attacks]
        lines.append(_row(cells[:-1], ["", *marks, ""]))
    notes = _list(f"<strong>{escape(defence)}</strong>: {escape(note)}" for defence, note in result.notes())
    text = (
        "Each cell: share of a participant's labels that were named (and the share of participants whose counts are "
        f"all right). Guessing gives {result.rows[0].guess:.3f}; coloured cells lie more than {LEAK:g} above it."
    )
    attacks = _list(f"<strong>{a}</strong>: {escape(ATTACKS[a])}" for a in result.attacks if a in ATTACKS)
    legend = f"<h3>The attacks</h3>{attacks}<h3>The defences</h3>{notes}"
    return f"{_table(head, lines)}{_paragraph(escape(text), quiet=True)}{legend}{_details(result)}"


def _mark(result: AuditResult, attack: str, defence: str) -> str:
    cell = result.cell(attack, defence)
    return "leak" if cell is not None and cell.label_accuracy > cell.guess + LEAK else ""


def _details(result: AuditResult) -> str:
    lines = []
    for row in result.rows:
        numbers = [row.rank, row.condition, row.margin]
        shown = [ABSENT if number is None else f"{number:.3g}" for number in numbers]
        lines.append(_row([row.attack, row.defence, *shown, f"{row.blocked:.0%}"], ["text", "text", "", "", "", ""]))
    head = ["Attack", "Defence", "Rank", "Condition", "Rounding margin", "Blocked"]
    return _folded("Rank, condition and rounding margin of every cell", _table(head, lines))


def _clients(result: AuditResult) -> str:
    report, rows = result.report, result.report.rows
    lines = []
    for row in rows:
        recovered = "not separated" if row.recovered is None else counts_text(row.recovered)
        cells = [str(row.client), counts_text(row.true), recovered, f"{row.accuracy:.3f}", f"{row.guess:.3f}"]
        lines.append(_row(cells, ["text", "text", "text", "", ""]))
    table = _table(["Participant", "True counts", "Recovered", "Label accuracy", "Guess"], lines)
    caption = "" if len(rows) <= MAX_CLIENTS else f" (the first {MAX_CLIENTS} of {len(rows)})"
    picture = _picture(data_uri(counts_figure(rows)), f"True and recovered label counts of each participant{caption}")
    notes = _list(map(_text, report.notes)) if report.notes else ""
    return f"{_paragraph(_text(report.setting), quiet=True)}{picture}{_folded('Numbers', table)}{notes}"


def _noise(result: AuditResult) -> str:
    figure = noise_figure(result.rows)
    if figure is None:
        return ""
    return f"<h2>Leak against noise</h2>{_picture(data_uri(figure), 'Label accuracy against noise, and the guess')}"


def _costs(result: AuditResult) -> str:
    known, lines = list(result.costs), []
    for name in known:
        row = result.leak(name)
        leak = ABSENT if row is None else f"{row.label_accuracy:.3f} ({row.attack})"
        mark = "leak" if row is not None and row.label_accuracy > row.guess + LEAK else ""
        lines.append(_row([name, result.cost(name), leak, f"{result.rows[0].guess:.3f}"], ["", "", mark, ""]))
    parts = []
    if known:
        parts.append(_table(["Defence", result.figure, "Best attack names", "Guess"], lines))
    if (figure := cost_figure(result)) is not None:
        parts.append(_picture(data_uri(figure), f"{result.figure} under each defence beside what still leaks"))
    if missing := [name for name in result.defences if name not in known]:
        text = f"{NOT_MEASURED.capitalize()}: {escape('; '.join(missing))}. To measure more: "
        parts.append(_paragraph(f"{text}<code>{escape(HOW_TO_MEASURE)}</code>", quiet=True))
    return "".join(parts)


def _text(text: str) -> str:
    """Return a sentence as markup; what stands between backticks is code."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))


def _picture(uri: str, caption: str) -> str:
    return f'<figure><img alt="{escape(caption)}" src="{uri}"><figcaption>{escape(caption)}.</figcaption></figure>'


def _table(head: Sequence[str], lines: Sequence[str]) -> str:
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _row(cells: Sequence[str], classes: Sequence[str]) -> str:
    pairs = zip(cells, classes, strict=True)
    return "<tr>" + "".join(f"<td{f' class={c}' if c else ''}>{escape(cell)}</td>" for cell, c in pairs) + "</tr>"


def _folded(title: str, html: str) -> str:
    return f"<details><summary>{title}</summary>{html}</details>"


def _paragraph(html: str, quiet: bool = False) -> str:
    return f"<p{' class=quiet' if quiet else ''}>{html}</p>"


def _list(items: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>"
