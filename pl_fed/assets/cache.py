"""A folder that is either complete or absent, however many processes build it and wherever one of them stops."""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from pl_fed.assets.errors import AssetFetchError


def cache_dir() -> Path:
    """Return the folder of converted models and data sets: ``$PL_FED_CACHE``, or ``~/.cache/pl_fed``."""
    return Path(os.environ.get("PL_FED_CACHE") or Path.home() / ".cache" / "pl_fed").expanduser().absolute()


def build_once(target: Path, build: Callable[[Path, Path], None]) -> Path:
    """Return `target`, after building it if it does not exist yet.

    Only one process builds; the others wait for it. The folder is made beside its final place and renamed there, so
    that nobody ever reads half of it.

    Args:
        target: The folder wanted.
        build: Called with an empty work folder, which is thrown away, and the empty folder to fill.

    Returns:
        `target`, which is now complete.

    Raises:
        AssetFetchError: If the disk is full or the cache cannot be written. Errors of `build` pass through.
    """
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / f".{target.name}.lock"):
            if not target.is_dir():
                _remove_leftovers(target)
                _build(target, build)
    except Exception as error:
        if hint := _hint(error, target):
            raise AssetFetchError(hint) from error
        raise
    return target


def _build(target: Path, build: Callable[[Path, Path], None]) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=_leftover_prefix(target)) as scratch:
        work, finished = Path(scratch, "work"), Path(scratch, "finished")
        work.mkdir()
        finished.mkdir()
        build(work, finished)
        for path in (*finished.rglob("*"), finished):
            if path.is_file():
                path.chmod(0o644)  # safetensors writes 0600, but a cache is often shared
            _flush_to_disk(path)
        os.replace(finished, target)
        _flush_to_disk(target.parent)


def _leftover_prefix(target: Path) -> str:
    return f".{target.name}-"


def _remove_leftovers(target: Path) -> None:
    # A killed process cannot clean up behind itself. We hold the lock, so nobody works in these folders.
    for leftover in target.parent.glob(f"{_leftover_prefix(target)}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _flush_to_disk(path: Path) -> None:
    # Without this a power cut after the rename may leave the name and lose the content.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _hint(error: Exception, target: Path) -> str | None:
    # Clients and libraries in other languages pass a full disk on as text only.
    if getattr(error, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error):
        return (
            f"expected enough free disk space to build {target} but got: {error}. Free some space, or point"
            " `PL_FED_CACHE` at a larger disk"
        )
    if getattr(error, "errno", None) in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"expected to be able to write below {target.parent} but got: {error}. Point `PL_FED_CACHE` at a folder"
            " that you may write to"
        )
    return None
