"""Starts a runner and watches the memory and CPU seconds of all processes that come of it; Linux."""

import json
import os
import signal
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

MARK = "PEERS_RUN"  # environment variable that tells a run's processes, also those that have left its session
PERIOD = 0.5  # seconds between two looks
PAGE, TICKS = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")


class RunFailedError(Exception):
    """A runner that ended without a result; the message says how."""


class Usage(threading.Thread):
    """Samples a run's resident memory and CPU seconds; pages that processes share count in each of them."""

    def __init__(self, mark: str) -> None:
        super().__init__(daemon=True)
        self.mark, self.peak_bytes, self.most_processes = mark, 0, 0
        self.times: list[float] = []
        self.cpu_seconds: list[float] = []  # of all processes until then
        self.ended = threading.Event()

    def run(self) -> None:
        known: dict[int, float] = {}  # processes that have ended keep what they used
        while not self.ended.wait(PERIOD):
            found = {process: usage(process) for process in processes_of(self.mark)}
            known |= {process: cpu for process, (size, cpu) in found.items() if size}
            self.peak_bytes = max(self.peak_bytes, sum(size for size, _ in found.values()))
            self.most_processes = max(self.most_processes, len(found))
            self.times.append(time.perf_counter())
            self.cpu_seconds.append(sum(known.values()))

    def cpu_between(self, start: float, end: float) -> float:
        """Return the CPU seconds between two times of `time.perf_counter`, which all processes share on Linux."""
        first, last = np.interp([start, end], self.times, self.cpu_seconds)
        return float(last - first)


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


def usage(process: int) -> tuple[int, float]:
    """Return the resident bytes and the CPU seconds of a process; zeros if it has ended."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except (OSError, IndexError):
        return 0, 0.0
    return pages * PAGE, (int(fields[11]) + int(fields[12])) / TICKS  # user and system


def run(command: list[str], variables: Mapping[str, str], timeout: float) -> dict[str, Any]:
    """Run a command and return the last JSON object that it printed, with what it used.

    Args:
        command: The program and its arguments.
        variables: Its whole environment.
        timeout: Seconds after which it is ended.

    Raises:
        RunFailedError: If it printed no result in time.
    """
    mark = uuid.uuid4().hex
    use = Usage(mark)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, env={**variables, MARK: mark}, cwd=folder, stdout=output, stderr=subprocess.STDOUT, text=True
        )
        use.start()
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise RunFailedError(f"no result after {timeout:g} seconds") from None
        finally:
            use.ended.set()
            use.join()
            _end(mark)
        output.seek(0)
        result = _last_result(output.read().splitlines(), process.returncode)
    marks = result.pop("marks")
    cpu = use.cpu_between(marks[1], marks[-1]) / (len(marks) - 2)  # a round, the first not counted
    return {**result, "all_cpu_seconds": cpu, "peak_bytes": use.peak_bytes, "processes": use.most_processes}


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
