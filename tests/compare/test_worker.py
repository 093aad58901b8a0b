"""A worker has its run to itself, and ends with the comparison that started it."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from filelock import FileLock

from pl_fed.compare import worker
from pl_fed.compare.results import RESULT

PARENT = """
import os, signal, subprocess, sys
code = "import os, sys, time; from pl_fed.compare.worker import end_with; end_with(int(sys.argv[1])); "
code += "print('ready', flush=True); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", code, str(os.getpid())], stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline()
print(child.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_run_is_done_by_one_process_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second waits for the first, and finds that its result is there."""
    worked: list[Path] = []
    monkeypatch.setattr(worker, "_work", worked.append)
    second = threading.Thread(target=worker.main, args=(tmp_path,))
    with FileLock(tmp_path / worker.LOCK):
        second.start()
        second.join(0.2)
        assert not worked and second.is_alive()
        (tmp_path / RESULT).write_text("{}")
    second.join()
    assert not worked
    (tmp_path / RESULT).unlink()
    worker.main(tmp_path)
    assert worked == [tmp_path]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell a process that its parent is gone")
def test_a_worker_ends_when_its_comparison_is_killed() -> None:
    """The pipe that parent and worker share is at its end only when both are gone."""
    found = subprocess.run([sys.executable, "-c", PARENT], stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    assert found.returncode == -9


def test_a_worker_without_its_comparison_does_not_begin() -> None:
    if sys.platform == "linux":
        with pytest.raises(SystemExit, match="The comparison that started this run is gone"):
            worker.end_with(parent=0)
