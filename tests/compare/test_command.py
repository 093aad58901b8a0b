"""The command: what it parses and prints, shipped comparisons, and a real comparison of tiny runs."""

import contextlib
import io
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from filelock import FileLock

from pl_fed.cli import FederatedCLI, main
from pl_fed.compare import command, worker
from pl_fed.compare.command import parse
from pl_fed.compare.config import Overlay, Tune
from pl_fed.compare.launcher import Launcher, prepared
from pl_fed.compare.plan import Plan, Run
from pl_fed.compare.results import RESULT, Result
from tests.helpers.compare import FakeLauncher

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),  # Lightning's CLI
    pytest.mark.filterwarnings("ignore:The dirpath has changed from"),  # a resumed run has a folder of its own
]
YAML = """
name: tiny
base: [smoke.yaml]
common:
  trainer: {max_epochs: 2, strategy: {init_args: {clients: {keep_adapters: true}}}}
  trainer.callbacks-: [pl_fed.callbacks.PublicRefinement]
seeds: [0]
arms:
  AFLoRA: {}
  broken: {config: {model.init_args.lora.target_modules: [no_such_layer]}}
  base model: {kind: control, train: false}
jobs: 2
"""


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["cli.py"])  # LightningCLI warns of pytest's own arguments


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "compare.yaml"
    path.write_text(YAML)
    return str(path)


def test_the_command_line_wins_over_the_file(config: str) -> None:
    options = ["--arms.AFLoRA.kind=control", "--seeds=[4]", "--common", "{trainer.max_epochs: 9}", "--only=broken",
               "--tune", "{key: a.b, values: [1e-3]}", "--max_minutes=5"]  # fmt: skip
    comparison, sitting = parse(["--config", config, *options])
    assert comparison.arms["AFLoRA"].kind == "control" and comparison.seeds == (4,)
    assert comparison.common == Overlay({"trainer.max_epochs": 9}) and comparison.tune == Tune("a.b", (0.001,))
    assert sitting.only == ("broken",) and sitting.max_minutes == 5 and not sitting.dry_run


def test_classes_in_nested_yaml_are_left_alone(tmp_path: Path) -> None:
    """The parser would otherwise make them, and fill in their arguments."""
    rule = {"rule": {"class_path": "pl_fed.rules.AFLoRA"}}
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"name": "n", "arms": {"A": {"config": rule}}, "settings": {"s": rule}}))
    comparison, _ = parse(["--config", str(path)])
    assert comparison.arms["A"].config.content == rule == comparison.settings["s"].content


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only=nobody"], r"`--only` to be one of \['AFLoRA', 'broken', 'base model'\] but got 'nobody'"),
        (["--setting=none"], r"`--setting` to be one of \['all'\] but got 'none'"),
        (["--base=[nothing.yaml]"], "configuration file in `base` but got 'nothing.yaml'"),
        (["--jobs=0"], "`jobs` of 1 or more but got 0"),
        (["--max_minutes=-1"], "`--max_minutes` of 0 or more but got -1"),
        (["--max_minutes=.nan"], "`--max_minutes` of 0 or more but got nan"),
        (["--results=none.jsonl"], "file of results in `--results` but got 'none.jsonl'"),
    ],
)
def test_a_users_error_is_one_sentence(config: str, options: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=f"pl_fed: .*{message}"):
        main(["compare", "--config", config, *options])


def test_nested_yaml_must_be_a_mapping(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["compare", "--config", config, "--common=3"])
    assert "Expected nested YAML (a mapping) but got 3" in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["compare", "--help"])
    text = capsys.readouterr().out
    assert all(option in text for option in ("--arms", "--tune", "--dry_run", "--max_minutes", "Pareto", "--seeds"))


def test_the_other_commands_point_to_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "`compare` runs rules and controls" in " ".join(capsys.readouterr().out.split())


def figures(run: Run) -> dict[str, float]:
    if run.arm == "broken":
        raise RuntimeError("no such layer")
    return {"val/accuracy": 0.5, "test/accuracy": 0.5}


def run_command(config: str, tmp_path: Path, *options: str) -> FakeLauncher:
    launcher = FakeLauncher(figures)
    with contextlib.suppress(SystemExit):
        command.main(["--config", config, f"--folder={tmp_path}", *options], launcher)
    return launcher


