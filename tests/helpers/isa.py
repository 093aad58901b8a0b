"""For the tests of image assessment: small images, and an extractor that writes down what it was asked."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pl_fed.isa.extractor import ExtractionError, Extractor, TransientExtractionError
from pl_fed.isa.images import ImageFile, LoadedImage, read_image
from pl_fed.isa.story import Mode


def picture(seed: int = 0, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """An image of random colours, coarse enough for JPEG."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)


def saved(folder: Path, name: str, seed: int = 0) -> ImageFile:
    folder.mkdir(parents=True, exist_ok=True)
    picture(seed).save(folder / name)
    return ImageFile(folder / name, name)


def loaded(image: Image.Image, folder: Path) -> LoadedImage:
    image.save(folder / "picture.png")
    return read_image(ImageFile(folder / "picture.png", "picture.png"))


def row(name: str, entity: float | None, semantic: float | None, **more: Any) -> dict[str, Any]:
    """A row of scores."""
    levels = {"entity_1_to_5": entity and 1 + 4 * entity, "semantic_1_to_5": semantic and 1 + 4 * semantic}
    scores = {"entity_score": entity, "semantic_score": semantic, **levels}
    return {"file_name": name, **scores, "clues": [], "description": "", "error": "", "path": name, **more}


class Recorder(Extractor):
    """Answers with the image's hash and fails for chosen names.

    Args:
        broken: Names that fail for good.
        away: Names that fail for now.
        log: File that gets a line for every extraction; processes may share it.
    """

    def __init__(self, broken: tuple[str, ...] = (), away: tuple[str, ...] = (), log: Path | None = None) -> None:
        self.broken, self.away, self.log = broken, away, log
        self.asked: list[str] = []

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"extractor": "Recorder"}

    def extract(self, image: LoadedImage, mode: Mode) -> str:
        self.asked.append(image.file.name)
        if image.file.name in self.broken:
            raise ExtractionError("it is broken")
        if image.file.name in self.away:
            raise TransientExtractionError("nobody is there")
        if self.log is not None:
            with self.log.open("a") as stream:
                stream.write(f"{image.file.name}\n")
        return f"{mode} {hashlib.sha256(image.sha256.encode()).hexdigest()[:8]}"
