"""Tables with numbers that a reader can redo, and what is left in the folder of the report."""

import csv
from pathlib import Path
from typing import Any

import pytest

from pl_fed.compare.config import Arm, Overlay
from pl_fed.compare.launcher import identity
from pl_fed.compare.names import resolve
from pl_fed.compare.plan import Plan
from pl_fed.compare.report import write_report
from pl_fed.compare.results import Result, Store
from pl_fed.compare.rows import fronts, make_rows
from pl_fed.compare.table import markdown
from tests.helpers.compare import make_comparison, make_result

COST = {"upload_bytes": 2e6, "download_bytes": 3e6, "flops": 4e12, "simulated_seconds": 90.0}
# test accuracy, personalised, worst client by arm and seed; B is as good as A for half the bytes, C is worse and dear
FIGURES = {
    ("A", 0): (0.50, 0.70, 0.30), ("A", 1): (0.60, 0.74, 0.32),
    ("B", 0): (0.54, None, 0.20), ("B", 1): (0.56, None, 0.20),
    ("C", 0): (0.40, 0.60, 0.10), ("C", 1): (0.40, 0.60, 0.10),
    ("base", 0): (0.05, None, 0.00), ("base", 1): (0.05, None, 0.00),
}  # fmt: skip
FACTOR = {"A": 1.0, "B": 0.5, "C": 3.0}


def make_plan(**changes: object) -> Plan:
    base = Arm(kind="control", train=False)
    arms = {"A": Arm(), "B": Arm(), "C": Arm(), "base": base}
    configs = {name: {"trainer.strategy": name} for name in arms}
    for name, arm in arms.items():
        arm.config.content.update(configs[name])
    return Plan(make_comparison(**{"arms": arms, **changes}))


def outcome(plan: Plan, arm: str, seed: int, value: float | None) -> Result:
    run = plan.run(arm, "all", seed, value)
    test, own, worst = FIGURES[arm, seed]
    figures = {"test/accuracy": test, "test_clients/worst_client_accuracy": worst, "val/accuracy": value or 0.0}
    figures |= {} if own is None else {"test_personalised/accuracy": own}
    figures |= {} if arm == "base" else {name: cost * FACTOR[arm] for name, cost in COST.items()}
    clients = {"test_clients": {"0": test, "1": worst}}
    curve = [{"round": r, "val/accuracy": 0.1 * r, **{k: r * v for k, v in COST.items()}} for r in (0, 1, 2)]
    for point in curve[1:]:
        point["ranks"] = {"0": 4.0, "1": 2.0 if arm == "B" else 5.0 - point["round"]}
    return make_result(run, figures, rounds=[] if arm == "base" else curve, clients=clients)  # type: ignore[arg-type]


def make_results(plan: Plan) -> dict[str, Result]:
    values = {"A": 0.3, "B": 0.3, "C": 0.3, "base": None}  # 0.3 is the best of the grid, at its edge
    found = [outcome(plan, arm, seed, values[arm]) for arm, seed in FIGURES]
    found += [outcome(plan, arm, 0, value) for arm in "ABC" for value in (0.1, 0.2)]
    return {result.fingerprint: result for result in found}


def cells(plan: Plan, results: dict[str, Result]) -> dict[str, dict[str, str]]:
    """Return the table of Markdown: arm -> column -> text."""
    names = resolve(plan.comparison, results)
    lines = markdown(make_rows(plan, "all", results), names, results).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}


def test_the_table() -> None:
    """A: (.50 + .60) / 2 = .55, deviation .1 / sqrt(2) = .0707; B: .55 and .0141 for half of A's 2 MB and 90 s."""
    plan = make_plan()
    table = cells(plan, make_results(plan))
    assert list(table) == ["A", "B", "C", "base"]
    assert table["A"] == {
        "arm": "A", "kind": "method", "seeds": "2", "global test/accuracy": "0.550 ± 0.071",
        "personalised test_personalised/accuracy": "0.720 ± 0.028",
        "worst client test_clients/worst_client_accuracy": "0.310 ± 0.014", "upload MB": "2", "download MB": "3",
        "TFLOPs": "4", "simulated min": "1.5", "lr": "0.3 (edge)", "tuning runs": "3", "Pareto front": "",
        "notes": "best value at the edge of the grid",
    }  # fmt: skip
    assert table["B"]["global test/accuracy"] == "0.550 ± 0.014" and table["B"]["Pareto front"] == "upload, time"
    assert table["B"]["personalised test_personalised/accuracy"] == "—"
    assert table["base"]["upload MB"] == table["base"]["lr"] == "—" and table["base"]["tuning runs"] == "0"


def test_controls_are_not_on_the_front() -> None:
    """As a method, `base` would be on none: it has no costs; A as a control leaves B alone on both."""
    plan = make_plan()
    results = make_results(plan)
    rows = make_rows(plan, "all", results)
    assert fronts(rows, resolve(plan.comparison, results)) == {"upload": {"B"}, "time": {"B"}}
    plan.comparison.arms["B"] = Arm(plan.comparison.arms["B"].config, kind="control")
    rows = make_rows(plan, "all", results)
    assert fronts(rows, resolve(plan.comparison, results)) == {"upload": {"A"}, "time": {"A"}}