def test_sittings(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A dry run starts nothing; a sitting does a part, the next the rest; a failure is reported and tried again."""
    assert not run_command(config, tmp_path, "--dry_run").started
    assert capsys.readouterr().out.count("to do") == 3 and not (tmp_path / "tiny").exists()
    assert len(run_command(config, tmp_path, "--only=AFLoRA").started) == 1
    assert [run.arm for run in run_command(config, tmp_path).started] == ["broken", "base model"]
    report = (tmp_path / "tiny" / "report" / "table.md").read_text()
    assert "| seed 0 failed: RuntimeError: no such layer |" in report
    capsys.readouterr()
    assert not run_command(config, tmp_path, "--dry_run").started
    states = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert states == ["done", "failed", "done", "1"]
    assert not run_command(config, tmp_path, "--report_only").started
    assert [run.arm for run in run_command(config, tmp_path).started] == ["broken"]


def test_an_interruption_writes_the_report(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SIGTERM is one too; afterwards it means again what it did."""

    def interrupt(run: Run) -> dict[str, float]:
        assert signal.getsignal(signal.SIGTERM) != before, "else this would end the tests"
        signal.raise_signal(signal.SIGTERM)
        return {}

    before = signal.getsignal(signal.SIGTERM)
    launcher = FakeLauncher(interrupt)
    with pytest.raises(SystemExit) as ended:
        command.main(["--config", config, f"--folder={tmp_path}"], launcher)
    assert ended.value.code == 130 and all(process.stopped for process in launcher.processes)
    assert "0 of 1 seeds" in (tmp_path / "tiny" / "report" / "table.md").read_text()
    assert signal.getsignal(signal.SIGTERM) == before


def test_two_at_the_same_place_are_refused(config: str, tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    with FileLock(tmp_path / "tiny" / ".lock"), pytest.raises(SystemExit, match="no other comparison at work in"):
        main(["compare", "--config", config, f"--folder={tmp_path}"])


OVER = {"compare_reuters": "compare_newsgroups"}  # a file that lies over another


def classes(value: Any) -> set[tuple[str, ...]]:
    """Return every class in a configuration with the names of its arguments."""
    if isinstance(value, dict):
        found = {(str(value["class_path"]), *sorted(value.get("init_args") or {}))} if "class_path" in value else set()
        return found.union(*map(classes, value.values()))
    return set().union(*map(classes, value)) if isinstance(value, list) else set()


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("compare_*.yaml")), ids=lambda path: path.stem)
def test_shipped_comparisons_parse(path: Path, tmp_path: Path) -> None:
    """Every class of every arm, with its arguments, is one that `fit` accepts."""
    below = [str(path.with_stem(OVER[path.stem]))] if path.stem in OVER else []
    comparison, _ = parse([part for name in [*below, str(path)] for part in ("--config", name)])
    plan, file, seen = Plan(comparison), tmp_path / "config.yaml", set[tuple[str, ...]]()
    for arm in list(comparison.arms)[: 1 if below else None]:  # what lies over another file has its arms
        run = plan.run(arm, next(iter(comparison.settings)), comparison.seeds[0])
        config = prepared(run, comparison.name, tmp_path / "run", "attempt_1")
        new, seen = classes(config) - seen, seen | classes(config)
        if new:  # others differ in values only
            file.write_text(yaml.safe_dump(config))
            with contextlib.redirect_stdout(io.StringIO()), pytest.raises(SystemExit) as ended:
                FederatedCLI(["fit", f"--config={file}", "--print_config"])
            assert not ended.value.code, arm


def test_a_real_comparison(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three processes: one that trains, one whose configuration is wrong, one that only evaluates."""
    with pytest.raises(SystemExit, match="1 runs failed"):
        main(["compare", "--config", config, f"--folder={tmp_path}"])
    report = tmp_path / "tiny" / "report"
    lines = {
        (result := Result.from_json(line)).arm: result for line in (report / "results.jsonl").read_text().splitlines()
    }
    trained, base = lines["AFLoRA"], lines["base model"]
    assert "no_such_layer" in lines["broken"].error and lines["broken"].error in (report / "table.md").read_text()
    assert trained.figures["test_clients/perplexity"] < base.figures["test_clients/perplexity"]
    assert "test_personalised/perplexity" in trained.figures and "test_personalised/perplexity" not in base.figures
    assert [point["round"] for point in trained.rounds] == [0, 1, 2]
    assert trained.rounds[2]["upload_bytes"] == trained.figures["upload_bytes"] > trained.rounds[1]["upload_bytes"] > 0
    assert set(trained.rounds[2]["ranks"]) <= set("0123") and len(trained.clients["test_clients"]) == 4
    assert not base.rounds and "val/perplexity" in base.figures
    assert (report / "all-curves.png").stat().st_size > 1000
    launcher = run_command(config, tmp_path)
    assert [run.arm for run in launcher.started] == ["broken"], "what is done is not done again"


def test_an_interrupted_run_ends_as_if_nothing_had_happened(config: str, tmp_path: Path) -> None:
    """One round, then from its checkpoint the second, then only the tests; against all at once, to the last bit."""
    comparison, _ = parse(["--config", config])
    run, folders = Plan(comparison).run("AFLoRA", "all", 0), [tmp_path / "whole", tmp_path / "broken"]
    threads = torch.get_num_threads()
    for folder, rounds in ((folders[0], [2]), (folders[1], [1, 2, 2])):
        for count in rounds:
            Launcher(comparison).prepare(run, folder)
            (folder / RESULT).unlink(missing_ok=True)
            text = (folder / "config.yaml").read_text()
            (folder / "config.yaml").write_text(text.replace("max_epochs: 2", f"max_epochs: {count}"))
            worker.main(folder)
    torch.set_num_threads(threads)
    whole, resumed = (Result.from_json((folder / RESULT).read_text()) for folder in folders)
    request = json.loads((folders[1] / "request.json").read_text())
    assert request["checkpoint"] == str(folders[1] / "attempt_2" / "checkpoints" / "last.ckpt")
    assert resumed.figures == whole.figures and resumed.rounds == whole.rounds and resumed.clients == whole.clients
