"""What a run leaves for the comparison, and where all of them are kept."""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pl_fed.callbacks._run_folder import replace_text
from pl_fed.errors import FederatedConfigError

RESULT, FAILURE = "result.json", "failure.json"
Point = dict[str, Any]  # "round", the costs up to it, "ranks" by client, and validation metrics


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Args:
        fingerprint: Hash of its configuration.
        arm: Name of the arm that it was run for.
        setting: Name of the setting.
        seed: Its seed.
        value: Value of the tuned key; None if that was left as it is.
        error: Last line of its error; empty if all went well.
        figures: The last validation and test metrics, and what all rounds cost together.
        clients: Each client's figure by the prefix of its loader.
        rounds: Figures after each round.
        seconds: Wall time of the process.
        date: When it ended.
        environment: Versions, revision and hardware.
    """

    fingerprint: str
    arm: str
    setting: str
    seed: int
    value: float | None = None
    error: str = ""
    figures: dict[str, float] = field(default_factory=dict)
    clients: dict[str, dict[str, float]] = field(default_factory=dict)
    rounds: list[Point] = field(default_factory=list)
    seconds: float = 0.0
    date: str = ""
    environment: dict[str, Any] = field(default_factory=dict)

    def to_json(self, indent: int | None = None) -> str:
        """Return strict JSON; a number that is not finite becomes null."""
        return json.dumps(_finite(asdict(self)), indent=indent, allow_nan=False, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Result":
        """Read a result; what a later version added is left out, and null figures are not a number."""
        known, read = {f.name for f in fields(cls)}, json.loads(text)
        if not isinstance(read, dict) or not isinstance(read.get("figures", {}), dict):
            raise ValueError("no mapping with figures")
        content = {key: value for key, value in read.items() if key in known}
        figures = {k: math.nan if v is None else v for k, v in content.get("figures", {}).items()}
        return cls(**{**content, "figures": figures})


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Store:
    """Results by fingerprint, in memory and in the folders of runs.

    Args:
        folder: Where the folders of runs are.
        files: Files of results that count as done; a run's own result wins.
    """

    def __init__(self, folder: Path, files: Iterable[str] | None = None) -> None:
        self.folder = folder
        self.done: dict[str, Result] = {}
        self.failed: dict[str, Result] = {}
        for file in files or ():
            self._read_lines(Path(file))
        for path in sorted(folder.glob(f"*/{RESULT}")):
            self._keep(_read(path))
        for path in sorted(folder.glob(f"*/{FAILURE}")):
            self._keep(_read(path))

    def _keep(self, result: Result) -> None:
        if not result.error:
            self.done[result.fingerprint] = result
            self.failed.pop(result.fingerprint, None)
        elif result.fingerprint not in self.done:
            self.failed[result.fingerprint] = result

    def _read_lines(self, path: Path) -> None:
        if not path.is_file():
            raise FederatedConfigError(f"Expected a file of results in `--results` but got '{path}': correct the path.")
        for line in filter(str.strip, path.read_text(encoding="utf-8").splitlines()):
            self._keep(_parse(line, path))

    @property
    def ended(self) -> dict[str, Result]:
        """All runs that ended, well or not."""
        return {**self.failed, **self.done}

    def read(self, folder: Path) -> Result | None:
        """Take in what a process left in its folder; None if it left nothing."""
        path = next((folder / name for name in (RESULT, FAILURE) if (folder / name).is_file()), None)
        if path is None:
            return None
        result = _read(path)
        self._keep(result)
        return result

    def fail(self, folder: Path, result: Result) -> None:
        """Note that a run failed."""
        write(folder, result)
        self._keep(result)


def write(folder: Path, result: Result) -> None:
    """Leave a result in the folder of a run, whole or not at all."""
    replace_text(folder / (FAILURE if result.error else RESULT), result.to_json(indent=1) + "\n")


def _read(path: Path) -> Result:
    return _parse(path.read_text(encoding="utf-8"), path)


def _parse(text: str, path: Path) -> Result:
    try:
        return Result.from_json(text)
    except (ValueError, TypeError) as error:
        raise FederatedConfigError(
            f"Expected results of a comparison in '{path}' but got something else ({error}): remove it."
        ) from error
