"""The rows of the tables: an arm's figures over its seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

from pl_fed.compare.config import Arm
from pl_fed.compare.names import Names, Results
from pl_fed.compare.pareto import pareto_front
from pl_fed.compare.plan import Choice, Plan
from pl_fed.compare.results import Result
from pl_fed.compare.rule import GLOBAL, is_personalised

FRONTS = {"upload": "upload_bytes", "time": "simulated_seconds"}


@dataclass(frozen=True)
class Row:
    """An arm in a setting.

    Args:
        arm: Its name.
        spec: What it is; where its rule has no global model, that model's figures are among those omitted.
        wanted: Number of seeds.
        results: Results of the seeds that went well.
        choice: What tuning came to; None without.
        value: The tuned value or the learning rate, if it is known.
        notes: What a reader has to know: failures, what is missing, a best value at the edge.
    """

    arm: str
    spec: Arm
    wanted: int
    results: tuple[Result, ...]
    choice: Choice | None
    value: float | None
    notes: tuple[str, ...]

    def values(self, figure: str) -> list[float]:
        """Return a figure of each seed that has it; none if it means nothing for the arm."""
        if figure.startswith(self.spec.omit):
            return []
        found = [result.figures[figure] for result in self.results if figure in result.figures]
        return [] if figure == "simulated_seconds" and not any(found) else found  # no devices, no clock

    def mean(self, figure: str) -> float | None:
        """Return the mean over seeds; None if no seed has the figure."""
        values = self.values(figure)
        return fmean(values) if values else None

    def deviation(self, figure: str) -> float | None:
        """Return the standard deviation over seeds (of a sample); None for fewer than two."""
        values = self.values(figure)
        return stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else None


def make_rows(plan: Plan, setting: str, results: Results) -> list[Row]:
    """Return the rows of a setting in the order of the arms."""
    return [_row(plan, arm, setting, results) for arm in plan.comparison.arms]


def _row(plan: Plan, arm: str, setting: str, results: Results) -> Row:
    spec, seeds = _spec(plan, arm, setting), plan.comparison.seeds
    choice = plan.choice(arm, setting, results) if plan.is_tuned(arm) else None
    runs = plan.final(arm, setting, results)
    ended = [(run, results[run.fingerprint]) for run in runs if run.fingerprint in results]
    good = tuple(result for _, result in ended if not result.error)
    notes = [f"seed {run.seed} failed: {result.error}" for run, result in ended if result.error]
    if missing := [str(seed) for seed in seeds if seed not in {run.seed for run, _ in ended}]:
        notes.append(f"missing: seed {', '.join(missing)}")
    if isinstance(spec.tune, str):
        notes.append(f"value chosen for {spec.tune}")
    if spec.metric is not None:
        notes.append(f"tuned by {spec.metric}")
    if choice is not None:
        notes += _tuning_notes(choice, results)
    value = plan.shown_value(runs[0]) if runs else None
    return Row(arm, spec, len(seeds), good, choice, value if isinstance(value, int | float) else None, tuple(notes))


def _spec(plan: Plan, arm: str, setting: str) -> Arm:
    """Return what an arm is, without the figures of a global model that its rule does not have."""
    spec, run = plan.comparison.arms[arm], plan.run(arm, setting, plan.comparison.seeds[0])
    return replace(spec, omit=(*spec.omit, *GLOBAL)) if run.train and is_personalised(run.config) else spec


def _tuning_notes(choice: Choice, results: Results) -> list[str]:
    notes = []
    errors = [(run, results[run.fingerprint].error) for run in choice.runs if run.fingerprint in results]
    for run, error in errors:
        if error and run.value != choice.value:
            notes.append(f"tuning at {run.value:g}, seed {run.seed} failed: {error}")
    if choice.is_open:
        notes.append(f"tuning: {choice.done} of {len(choice.runs)} runs")
    elif choice.value is None:
        notes.append("tuning gave no usable value")
    if choice.at_edge:
        notes.append("best value at the edge of the grid")
    return notes


def fronts(rows: Sequence[Row], names: Names) -> dict[str, set[str]]:
    """Return the arms of kind `method` on the Pareto front of quality and each cost, by the cost's name."""
    found = {}
    for name, cost in FRONTS.items():
        points = [(row.arm, row.mean(cost), row.mean(names.test)) for row in rows if row.spec.kind == "method"]
        known = [(arm, x, y) for arm, x, y in points if x is not None and y is not None and math.isfinite(y)]
        sign = 1.0 if names.mode == "max" else -1.0
        marks = pareto_front([x for _, x, _ in known], [sign * y for _, _, y in known])
        found[name] = {arm for (arm, _, _), mark in zip(known, marks, strict=True) if mark}
    return found
