"""Command lines in processes of their own that share the imports of the first one.

Importing torch and transformers takes longer than the tiny runs of the tests. The libraries read their environment
when they are imported, so there is one server of command lines for each environment.
"""

import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_LONGEST_SECONDS = 120  # a command that hangs is ended by a signal


@dataclass(frozen=True)
class Done:
    """What became of a command: its exit code, and what it printed."""

    code: int
    printed: str


class CommandLines:
    """Runs ``python cli.py ...`` again and again in one environment, each time in a fresh copy of the process.

    Args:
        environment: Variables beside those of this process; None takes one away.
        log: File for what a command prints.
    """

    def __init__(self, environment: Mapping[str, str | None], log: Path) -> None:
        together = {**os.environ, **environment}
        self._log = log
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.commands"],
            cwd=ROOT,
            env={name: value for name, value in together.items() if value is not None},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *arguments: str) -> Done:
        """Run one command to its end."""
        pipes = self._process
        assert pipes.stdin is not None and pipes.stdout is not None
        print(json.dumps([str(self._log), ["cli.py", *arguments]]), file=pipes.stdin, flush=True)
        return Done(int(pipes.stdout.readline()), self._log.read_text())

    def close(self) -> None:
        """End the server."""
        self._process.communicate(timeout=20)


def _serve() -> None:
    for shared in ("cli", "callbacks", "datamodules", "modules"):
        importlib.import_module(f"pl_fed.{shared}")
    for line in sys.stdin:
        log, arguments = json.loads(line)
        if (child := os.fork()) == 0:
            _become(log, arguments)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _become(log: str, arguments: list[str]) -> None:
    """Go on as ``python cli.py``; does not return."""
    signal.alarm(_LONGEST_SECONDS)
    file = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.argv = arguments
    runpy.run_path(str(ROOT / "cli.py"), run_name="__main__")
    sys.exit(0)


if __name__ == "__main__":
    _serve()
