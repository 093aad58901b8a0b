"""Checkpoints that are whole or absent: written beside their place, flushed to the disk, then renamed."""

import fcntl
import os
import uuid
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from pl_fed.errors import CheckpointError, CheckpointNotFoundError

PARTIAL = ".partial"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes local checkpoints atomically; a kill at any moment leaves the previous file as it was."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Save to `path`.

        Raises:
            CheckpointError: If the disk is full or cannot be written; the previous file is untouched.
        """
        if "://" in str(path) or storage_options is not None:  # a remote file system: Lightning's own way
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        work = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}{PARTIAL}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(target.parent)
            with _open_locked(work) as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
                os.replace(work, target)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            raise CheckpointError(
                f"Expected to write the checkpoint '{target}' but could not ({_first_line(error)}): free disk space or "
                "choose another folder. The previous file is untouched."
            ) from error
        finally:
            with suppress(OSError):
                work.unlink()

    def load_checkpoint(
        self,
        path: Any,
        map_location: Callable[..., Any] | None = lambda storage, loc: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Load from `path`.

        Raises:
            CheckpointError: If the file is missing, truncated or no checkpoint.
        """
        try:
            loaded: Any = super().load_checkpoint(path, map_location, weights_only)
        except FileNotFoundError:
            raise CheckpointNotFoundError(
                f"Expected a checkpoint at '{path}' but there is no such file: check the path."
            ) from None
        except IsADirectoryError:
            raise CheckpointError(
                f"Expected a checkpoint at '{path}' but that is a folder: give one of the files in it."
            ) from None
        except Exception as error:  # what unpickling garbage raises has no end: IndexError, AttributeError, ...
            raise CheckpointError(
                f"Expected a whole checkpoint but '{path}' cannot be read ({_reason(path, error)}): resume from "
                "another one."
            ) from error
        if not isinstance(loaded, dict) or "state_dict" not in loaded:
            raise CheckpointError(
                f"Expected a checkpoint at '{path}' but it holds something else ({type(loaded).__name__} without a "
                "`state_dict`): use a file that a Trainer saved."
            )
        return loaded


def _open_locked(path: Path) -> IO[bytes]:
    """Open a new file that `_remove_leftovers` of any process sees to be in use until it is closed."""
    while True:
        file = open(path, "wb")  # noqa: SIM115  # the caller closes it
        with suppress(OSError):  # a file system without locks: then nothing is removed there either
            fcntl.flock(file, fcntl.LOCK_EX)
        if path.exists():
            return file
        file.close()  # removed between the two calls


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed runs left in a folder."""
    for path in folder.glob(f".*{PARTIAL}"):
        with suppress(OSError), open(path, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its writer lives
            path.unlink()


def _reason(path: Any, error: BaseException) -> str:
    """Say why reading failed; of a file without its end torch says no more than "invalid argument"."""
    if isinstance(path, str | Path) and Path(path).is_file() and not zipfile.is_zipfile(path):
        return "it has no end: it is truncated, or another kind of file"
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__
