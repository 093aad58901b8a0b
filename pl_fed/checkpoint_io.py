"""Checkpoints that are whole or absent: written beside their place, flushed to the disk, then renamed."""

import os
import pickle
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from pl_fed.errors import CheckpointError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes local checkpoints atomically; a kill at any moment leaves the previous file as it was."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Save to `path`.

        Raises:
            CheckpointError: If the disk is full or cannot be written; the previous file is untouched.
        """
        if "://" in str(path):  # a remote file system: Lightning's own way
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        work = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(work, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(work, target)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            work.unlink(missing_ok=True)
            raise CheckpointError(
                f"Expected to write the checkpoint '{target}' but could not ({_first_line(error)}): free disk space or "
                "choose another folder. The previous file is untouched."
            ) from error

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
            loaded: dict[str, Any] = super().load_checkpoint(path, map_location, weights_only)
        except FileNotFoundError:
            raise CheckpointError(
                f"Expected a checkpoint at '{path}' but there is no such file: check the path."
            ) from None
        except (RuntimeError, EOFError, OSError, BadZipFile, pickle.UnpicklingError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"Expected a whole checkpoint but '{path}' cannot be read ({_first_line(error)}): it may be truncated "
                "or of another kind. Resume from another one."
            ) from error
        return loaded


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__
