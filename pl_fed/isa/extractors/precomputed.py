"""Takes texts that exist already from a JSONL file in the layout of the ISA data."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pl_fed.errors import FederatedConfigError
from pl_fed.isa.extractor import ExtractionError, Extractor
from pl_fed.isa.images import LoadedImage
from pl_fed.isa.story import Mode


class PrecomputedExtractor(Extractor):
    """Looks texts up by file name; the mode is that of whoever wrote them.

    Args:
        path: The file, one object a line with ``file_name`` and ``model_output``; lines with an ``error`` are left out.
    """

    cacheable = False  # the name decides, not the content

    def __init__(self, path: str) -> None:
        try:
            content = Path(path).expanduser().read_bytes()
            texts = [_entry(line) for line in content.decode("utf-8-sig").split("\n") if line.strip()]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FederatedConfigError(
                f"Expected `extractor.path` to be a JSONL file with `file_name` and `model_output` in every line but "
                f"'{path}' is not ({type(error).__name__}: {error}): write one with `extract`."
            ) from error
        self._texts = {name: text for name, text in texts if text is not None}
        self._sha256 = hashlib.sha256(content).hexdigest()

    @property
    def settings(self) -> Mapping[str, Any]:
        """The file's content."""
        return {"extractor": type(self).__name__, "sha256": self._sha256}

    def extract(self, image: LoadedImage, mode: Mode) -> str:
        """Return the text of the image's name below its folder, or of its bare name."""
        for name in (image.file.name, image.file.path.name):
            if name in self._texts:
                return self._texts[name]
        raise ExtractionError(f"no line for '{image.file.name}' in the file of texts")


def _entry(line: str) -> tuple[str, str | None]:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise TypeError("a line that is no object")
    if row.get("error"):
        return str(row["file_name"]), None
    if not isinstance(row["model_output"], str):
        raise TypeError(f"`model_output` of {row['file_name']!r} is no text")
    return str(row["file_name"]), row["model_output"]
