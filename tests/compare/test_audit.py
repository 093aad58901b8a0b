"""The command `audit`: accuracy of every defence beside what it stops, and a real run that leaves the page."""

import contextlib
import io
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pl_fed.attacks import DEFENCES
from pl_fed.callbacks._audit_page import write_page
from pl_fed.callbacks._audit_result import AuditResult
from pl_fed.cli import FederatedCLI, main
from pl_fed.compare import audit
from pl_fed.compare.command import parse
from pl_fed.compare.launcher import prepared
from pl_fed.compare.plan import Plan, Run
from tests.callbacks.test_audit_page import RESULT
from tests.helpers.compare import FakeLauncher

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "audit_defences.yaml"
pytestmark = [
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),  # Lightning's CLI
]
YAML = """
name: tiny
base: [smoke.yaml]
seeds: [0, 1]
arms:
  none: {}
  DP 1: {config: {trainer.max_epochs: 2}}
  local norm layers: {omit: [test/], config: {trainer.max_epochs: 9}}
"""


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["cli.py"])  # LightningCLI warns of pytest's own arguments


def figures(run: Run) -> dict[str, float]:
    accuracy = {"none": 0.9, "DP 1": 0.7, "local norm layers": 0.8}[run.arm] + 0.02 * run.seed
    return {"test/accuracy": accuracy, "test_personalised/accuracy": accuracy - 0.1}


class Audited(FakeLauncher):
    """The arm without a defence leaves an audit, in its second attempt a newer one."""

    def _end(self, run: Run, folder: Path) -> int:
        if run.arm == "none":
            for attempt in (1, 10):
                write_page(folder / f"attempt_{attempt}", replace(RESULT, setting=f"Attempt {attempt}."))
        return super()._end(run, folder)


def run(tmp_path: Path, launcher: FakeLauncher, text: str = YAML, *options: str) -> str:
    path, out = tmp_path / "audit.yaml", io.StringIO()
    path.write_text(text)
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(out):
        audit.main(["--config", str(path), f"--folder={tmp_path}", *options], launcher)
    return out.getvalue()


def test_costs_are_filled_in(tmp_path: Path) -> None:
    """The attacks are those of the last attempt.

    Figures of .90 and .92: mean .91, deviation .02 / sqrt(2). Without a global model the clients' own: .70 and .72.
    """
    text = run(tmp_path, Audited(figures))
    page = tmp_path / "tiny" / "report" / "audit.html"
    assert f"Page: {page}" in text and "python cli.py audit --config" in text
    found = AuditResult.from_json(page.with_suffix(".json").read_text(), page)
    assert found.setting == "Attempt 10." and found.figure == "test/accuracy"
    assert found.rows == RESULT.rows and found.report == RESULT.report
    assert {name: astuple(cost) for name, cost in found.accuracy.items()} == {
        "none": (pytest.approx(0.91), pytest.approx(0.01414, rel=1e-3), 2, ""),
        "DP 1": (pytest.approx(0.71), pytest.approx(0.01414, rel=1e-3), 2, ""),
        "local norm layers": (pytest.approx(0.71), pytest.approx(0.01414, rel=1e-3), 2, "each client's own model"),
    }
    assert "0.910 ± 0.014 (2 seeds)" in page.read_text() and "| none | method | 2 |" in text


def test_a_page_for_each_setting(tmp_path: Path) -> None:
    settings = "settings: {one: {trainer.max_epochs: 7}, 'the other': {trainer.max_epochs: 8}}"
    text = run(tmp_path, Audited(figures), f"{YAML}{settings}\n", "--seeds=[0]", "--only=none")
    pages = sorted(path.parent.name for path in (tmp_path / "tiny" / "report").glob("*/audit.html"))
    assert pages == ["one", "the-other"] and text.count("Page: ") == 2


def test_without_an_audit(tmp_path: Path) -> None:
    text = run(tmp_path, FakeLauncher(figures), YAML, "--only=DP 1")
    assert "No audit page" in text and "pl_fed.callbacks.AuditPage" in text


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["audit", "--help"])
    text = capsys.readouterr().out
    assert "cli.py audit" in text and "AuditPage" in text and "--max_minutes" in text
    with pytest.raises(SystemExit, match="pl_fed: .*`--only` to be one of .* but got 'x'"):
        main(["audit", "--config", str(CONFIG), "--only=x"])


def test_the_shipped_configuration(tmp_path: Path) -> None:
    """Every arm is a defence that the attacks are run under, and one that `fit` accepts."""
    comparison, _ = parse(["--config", str(CONFIG)])
    assert set(comparison.arms) < {defence.name for defence in DEFENCES} and len(comparison.seeds) == 3
    plan, file = Plan(comparison), tmp_path / "config.yaml"
    for arm in comparison.arms:
        config = prepared(plan.run(arm, "all", 0), "audit", tmp_path / "run", "attempt_1")
        file.write_text(yaml.safe_dump(config))
        with contextlib.redirect_stdout(io.StringIO()), pytest.raises(SystemExit) as ended:
            FederatedCLI(["fit", f"--config={file}", "--print_config"])
        assert not ended.value.code, arm


TINY: dict[str, Any] = {
    "common": {
        "model.init_args.network.options": {"width": 4},
        "data.init_args": {
            "dataset": "digits",
            "partitioner": {"init_args": {"num_partitions": 3, "min_partition_size": 32}},
            "splits": {"limit_train": 300, "limit_test": 100},
        },
        "trainer": {"max_epochs": 1, "limit_val_batches": 0},
        "trainer.strategy.init_args": {"cohort": {"clients": 3}},
    },
    "arms": {
        "none": {"config": {"trainer.callbacks+": [
            {"class_path": "pl_fed.callbacks.AuditPage", "init_args": {"num_clients": 3, "batch_size": 8}}
        ]}}
    },
}  # fmt: skip


def test_a_real_audit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One process trains a small CNN on scikit-learn's digits and runs the attacks."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({"name": "real", "base": ["classify_fashion_mnist.yaml"], "seeds": [0], **TINY}))
    main(["audit", "--config", str(path), f"--folder={tmp_path}"])
    page = tmp_path / "real" / "report" / "audit.html"
    assert f"Page: {page}" in capsys.readouterr().out
    found = AuditResult.from_json(page.with_suffix(".json").read_text(), page)
    assert found.rows[0].exact_match == 1.0 and set(found.accuracy) == {"none"} and len(found.report.rows) == 3
