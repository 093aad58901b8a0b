"""The command ``audit``: what each defence costs in accuracy, and one page on what it stops and what it costs."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pl_fed.callbacks._audit_page import write_page
from pl_fed.callbacks._audit_result import Accuracy, AuditResult
from pl_fed.compare.command import main as compare
from pl_fed.compare.command import make_parser
from pl_fed.compare.launcher import Launch
from pl_fed.compare.names import Names, resolve
from pl_fed.compare.plan import Plan, slugs
from pl_fed.compare.report import known_runs
from pl_fed.compare.results import Store
from pl_fed.compare.rows import Row, make_rows

HELP = """\
Trains one federation under each defence over seeds, as `compare` does, and writes <folder>/<name>/report/audit.html:
what attacks on the labels of single clients still find under each defence, and what the defence costs in accuracy. An
arm has the name of its defence; the arm with the callback AuditPage runs the attacks.
"""
NO_AUDIT = "No audit page: no run that is done left an audit.json; give an arm the callback pl_fed.callbacks.AuditPage."


def main(arguments: Sequence[str], launch: Launch | None = None) -> None:
    """Run the command.

    Args:
        arguments: The command line after ``audit``.
        launch: How a run is started; None starts subprocesses.
    """
    compare(arguments, launch, make_parser("audit", HELP), write_pages)


def write_pages(plan: Plan, store: Store, folder: Path) -> str:
    """Write the page of every setting, in a folder of its own if there are several, and say where.

    Args:
        plan: The runs.
        store: Those that ended, and their folders.
        folder: Folder of the report.
    """
    shown = {run.fingerprint: store.ended[run.fingerprint] for run in known_runs(plan, store.ended)}
    names, written, places = resolve(plan.comparison, shown), list[str](), slugs(plan.comparison.settings)
    for setting in plan.comparison.settings:
        if (path := find_audit(plan, store, setting)) is None:
            continue
        found = AuditResult.from_json(path.read_text(encoding="utf-8"), path)
        costs = {row.arm: cost for row in make_rows(plan, setting, shown) if (cost := accuracy(row, names)) is not None}
        home = folder if len(plan.comparison.settings) == 1 else folder / places[setting]
        write_page(home, replace(found, accuracy={**found.accuracy, **costs}, figure=names.test))
        written.append(f"Page: {home / 'audit.html'}")
    return "\n".join(written) or NO_AUDIT


def accuracy(row: Row, names: Names) -> Accuracy | None:
    """Return an arm's test figure; of an arm without a global model that of the clients' own."""
    for figure, remark in ((names.test, ""), (names.personalised, "each client's own model")):
        if (mean := row.mean(figure)) is not None:
            return Accuracy(mean, row.deviation(figure), len(row.values(figure)), remark)
    return None


def find_audit(plan: Plan, store: Store, setting: str) -> Path | None:
    """Return the ``audit.json`` of the first run that is done and has one, of its last attempt."""
    for arm in plan.comparison.arms:
        for run in plan.final(arm, setting, store.ended):
            if run.fingerprint in store.done:
                attempts = (store.folder / run.slug).glob("attempt_*/audit.json")
                if found := sorted(attempts, key=lambda path: int(path.parent.name.rpartition("_")[2])):
                    return found[-1]
    return None