def test_failures_and_missing_seeds_are_shown() -> None:
    plan = make_plan()
    results = make_results(plan)
    failed, missing, tuning = plan.run("A", "all", 1, 0.3), plan.run("B", "all", 1, 0.3), plan.run("C", "all", 0, 0.1)
    results[failed.fingerprint] = Result(**identity(failed), error="ValueError: no | way")
    results[tuning.fingerprint] = Result(**identity(tuning), error="killed by signal 9")
    del results[missing.fingerprint]
    table = cells(plan, results)
    assert table["A"]["seeds"] == "1 of 2 seeds" and "seed 1 failed: ValueError: no \\| way" in table["A"]["notes"]
    assert table["A"]["global test/accuracy"] == "0.500"
    assert table["B"]["seeds"] == "1 of 2 seeds" and "missing: seed 1" in table["B"]["notes"]
    assert "tuning at 0.1, seed 0 failed: killed by signal 9" in table["C"]["notes"]
    for value in (0.1, 0.2, 0.3):
        run = plan.run("A", "all", 0, value)
        results[run.fingerprint] = Result(**identity(run), error="no")
    row = cells(plan, results)["A"]
    assert row["seeds"] == "0 of 2 seeds" and row["global test/accuracy"] == "—"
    assert "tuning gave no usable value" in row["notes"] and "tuning at 0.1, seed 0 failed: no" in row["notes"]


def test_an_open_grid_is_shown() -> None:
    plan = make_plan()
    table = cells(plan, {r.fingerprint: r for r in [outcome(plan, "A", 0, 0.1)]})
    assert table["A"]["notes"] == "missing: seed 0, 1; tuning: 1 of 3 runs" and table["A"]["lr"] == "—"


def test_what_means_nothing_is_absent() -> None:
    """Local training alone has no global model."""
    plan = make_plan()
    results = make_results(plan)
    plan.comparison.arms["A"] = Arm(plan.comparison.arms["A"].config, omit=("test/", "test_clients/", "upload"))
    row = cells(plan, results)["A"]
    assert row["global test/accuracy"] == row["upload MB"] == "—" and row["download MB"] == "3"
    assert row["worst client test_clients/worst_client_accuracy"] == "—"
    assert row["personalised test_personalised/accuracy"] == "0.720 ± 0.028"


def test_the_folder_of_the_report(tmp_path: Path) -> None:
    """C's and A's ranks change, B's do not; results.jsonl is enough to make the same tables again."""
    plan = make_plan()
    results = make_results(plan)
    other = Result("f" * 64, "old", "all", 0)
    text = write_report(plan, {**results, other.fingerprint: other}, tmp_path, "python cli.py compare --config x.yaml")
    assert {path.name for path in tmp_path.iterdir()} == {
        "table.md", "table.csv", "results.jsonl", "all-curves.png", "all-clients.png", "all-ranks-a.png",
        "all-ranks-c.png",
    }  # fmt: skip
    head = ["    python cli.py compare --config x.yaml", "- seeds: 0, 1", "over 0.1, 0.2, 0.3 with seed 0"]
    head += ["by the max of val/accuracy", "- hardware: ", "- versions: ", "1 results of other configurations"]
    assert all(part in text for part in head)
    assert (tmp_path / "table.md").read_text() == text
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert float(rows[0]["test/accuracy mean"]) == pytest.approx(0.55) and rows[0]["upload_bytes mean"] == "2000000.0"
    assert float(rows[0]["test/accuracy sd"]) == pytest.approx(0.0707, abs=1e-4) and rows[1]["front_upload"] == "True"
    again = Store(tmp_path / "nothing", [str(tmp_path / "results.jsonl")])
    assert again.done == results
    write_report(plan, again.ended, tmp_path / "again", "x")
    assert (tmp_path / "again" / "table.csv").read_text() == (tmp_path / "table.csv").read_text()


def test_names_of_one_slug_have_pictures_of_their_own(tmp_path: Path) -> None:
    """Of `A+` and `A-` in `alpha 0.1` and `alpha=0.1` each has its ranks; the first of a slug has the plain name."""
    settings = {"alpha 0.1": Overlay({"data.x": 1}), "alpha=0.1": Overlay({"data.x": 2})}
    arms = {"A+": Arm(Overlay({"trainer.strategy": "+"})), "A-": Arm(Overlay({"trainer.strategy": "-"}))}
    plan = Plan(make_comparison(arms=arms, settings=settings, tune=None, seeds=(0,)))
    curve: list[dict[str, Any]] = [{"round": i, "val/accuracy": 0.1 * i, "ranks": {"0": 4.0 - i}} for i in (1, 2)]
    clients = {"test_clients": {"0": 0.5}}
    runs = [plan.run(arm, setting, 0) for setting in settings for arm in arms]
    results = {run.fingerprint: make_result(run, {"val/accuracy": 0.5}, rounds=curve, clients=clients) for run in runs}
    text = write_report(plan, results, tmp_path, "x")
    kinds = ("curves", "clients", "ranks-a", "ranks-a_2")
    wanted = {f"{place}-{kind}.png" for place in ("alpha-0.1", "alpha-0.1_2") for kind in kinds}
    assert {path.name for path in tmp_path.glob("*.png")} == wanted
    assert all(text.count(f"({name})") == 1 for name in wanted)


def test_a_report_of_nothing(tmp_path: Path) -> None:
    assert "0 of 2 seeds" in write_report(make_plan(), {}, tmp_path, "x")
