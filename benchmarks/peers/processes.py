"""Starts a runner and watches the memory of all processes that come of it; Linux."""

import json
import os
import signal
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MARK = "PEERS_RUN"  # environment variable that tells a run's processes, also those that have left its session
PERIOD = 0.5  # seconds between two looks
PAGE = os.sysconf("SC_PAGE_SIZE")


class RunFailedError(Exception):
    """A runner that ended without a result; the message says how."""


class Memory(threading.Thread):
    """Samples the resident memory of a run; pages that processes share count in each of them."""

    def __init__(self, mark: str) -> None:
        super().__init__(daemon=True)
        self.mark, self.peak_bytes, self.most_processes = mark, 0, 0
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(PERIOD):
            sizes = [size for size in map(resident_bytes, processes_of(self.mark)) if size]
            self.peak_bytes = max(self.peak_bytes, sum(sizes))
            self.most_processes = max(self.most_processes, len(sizes))


def processes_of(mark: str) -> Iterator[int]:
    """Yield the ids of a run's processes."""
    wanted = f"{MARK}={mark}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found = wanted in (entry / "environ").read_bytes().split(b"\0")
            except OSError:  # it has ended meanwhile, or is somebody else's
                continue
            if found:
                yield int(entry.name)


def resident_bytes(process: int) -> int:
    """Return the resident memory of a process; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * PAGE
    except (OSError, IndexError):
        return 0


def run(command: list[str], variables: Mapping[str, str], timeout: float) -> dict[str, Any]:
    """Run a command and return the last JSON object that it printed, with its memory.

    Args:
        command: The program and its arguments.
        variables: Its whole environment.
        timeout: Seconds after which it is ended.

    Raises:
        RunFailedError: If it printed no result in time.
    """
    mark = uuid.uuid4().hex
    memory = Memory(mark)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, env={**variables, MARK: mark}, cwd=folder, stdout=output, stderr=subprocess.STDOUT, text=True
        )
        memory.start()
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise RunFailedError(f"no result after {timeout:g} seconds") from None
        finally:
            memory.ended.set()
            memory.join()
            _end(mark)
        output.seek(0)
        result = _last_result(output.read().splitlines(), process.returncode)
    return {**result, "peak_bytes": memory.peak_bytes, "processes": memory.most_processes}


def _end(mark: str) -> None:
    """End what a run has left behind; only its own processes have its mark."""
    for process in list(processes_of(mark)):
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _last_result(lines: list[str], code: int) -> dict[str, Any]:
    for line in reversed(lines):
        if line.startswith('{"seconds"'):
            return dict(json.loads(line))
    said = next((line.strip() for line in reversed(lines) if line.strip()), "nothing")
    raise RunFailedError(f"exit code {code}, no result; the last line was: {said[:300]}")
