"""The command ``compare``: run a grid of arms, settings and seeds, and write its report."""

import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from jsonargparse import ArgumentParser

from pl_fed.compare.config import Comparison, Sitting
from pl_fed.compare.launcher import Launch, Launcher
from pl_fed.compare.plan import Plan, Run
from pl_fed.compare.report import write_report
from pl_fed.compare.results import Store
from pl_fed.compare.runner import Runner
from pl_fed.errors import FederatedConfigError

Finish = Callable[[Plan, Store, Path], str]  # writes more into the folder of the report, and says what
HELP = """\
Runs arms (methods and controls) in settings over seeds, each run a process of its own, and writes tables and pictures
into <folder>/<name>/report, with Pareto fronts marked. Runs that are done are not run again; an interrupted one goes on
from its checkpoint, one that failed is tried again. With `tune`, every arm is first given the same grid, and its best
value by the validation metric is used for all seeds.
"""


def make_parser(name: str = "compare", about: str = HELP) -> ArgumentParser:
    """Return the parser of the command."""
    parser = ArgumentParser(prog=f"cli.py {name}", description=about)
    parser.add_argument("-c", "--config", action="config", help="The comparison as YAML; later options win.")
    parser.add_class_arguments(Comparison, None)
    now = parser.add_argument_group("What to do now")
    now.add_argument("--dry_run", action="store_true", help="List the runs and which of them are done.")
    now.add_argument("--report_only", action="store_true", help="Write the report of what is done; start nothing.")
    now.add_argument("--only", action="append", metavar="ARM", help="Run this arm; the others keep their rows.")
    now.add_argument("--setting", action="append", metavar="NAME", help="Run this setting; others keep their tables.")
    now.add_argument("--max_minutes", type=float | None, help="Start no run after this time; later sittings go on.")
    text = "A results.jsonl whose runs count as done where the configuration is the same."
    now.add_argument("--results", action="append", metavar="FILE", help=text)
    return parser


def parse(arguments: Sequence[str], parser: ArgumentParser | None = None) -> tuple[Comparison, Sitting]:
    """Return what the command line asks for.

    Args:
        arguments: The command line after the command.
        parser: That of the command; None takes that of ``compare``.

    Raises:
        FederatedConfigError: If a chosen arm or setting does not exist.
    """
    parser = parser or make_parser()
    given = parser.instantiate(parser.parse_args(list(arguments)))
    comparison = Comparison(**{field.name: given[field.name] for field in fields(Comparison)})
    options: dict[str, Any] = {field.name: given[field.name] for field in fields(Sitting)}
    options |= {name: tuple(value) for name, value in options.items() if isinstance(value, list)}
    sitting = Sitting(**options)
    sitting.check(comparison)
    return comparison, sitting


def main(
    arguments: Sequence[str],
    launch: Launch | None = None,
    parser: ArgumentParser | None = None,
    finish: Finish | None = None,
) -> None:
    """Run the command; exit code 1 if a run failed, 130 after an interruption.

    Args:
        arguments: The command line after the command.
        launch: How a run is started; None starts subprocesses.
        parser: That of the command; None takes that of ``compare``.
        finish: What is done after the report is written.
    """
    parser = parser or make_parser()
    comparison, sitting = parse(arguments, parser)
    plan, home = Plan(comparison), Path(comparison.folder) / comparison.name
    store = Store(home / "runs", sitting.results)
    if sitting.dry_run:
        print("\n".join(listing(plan, store, sitting)))
        return
    interrupted = False
    if not sitting.report_only:
        with _alone(home), _terminable():
            try:
                Runner(plan, store, sitting, launch or Launcher(comparison), say=_say).run()
            except KeyboardInterrupt:
                interrupted = True
    text = write_report(plan, store.ended, home / "report", f"python {parser.prog} {shlex.join(arguments)}")
    print(f"\n{text}\nReport: {home / 'report' / 'table.md'}")
    if finish is not None:
        print(finish(plan, store, home / "report"))
    if interrupted:
        sys.exit(130)
    if failed := [r for r in store.ended.values() if r.error]:
        sys.exit(f"pl_fed: {len(failed)} runs failed; the report names them, and each has a log.txt in {store.folder}.")


def _say(line: str) -> None:
    print(line, flush=True)


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    home.mkdir(parents=True, exist_ok=True)
    lock = FileLock(home / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise FederatedConfigError(
            f"Expected no other comparison at work in '{home}' but there is one: wait for it, or change `name`."
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the comparison as Ctrl-C does, so that its processes end with it."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def listing(plan: Plan, store: Store, sitting: Sitting) -> list[str]:
    """Return a line for each run with its state; runs whose value is still open are one line an arm."""
    lines, seen = [], set[str]()
    for setting, arm in plan.rows(sitting.only, sitting.setting):
        final = plan.final(arm, setting, store.done)
        for run in [*plan.grid(arm, setting), *final]:
            if run.fingerprint not in seen:
                seen.add(run.fingerprint)
                lines.append(f"{_state(run, store):8} {run}")
        if not final:
            seeds = ", ".join(map(str, plan.comparison.seeds))
            lines.append(f"{'open':8} {setting} / {arm}, best value, seeds {seeds}")
    remaining = plan.remaining(store.done, sitting.only, sitting.setting)
    return [*lines, f"{remaining} runs are still to be done."]


def _state(run: Run, store: Store) -> str:
    if run.fingerprint in store.done:
        return "done"
    return "failed" if run.fingerprint in store.failed else "to do"
