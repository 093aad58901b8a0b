"""Running with processes that are fake: reuse, failures, limits, interruptions, and what a real one is given."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pl_fed.compare import launcher as launcher_module
from pl_fed.compare.config import Arm, Comparison, Overlay, Sitting
from pl_fed.compare.launcher import Child, Launcher, prepared
from pl_fed.compare.plan import Plan, Run
from pl_fed.compare.results import FAILURE, RESULT, Store, write
from pl_fed.compare.runner import Runner, clock, log_tail
from pl_fed.errors import FederatedConfigError
from tests.helpers.compare import FakeLauncher, Figures, make_comparison, make_result


def accuracy(run: Run) -> dict[str, float]:
    """The best of the grid is 0.2."""
    return {"val/accuracy": 1.0 - abs((run.value or 0) - 0.2), "test/accuracy": 0.5}


def sit(
    folder: Path, figures: Figures = accuracy, comparison: Comparison | None = None, **options: object
) -> tuple[Store, FakeLauncher, list[str]]:
    """Run a sitting and return what is there after it."""
    plan, store = Plan(comparison or make_comparison(jobs=2)), Store(folder)
    launcher, said = FakeLauncher(figures), list[str]()
    sitting = Sitting(**options)  # type: ignore[arg-type]
    Runner(plan, store, sitting, launcher, said.append, pause_seconds=0.0).run()
    return store, launcher, said


def test_a_whole_comparison_and_nothing_twice(tmp_path: Path) -> None:
    store, launcher, said = sit(tmp_path)
    assert len(launcher.started) == 10 == len(store.done) and launcher.most == 2
    assert [run.value for run in launcher.started if run.arm == "A"] == [0.1, 0.2, 0.3, 0.2]
    assert len(said) == 20 and "0 runs left" in said[-1]
    assert sit(tmp_path)[1].started == []


def test_a_changed_configuration_is_another_run(tmp_path: Path) -> None:
    sit(tmp_path)
    arms = {**make_comparison().arms, "base": Arm(Overlay({"x": 1}), kind="control", train=False)}
    assert [run.arm for run in sit(tmp_path, comparison=make_comparison(arms=arms))[1].started] == ["base", "base"]


def test_a_failing_run_hurts_no_other_and_is_tried_again(tmp_path: Path) -> None:
    def figures(run: Run) -> dict[str, float]:
        if run.arm == "A" and run.value == 0.3:
            raise RuntimeError("out of memory")
        return accuracy(run)

    store, launcher, said = sit(tmp_path, figures)
    assert len(launcher.started) == 10 and len(store.done) == 9, "the grid goes on without that value"
    assert [result.error for result in store.failed.values()] == ["RuntimeError: out of memory"]
    assert any(line.startswith("FAILED   all / A, value 0.3, seed 0: RuntimeError: out of memory") for line in said)
    store, launcher, _ = sit(tmp_path)
    assert [(run.arm, run.value) for run in launcher.started] == [("A", 0.3)] and not store.failed


def test_a_killed_run_says_so(tmp_path: Path) -> None:
    comparison = make_comparison(arms={"A": Arm()}, tune=None, seeds=(0,))
    launcher = FakeLauncher(accuracy)
    launcher._end = lambda run, folder: -9  # type: ignore[method-assign]
    store = Store(tmp_path)
    Runner(Plan(comparison), store, Sitting(), launcher, lambda line: None, 0.0).run()
    assert [result.error for result in store.failed.values()] == ["killed by signal 9"]


def test_only_what_is_asked_for_is_run(tmp_path: Path) -> None:
    assert {run.arm for run in sit(tmp_path, only=("base",))[1].started} == {"base"}


def test_nothing_is_started_after_the_time(tmp_path: Path) -> None:
    assert sit(tmp_path, max_minutes=0.0)[1].started == []


def test_an_interruption_stops_what_is_in_progress(tmp_path: Path) -> None:
    """What was finished before stays; the rest is done in the next sitting."""
    plan, store = Plan(make_comparison(jobs=2)), Store(tmp_path)
    launcher, said = FakeLauncher(accuracy), list[str]()

    def say(line: str) -> None:
        said.append(line)
        if line.startswith("finished") and sum(word.startswith("finished") for word in said) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Runner(plan, store, Sitting(), launcher, say, 0.0).run()
    assert len(store.done) == 3 == len(list(tmp_path.glob(f"*/{RESULT}")))
    assert [process.stopped for process in launcher.processes] == [process.polls > 0 for process in launcher.processes]
    assert len(sit(tmp_path)[1].started) == 7


def test_results_of_a_file_count_as_done(tmp_path: Path) -> None:
    store, _, _ = sit(tmp_path / "here")
    file = tmp_path / "results.jsonl"
    file.write_text("".join(result.to_json() + "\n" for result in store.done.values()))
    there = Store(tmp_path / "there", [str(file)])
    assert there.done == store.done
    assert Plan(make_comparison()).due(there.ended) == []
    with pytest.raises(FederatedConfigError, match="file of results in `--results` but got 'none.jsonl'"):
        Store(tmp_path, ["none.jsonl"])
    for line in ('{"arm": "A"}', "[1]", '{"figures": [1]}'):
        file.write_text(f"{line}\n")
        with pytest.raises(FederatedConfigError, match="results of a comparison in .*results.jsonl"):
            Store(tmp_path, [str(file)])


def test_results_keep_what_is_not_a_number(tmp_path: Path) -> None:
    run = Plan(make_comparison()).run("A", "all", 0)
    write(tmp_path / "x", make_result(run, {"val/loss": float("nan"), "test/loss": 1.0}))
    figures = Store(tmp_path).done[run.fingerprint].figures
    assert figures["val/loss"] != figures["val/loss"] and figures["test/loss"] == 1.0


def test_a_process_gets_its_configuration(tmp_path: Path) -> None:
    keep = Overlay({"trainer.strategy": {"class_path": "S", "init_args": {"clients": {"keep_adapters": True}}}})
    comparison = make_comparison(arms={"A": Arm(config=keep)})
    run = Plan(comparison).run("A", "all", 1, 0.2)
    folder = tmp_path / run.slug
    command = Launcher(comparison).prepare(run, folder)
    assert command == [sys.executable, "-m", "pl_fed.compare.worker", str(folder)]
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["seed_everything"] == 1 and config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.2
    assert config["run"] == {"name": folder.name, "folder": str(tmp_path), "version": "attempt_1", "group": "n",
                             "export_adapter": False}  # fmt: skip
    assert config["data"]["init_args"]["loading"]["personalised"] is True, "clients keep adapters"
    request = json.loads((folder / "request.json").read_text())
    assert request["checkpoint"] is None and request["identity"]["fingerprint"] == run.fingerprint


def test_an_interrupted_run_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    comparison = make_comparison()
    run = Plan(comparison).run("A", "all", 0, 0.1)
    folder = tmp_path / run.slug
    checkpoint = folder / "attempt_1" / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"")
    (folder / FAILURE).write_text("{}")
    Launcher(comparison).prepare(run, folder)
    assert json.loads((folder / "request.json").read_text())["checkpoint"] == str(checkpoint)
    assert yaml.safe_load((folder / "config.yaml").read_text())["run"]["version"] == "attempt_2"
    assert not (folder / FAILURE).exists()


def test_an_untrained_model_has_no_personalised_test(tmp_path: Path) -> None:
    run = Plan(make_comparison(common=Overlay({"data.init_args.loading.personalised": True}))).run("base", "all", 0)
    assert prepared(run, "n", tmp_path, "x")["data"]["init_args"]["loading"]["personalised"] is False


@pytest.mark.parametrize("program", ["import time; time.sleep(60)", "import signal, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('x', flush=True); time.sleep(60)"])  # fmt: skip
def test_a_child_ends_when_told(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that ignores SIGTERM."""
    monkeypatch.setattr(launcher_module, "GRACE_SECONDS", 0.3)
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, start_new_session=True)
    if "print" in program:
        assert process.stdout is not None and process.stdout.readline()
    child = Child(process)
    assert child.poll() is None
    child.ask()
    child.stop()
    assert child.poll() == (-signal.SIGKILL if "print" in program else -signal.SIGTERM)
    process.stdout.close()  # type: ignore[union-attr]


def test_words(tmp_path: Path) -> None:
    assert log_tail(tmp_path / "none") == ""
    assert [clock(s) for s in (5, 99.6, 3599, 3600)] == ["5 s", "100 s", "59 min", "1 h 0 min"]
