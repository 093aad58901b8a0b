"""The report of a comparison: tables, pictures, and all results in one file."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from pl_fed.callbacks._environment import environment
from pl_fed.callbacks._run_folder import replace_text
from pl_fed.callbacks.run_summary import now
from pl_fed.compare.launcher import identity
from pl_fed.compare.names import Names, Results, resolve
from pl_fed.compare.pictures import clients_figure, curves_figure, ranks_figure
from pl_fed.compare.plan import Plan, Run, slugs
from pl_fed.compare.rows import Row, make_rows
from pl_fed.compare.table import csv_text, markdown

ABOUT = """\
A figure is the mean over seeds ± the standard deviation of a sample; — means that the arm has no such figure. *Global*
is the server's model, *personalised* each client with the adapter that it keeps. The Pareto front is that of the global
test figure against bytes sent by clients (upload) and against simulated time (time), over the arms of kind `method`.
"""


def write_report(plan: Plan, results: Results, folder: Path, command: str) -> str:
    """Write everything and return the tables.

    Args:
        plan: The runs.
        results: Those that ended, by fingerprint.
        folder: Where to.
        command: What the user typed.
    """
    runs = known_runs(plan, results)
    shown = {run.fingerprint: results[run.fingerprint] for run in runs}
    names = resolve(plan.comparison, shown)
    tables = {setting: make_rows(plan, setting, shown) for setting in plan.comparison.settings}
    folder.mkdir(parents=True, exist_ok=True)
    parts, places = [], slugs(tables)
    for setting, rows in tables.items():
        pictures = _draw(places[setting], rows, names, folder)
        links = "".join(f"\n![{title}]({file})" for title, file in pictures)
        table = markdown(rows, names, shown, plan.shown_key.rpartition(".")[2])
        parts.append(f"## {setting}\n\n{table}{links}\n")
    text = _head(plan, shown, len(results) - len(shown), names, command) + "\n" + "\n".join(parts)
    replace_text(folder / "table.md", text)
    replace_text(folder / "table.csv", csv_text(tables, names, shown))
    lines = [replace(results[run.fingerprint], **identity(run)).to_json() + "\n" for run in runs]
    replace_text(folder / "results.jsonl", "".join(lines))
    return text


def known_runs(plan: Plan, results: Results) -> list[Run]:
    """Return the runs of the plan that ended: those of grids, then those of all seeds, each once."""
    rows = plan.rows()
    wanted = [run for setting, arm in rows for run in plan.grid(arm, setting)]
    wanted += [run for setting, arm in rows for run in plan.final(arm, setting, results)]
    return list({run.fingerprint: run for run in wanted if run.fingerprint in results}.values())


def _head(plan: Plan, results: Results, others: int, names: Names, command: str) -> str:
    comparison, tune = plan.comparison, plan.comparison.tune
    lines = [f"# {comparison.name}", "", f"    {command}", "", f"- written: {now()}"]
    lines.append(f"- seeds: {_listed(comparison.seeds)}")
    if tune is not None:
        metric, mode = plan.deciding(results)
        grid, seeds = _listed(f"{value:g}" for value in tune.values), _listed(tune.seeds)
        own = {arm: spec.values for arm, spec in comparison.arms.items() if spec.values}
        but = "".join(f", but {arm} {_listed(f'{value:g}' for value in values)}" for arm, values in own.items())
        lines.append(
            f"- tuned: `{tune.key}` over {grid} with seed {seeds}, by the {mode} of {metric} after the last round; the "
            f"same grid for every tuned arm{but}"
        )
    environments = [result.environment for result in results.values() if result.environment] or [environment()]
    lines += [f"- hardware: {text}" for text in _different(environments, _hardware)]
    lines += [f"- versions: {text}" for text in _different(environments, _versions)]
    if dates := sorted(result.date for result in results.values() if result.date):
        lines.append(f"- runs: {len(results)}, from {dates[0]} to {dates[-1]}")
    if others:
        lines.append(f"- {others} results of other configurations are in the folder too and not shown")
    return "\n".join([*lines, "", ABOUT])


def _listed(values: Any) -> str:
    return ", ".join(str(value) for value in values)


def _different(environments: Sequence[Mapping[str, Any]], say: Any) -> list[str]:
    return list(dict.fromkeys(say(found) for found in environments))


def _hardware(found: Mapping[str, Any]) -> str:
    machine = found.get("hardware") or {}
    cuda = machine.get("cuda") or ["no GPU"]
    return f"{machine.get('cpu')}, {machine.get('cores')} cores, {_listed(cuda)}"


def _versions(found: Mapping[str, Any]) -> str:
    git = found.get("git") or {}
    revision = f", revision {git['revision'][:10]}{' with changes' if git.get('dirty') else ''}" if git else ""
    return _listed(f"{name} {version}" for name, version in (found.get("versions") or {}).items()) + revision


def _draw(place: str, rows: Sequence[Row], names: Names, folder: Path) -> list[tuple[str, str]]:
    """Draw a setting's pictures and return their titles and files; one that is out of date is removed."""
    made: list[tuple[str, str, Figure | None]] = [
        ("curves", f"{place}-curves.png", curves_figure(rows, names)),
        ("clients", f"{place}-clients.png", clients_figure(rows, names)),
    ]
    arms = slugs(row.arm for row in rows)
    made += [(f"ranks of {row.arm}", f"{place}-ranks-{arms[row.arm]}.png", ranks_figure(row)) for row in rows]
    for _, file, figure in made:
        (folder / file).unlink(missing_ok=True)
        if figure is not None:
            figure.savefig(folder / file)
    return [(title, file) for title, file, figure in made if figure is not None]
