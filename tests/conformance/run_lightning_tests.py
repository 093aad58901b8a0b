"""Runs Lightning's own tests with `FederatedStrategy` wherever the Trainer would choose its plain single-device one.

    git clone --branch 2.6.5 --depth 1 https://github.com/Lightning-AI/pytorch-lightning lightning
    python tests/conformance/run_lightning_tests.py lightning                # DEFAULT_TARGETS
    python tests/conformance/run_lightning_tests.py lightning loops core     # paths inside tests/tests_pytorch

Files with failures are run again with the stock strategy, which tells our failures from those of the environment (a
missing optional package, say). The status is 0 if nothing of ours failed beyond `EXPECTED`. `pip install scikit-learn
tensorboard pytest-timeout` first: some of Lightning's tests need the first two, and the last stops a test that
hangs. The file is its own pytest plugin.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
DEFAULT_STRATEGY = "pl_fed.strategy.FederatedStrategy"
DEFAULT_TARGETS = (
    "strategies/test_single_device.py",
    "loops",
    "checkpointing",
    "callbacks",
    "models/test_hooks.py",
    "trainer/flags",
    "trainer/logging_",
    "trainer/optimization",
    "trainer/properties",
    "trainer/test_dataloaders.py",
    "trainer/test_states.py",
    "trainer/test_trainer.py",
)
LEFT_OUT = (
    "checkpointing/test_legacy_checkpoints.py",  # needs checkpoints that the checkout does not hold
    "callbacks/test_spike.py",  # on two processes, where Lightning chooses DDP
)
ONE_PROCESS = "not ddp and not spawn"  # the others are slow and have another strategy
EXPECTED = {  # test -> why it must differ
    "tests_pytorch/checkpointing/test_trainer_checkpoint.py::test_trainer_save_checkpoint_storage_options": "it mocks "
    "the default checkpoint writer, which ours replaces",
}
STRATEGY, RESULTS = "CONFORMANCE_STRATEGY", "CONFORMANCE_RESULTS"  # environment of the pytest process

# ---------------------------------------------------------------- inside pytest: the plugin


class Recorder:
    """Writes one outcome a test, the worst of its phases, and how many Trainers got the strategy."""

    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}
        self.num_trainers = 0

    def pytest_runtest_logreport(self, report: Any) -> None:
        passed_phase = report.passed and report.when != "call"
        if not passed_phase and self.outcomes.get(report.nodeid) != "failed":
            self.outcomes[report.nodeid] = report.outcome

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.outcomes[report.nodeid] = "failed"

    def pytest_sessionfinish(self) -> None:
        results = {"outcomes": self.outcomes, "num_trainers": self.num_trainers}
        Path(os.environ[RESULTS]).write_text(json.dumps(results))


def pytest_configure(config: Any) -> None:
    """Record, and put the strategy in the place of the plain one if one is asked for."""
    config.addinivalue_line("markers", "flaky: of a plugin that Lightning's tests use and that need not be installed")
    config.pluginmanager.register(recorder := Recorder())
    if os.environ.get(STRATEGY):
        substitute(os.environ[STRATEGY], recorder)


def substitute(class_path: str, recorder: Recorder) -> None:
    """Make the Trainer choose `class_path` where it would choose `SingleDeviceStrategy` on the CPU."""
    from lightning.pytorch.strategies import SingleDeviceStrategy
    from lightning.pytorch.trainer.connectors.accelerator_connector import _AcceleratorConnector

    module, _, name = class_path.rpartition(".")
    strategy = getattr(importlib.import_module(module), name)
    stock = _AcceleratorConnector._choose_strategy

    def choose(connector: Any) -> Any:
        chosen = stock(connector)
        if type(chosen) is SingleDeviceStrategy and chosen.root_device.type == "cpu":
            recorder.num_trainers += 1
            return strategy()
        return chosen

    _AcceleratorConnector._choose_strategy = choose


# ---------------------------------------------------------------- outside: the script


@dataclass
class Outcomes:
    """What one pytest process found, by test."""

    of: dict[str, str] = field(default_factory=dict)
    num_trainers: int = 0

    def named(self, outcome: str) -> list[str]:
        return sorted(test for test, found in self.of.items() if found == outcome)


def run_pytest(checkout: Path, tests: list[str], strategy: str = "", timeout_s: int = 120) -> Outcomes:
    """Run tests of the checkout in a process of their own; an empty strategy leaves the stock one."""
    command = [sys.executable, "-m", "pytest", "-q", "--tb=line", "--color=no", "--continue-on-collection-errors"]
    command += ["-p", "no:cacheprovider", "-p", Path(__file__).stem, "--rootdir=.", f"-c{checkout / 'pyproject.toml'}"]
    command += [f"-k={ONE_PROCESS}", *(f"--ignore=tests_pytorch/{path}" for path in LEFT_OUT)]
    if importlib.util.find_spec("pytest_timeout"):
        command += [f"--timeout={timeout_s}"]
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder, "results.json")
        search = [str(Path(__file__).parent), str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, search)),
            STRATEGY: strategy,
            RESULTS: str(results),
        }
        status = subprocess.run([*command, *tests], cwd=checkout / "tests", env=environment, check=False).returncode
        if not results.exists():
            raise SystemExit(f"Expected pytest to report but it ended with status {status}: run it with fewer targets.")
        found = json.loads(results.read_text())
    return Outcomes(found["outcomes"], found["num_trainers"])


def summarise(federated: Outcomes, stock: Outcomes, strategy: str) -> bool:
    """Print the counts and the failures; return whether all is as expected."""
    failed = federated.named("failed")
    both = [test for test in failed if stock.of.get(test) == "failed"]
    expected = [test for test in failed if test in EXPECTED and test not in both]
    ours = [test for test in failed if test not in both and test not in EXPECTED]
    counts = {outcome: len(federated.named(outcome)) for outcome in ("passed", "failed", "skipped")}
    print(f"\nLightning {importlib.metadata.version('lightning')} with {strategy} in {federated.num_trainers} Trainers")
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
    for title, tests in (
        ("failed with the stock strategy too", both),
        ("failed as expected", expected),
        ("FAILED ONLY WITH THIS STRATEGY", ours),
    ):
        print(f"{len(tests)} {title}")
        for test in tests:
            print(f"    {test}" + (f" ({EXPECTED[test]})" if test in expected else ""))
    return not ours


def main() -> int:
    """Run the tests, and the files of the failing ones again with the stock strategy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="Lightning's repository, at the release that is installed")
    parser.add_argument("targets", nargs="*", default=DEFAULT_TARGETS, help="paths inside tests/tests_pytorch")
    parser.add_argument("--strategy", default=DEFAULT_STRATEGY, help="class path of the strategy")
    parser.add_argument("--stock", action="store_true", help="only measure the stock strategy")
    arguments = parser.parse_args()
    checkout: Path = arguments.checkout.resolve()
    if not (checkout / "tests" / "tests_pytorch").is_dir():
        parser.error(f"expected {checkout} to be a checkout of Lightning but it has no tests/tests_pytorch")
    tests = [f"tests_pytorch/{target}" for target in arguments.targets]
    if arguments.stock:
        found = run_pytest(checkout, tests)
        print({outcome: len(found.named(outcome)) for outcome in ("passed", "failed", "skipped")})
        return bool(found.named("failed"))
    federated = run_pytest(checkout, tests, arguments.strategy)
    # whole files: some of Lightning's tests pass only after another test of their file
    files = sorted({test.split("::")[0] for test in federated.named("failed")})
    stock = run_pytest(checkout, files) if files else Outcomes()
    return not summarise(federated, stock, arguments.strategy)


if __name__ == "__main__":
    sys.exit(main())
