import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pl_fed.assets.cache import build_once, cache_dir
from pl_fed.assets.errors import AssetFetchError

# Another process that is half-way through the same folder. It knows only the lock, so that it starts quickly.
BUILDER = """
import pathlib, sys, time
from filelock import FileLock
target = pathlib.Path(sys.argv[1])
with FileLock(target.parent / f".{target.name}.lock"):
    print("building", flush=True)
    time.sleep(0.3)
    target.mkdir()
    (target / "by").write_text("the other process")
"""


def write(text: str) -> Callable[[Path, Path], None]:
    def build(work: Path, finished: Path) -> None:
        (work / "download").write_text("thrown away")
        (finished / "sub").mkdir()
        (finished / "sub" / "by").write_text(text)

    return build


def raises(error: Exception) -> Callable[[Path, Path], None]:
    def build(work: Path, finished: Path) -> None:
        (finished / "half").write_text("written")
        raise error

    return build


def folders(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir() if p.is_dir())


def test_builds_once_and_keeps_only_the_result(tmp_path: Path) -> None:
    target = tmp_path / "models" / "tiny"
    assert build_once(target, write("first")) == target
    assert build_once(target, raises(AssertionError("built twice"))) == target
    assert [p.relative_to(target).as_posix() for p in sorted(target.rglob("*"))] == ["sub", "sub/by"]
    assert (target / "sub" / "by").read_text() == "first"
    assert folders(target.parent) == ["tiny"]


def test_result_is_readable_by_others(tmp_path: Path) -> None:
    def build(work: Path, finished: Path) -> None:
        (finished / "model.safetensors").touch(mode=0o600)

    file = build_once(tmp_path / "tiny", build) / "model.safetensors"
    assert file.stat().st_mode & 0o777 == 0o644


def test_exception_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="in the middle"):
        build_once(tmp_path / "tiny", raises(RuntimeError("in the middle")))
    assert folders(tmp_path) == []
    assert (build_once(tmp_path / "tiny", write("second try")) / "sub" / "by").is_file()


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    """A killed process leaves its scratch folder; the next builder removes that one and no other."""
    (tmp_path / ".tiny-abc" / "finished").mkdir(parents=True)
    (tmp_path / ".small-abc").mkdir()
    build_once(tmp_path / "tiny", write("whole"))
    assert folders(tmp_path) == [".small-abc", "tiny"]


def test_waits_for_another_process_and_takes_its_result(tmp_path: Path) -> None:
    target = tmp_path / "tiny"
    with subprocess.Popen([sys.executable, "-c", BUILDER, str(target)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"building\n"
        build_once(target, raises(AssertionError("the other process builds")))
    assert (target / "by").read_text() == "the other process"


def test_two_at_once_build_once(tmp_path: Path) -> None:
    built: list[int] = []
    together = threading.Barrier(2)

    def build(work: Path, finished: Path) -> None:
        built.append(threading.get_ident())

    def start() -> None:
        together.wait()
        build_once(tmp_path / "tiny", build)

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1 and folders(tmp_path) == ["tiny"]


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "disk full"), RuntimeError("I/O error: No space left on device (os error 28)")],
    ids=["python", "other language"],
)
def test_full_disk_says_what_to_do(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(AssetFetchError, match=r"expected enough free disk space .*tiny but got.*PL_FED_CACHE"):
        build_once(tmp_path / "tiny", raises(error))
    assert folders(tmp_path) == []


def test_forbidden_folder_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(AssetFetchError, match=r"expected to be able to write below .*PL_FED_CACHE"):
        build_once(tmp_path / "tiny", raises(PermissionError(errno.EACCES, "no")))


def test_other_errors_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="folder"):
        build_once(tmp_path / "tiny", raises(IsADirectoryError(errno.EISDIR, "a folder")))


def test_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("PL_FED_CACHE", str(tmp_path))
        assert cache_dir() == tmp_path
        patch.setenv("PL_FED_CACHE", "")
        patch.setenv("HOME", str(tmp_path / "home"))
        assert cache_dir() == tmp_path / "home" / ".cache" / "pl_fed"
        patch.setenv("PL_FED_CACHE", f"~{os.sep}here")
        assert cache_dir() == tmp_path / "home" / "here"
