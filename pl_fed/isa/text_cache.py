"""Texts that were had once, in a SQLite file: several processes may use it, and one may be killed at any time."""

import fcntl
import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from pl_fed.errors import FederatedConfigError

_WAIT_SECONDS = 60.0  # for another process that is just writing
_TABLE = """\
CREATE TABLE IF NOT EXISTS texts (
    key TEXT PRIMARY KEY, image TEXT NOT NULL, settings TEXT NOT NULL, text TEXT, error TEXT,
    written TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
) WITHOUT ROWID"""


@dataclass(frozen=True)
class CachedText:
    """What an extractor gave for an image: a text, or the reason why there is none.

    Args:
        text: The text.
        error: The reason; None if there is a text.
    """

    text: str = ""
    error: str | None = None


def cache_key(sha256: str, settings: Mapping[str, Any]) -> str:
    """Return the key of a text.

    Args:
        sha256: Hash of the image's bytes.
        settings: All that decides the text besides the image: extractor, mode, prompts.
    """
    return hashlib.sha256(f"{sha256} {_as_json(settings)}".encode()).hexdigest()


class TextCache:
    """Texts by key; each is on disk when `put` returns.

    Args:
        path: The file; its folder is made if needed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self.path, timeout=_WAIT_SECONDS, isolation_level=None)
            try:
                self._database.execute("PRAGMA journal_mode=WAL")
                self._database.execute("PRAGMA synchronous=FULL")  # a text that was paid for survives a power cut
                self._database.execute(_TABLE)
            except BaseException:
                self._database.close()
                raise
            self._claims = os.open(f"{self.path}.claims", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except (OSError, sqlite3.Error) as error:
            raise FederatedConfigError(
                f"Expected `cache` to be a file that texts can be kept in but got '{self.path}' ({error}): give another"
                " path."
            ) from error

    def get(self, key: str) -> CachedText | None:
        """Return what is known, or None."""
        with self._in_a_sentence():
            row = self._database.execute("SELECT text, error FROM texts WHERE key = ?", (key,)).fetchone()
        return None if row is None else CachedText(row[0] or "", row[1])

    def put(self, key: str, sha256: str, settings: Mapping[str, Any], found: CachedText) -> None:
        """Keep what an extractor gave, in place of an older result.

        Raises:
            FederatedConfigError: If the disk is full, or the file can no longer be written.
        """
        values = (key, sha256, _as_json(settings), found.text, found.error)
        # Lone surrogates, which a model can write, have no UTF-8.
        clean = [v if v is None else v.encode("utf-8", "replace").decode() for v in values]
        with self._in_a_sentence():
            self._database.execute(
                "INSERT OR REPLACE INTO texts (key, image, settings, text, error) VALUES (?, ?, ?, ?, ?)", clean
            )

    @contextmanager
    def _in_a_sentence(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise FederatedConfigError(
                f"Expected to read and write the texts in `cache` '{self.path}' but got: {error}; make room on its disk"
                " or give another path, and run again: what was had before is kept."
            ) from error

    def claim(self, key: str) -> bool:
        """Say whether this process may work on `key`: no other one is at it. The end of a process ends its claims."""
        try:
            fcntl.lockf(self._claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _byte(key))
        except OSError:
            return False
        return True

    def release(self, key: str) -> None:
        """Let others work on `key`."""
        fcntl.lockf(self._claims, fcntl.LOCK_UN, 1, _byte(key))

    def __len__(self) -> int:
        """Return the number of texts, single answers and errors."""
        with closing(self._database.execute("SELECT COUNT(*) FROM texts")) as rows:
            return int(rows.fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        self._database.close()
        os.close(self._claims)

    def __enter__(self) -> "TextCache":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _as_json(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)


def _byte(key: str) -> int:
    """Return the place in the file of claims that stands for a key; two keys that share one only wait in turn."""
    return int(key[:15], 16)
