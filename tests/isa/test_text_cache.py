"""A cache that two processes share, and a process that is killed in the middle."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pl_fed.errors import FederatedConfigError
from pl_fed.isa.text_cache import CachedText, TextCache, cache_key
from tests.helpers.isa import saved

ROOT = Path(__file__).parents[2]
# Extracts all images of a folder, slowly, and writes each name into a log when its text is there.
WORKER = """
import sys, time
from pathlib import Path
from pl_fed.isa.extraction import Extraction
from pl_fed.isa.images import find_images
from pl_fed.isa.text_cache import TextCache
from tests.helpers.isa import Recorder

class Slow(Recorder):
    def extract(self, image, mode):
        time.sleep(float(sys.argv[4 if image.file.name < '3' else 5]))
        return super().extract(image, mode)

with TextCache(sys.argv[2]) as cache:
    for _, found in Extraction(Slow(log=Path(sys.argv[3])), "naive", cache).run(find_images([sys.argv[1]])):
        print(found.file.name, flush=True)
"""


def start(folder: Path, log: Path, seconds: float, later: float) -> subprocess.Popen[str]:
    """Start a process that takes `seconds` for each of the first three images, and `later` for the others."""
    arguments = [str(folder / "images"), str(folder / "texts.sqlite"), str(log), str(seconds), str(later)]
    command = [sys.executable, "-c", WORKER, *arguments]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
                            stdout=subprocess.PIPE, text=True)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(8):
        saved(tmp_path / "images", f"{i}.png", seed=i)
    return tmp_path


def test_a_killed_run_loses_nothing_and_repeats_nothing(folder: Path) -> None:
    """Names that the first process reported are in the cache; the second one extracts exactly the others."""
    first = start(folder, folder / "first.log", 0.0, 60.0)
    assert first.stdout is not None
    reported = [first.stdout.readline().strip() for _ in range(3)]
    os.kill(first.pid, signal.SIGKILL)
    reported += first.stdout.read().split()
    first.stdout.close()
    assert first.wait() == -signal.SIGKILL and len(reported) < 8
    second = start(folder, folder / "second.log", 0.0, 0.0)
    out, _ = second.communicate(timeout=60)
    assert second.returncode == 0 and sorted(out.split()) == [f"{i}.png" for i in range(8)]
    done = (folder / "second.log").read_text().split()
    assert not set(done) & set(reported)
    with TextCache(folder / "texts.sqlite") as cache:
        assert len(cache) == 8


def test_two_processes_share_the_work(folder: Path) -> None:
    """Each image is extracted once by one of them, and both get all texts."""
    log = folder / "both.log"
    workers = [start(folder, log, 0.1, 0.1) for _ in range(2)]
    outs = [worker.communicate(timeout=60)[0].split() for worker in workers]
    assert [sorted(out) for out in outs] == [[f"{i}.png" for i in range(8)]] * 2
    assert sorted(log.read_text().split()) == [f"{i}.png" for i in range(8)]


def test_a_claim_ends_with_its_process(tmp_path: Path) -> None:
    program = "import sys, time; from pl_fed.isa.text_cache import TextCache; c = TextCache(sys.argv[1]);"
    program += "print(c.claim('a' * 64), flush=True); time.sleep(60)"
    command = [sys.executable, "-c", program, str(tmp_path / "t.sqlite")]
    other = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline().strip() == "True"
    with TextCache(tmp_path / "t.sqlite") as cache:
        assert not cache.claim("a" * 64) and cache.claim("b" * 64)
        cache.release("b" * 64)
        other.kill()
        other.communicate()
        deadline = time.monotonic() + 10
        while not cache.claim("a" * 64):
            assert time.monotonic() < deadline


def test_what_was_put_is_there_after_reopening(tmp_path: Path) -> None:
    path = tmp_path / "new" / "t.sqlite"
    with TextCache(path) as cache:
        assert cache.get("k") is None
        cache.put("k", "0", {"a": 1}, CachedText(error="broken"))
        cache.put("k", "0", {"a": 1}, CachedText("text \ud800"))
    with TextCache(path) as cache:
        assert cache.get("k") == CachedText("text ?") and len(cache) == 1


def test_the_key_depends_on_everything() -> None:
    keys = [cache_key("0", {"a": 1, "b": 2}), cache_key("1", {"a": 1, "b": 2}), cache_key("0", {"a": 1, "b": 3})]
    assert len(set(keys)) == 3 and keys[0] == cache_key("0", {"b": 2, "a": 1})


def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path: Path) -> None:
    """SQLite is told that the file may have no more than ten pages."""
    path = tmp_path / "t.sqlite"
    with TextCache(path) as cache:
        cache.put("a", "0", {}, CachedText("kept"))
        cache._database.execute("PRAGMA max_page_count = 10")
        with pytest.raises(FederatedConfigError, match=r"t.sqlite' but got: database or disk is full; make room on"):
            cache.put("b", "0", {}, CachedText("x" * 100_000))
        assert cache.get("a") == CachedText("kept") and cache.get("b") is None
        cache._database.execute("DROP TABLE texts")
        with pytest.raises(FederatedConfigError, match="Expected to read and write the texts in `cache` .* no such"):
            cache.get("a")


@pytest.mark.parametrize("content", [None, b"not a database, but long enough to be looked at" * 100])
def test_a_file_that_is_no_cache(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "t.sqlite"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(FederatedConfigError, match="Expected `cache` to be a file that texts can be kept in but got"):
        TextCache(path)
