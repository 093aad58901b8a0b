"""A folder of synthetic scenes: pictures, ratings, texts, graphs, a contact picture; each says that it is synthetic."""

import csv
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from pl_fed.errors import FederatedConfigError
from pl_fed.isa.scenes.compose import compose
from pl_fed.isa.scenes.draw import check_size, draw_scene
from pl_fed.isa.scenes.graph import Scene
from pl_fed.isa.scenes.raters import RaterConfig, rate
from pl_fed.isa.scenes.tell import Teller
from pl_fed.rounds import derive_seed

LEVELS = 5
MADE_BY = "SYNTHETIC scene drawn by pl_fed; no photograph, no human rating"
IMAGES, CONTACT = "images", "SYNTHETIC_contact.png"
README = """\
# SYNTHETIC scenes

Everything in this folder is SYNTHETIC: drawn, told and "rated" by a program. No human has rated these pictures; figures
measured on them say how a method works on a known structure, and nothing about photographs or people.

- `images/`: {num_images} pictures of {size} x {size} pixels, seed {seed}
- `ratings.csv`: a row for each simulated rating, levels 1 to 5, with the site that holds the picture
- `texts.jsonl`: two texts of each picture, of kind `naive` and `cot`; `model_output` was written by the same program
- `scenes.jsonl`: the graphs behind the pictures, with their true levels
- `{contact}`: a picture of each pair of levels, entity score downwards, semantic score to the right

{raters}
"""


@dataclass(frozen=True)
class SceneConfig:
    """Which scenes.

    Args:
        num_images: Number of pictures; every 25 have each pair of levels once.
        seed: Seed of everything; picture i is the same however many there are.
        size: Width and height in pixels.
    """

    num_images: int = 250
    seed: int = 0
    size: int = 224

    def __post_init__(self) -> None:
        """Check the values."""
        if self.num_images < 1:
            raise FederatedConfigError(f"Expected `num_images` to be at least 1 but got {self.num_images}.")
        if self.seed < 0:
            raise FederatedConfigError(f"Expected `seed` to be at least 0 but got {self.seed}.")
        check_size(self.size)


def make_scene(seed: int, image_idx: int) -> Scene:
    """Return a scene of a series; every 25 of them have each pair of levels once.

    Args:
        seed: Seed of the series.
        image_idx: Which one.
    """
    block, place = divmod(image_idx, LEVELS**2)
    cell = int(np.random.default_rng([seed, 0x6C, block]).permutation(LEVELS**2)[place])
    return compose(1 + cell // LEVELS, 1 + cell % LEVELS, derive_seed(seed, image_idx, 0x5C))


def write_scenes(
    folder: str | Path,
    config: SceneConfig = SceneConfig(),
    raters: RaterConfig = RaterConfig(),  # noqa: B008 - frozen
) -> Path:
    """Write a folder of scenes.

    Args:
        folder: Where to; must be new or empty.
        config: Which scenes.
        raters: Who rates them.

    Returns:
        The folder.

    Raises:
        FederatedConfigError: If the folder has files in it.
    """
    folder = Path(folder).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FederatedConfigError(f"Expected a new or an empty folder as `output` but got '{folder}': choose another.")
    (folder / IMAGES).mkdir(parents=True)
    scenes = [make_scene(config.seed, i) for i in range(config.num_images)]
    names = [f"synthetic_s{config.seed}_{i:06}.png" for i in range(len(scenes))]
    info = PngInfo()
    info.add_text("Description", MADE_BY)
    shown: dict[tuple[int, int], Image.Image] = {}
    for name, scene in zip(names, scenes, strict=True):
        image = draw_scene(scene, config.size)
        image.save(folder / IMAGES / name, pnginfo=info)
        shown.setdefault((scene.entity_level, scene.semantic_level), image)
    _write_ratings(folder / "ratings.csv", names, scenes, raters, config.seed)
    _write_lines(folder / "texts.jsonl", _texts(names, scenes, config.seed))
    _write_lines(folder / "scenes.jsonl", (_graph(name, scene) for name, scene in zip(names, scenes, strict=True)))
    _contact(shown, config.size).save(folder / CONTACT, pnginfo=info)
    text = README.format(**asdict(config), contact=CONTACT, raters=f"Raters: {asdict(raters)}")
    (folder / "README.md").write_text(text, "utf-8")
    return folder


def _write_ratings(path: Path, names: list[str], scenes: list[Scene], raters: RaterConfig, seed: int) -> None:
    levels = np.array([(scene.entity_level, scene.semantic_level) for scene in scenes])
    sites = np.array([derive_seed(seed, i, 0x51) % raters.num_sites for i in range(len(scenes))])
    ratings = rate(levels, sites, raters, seed)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file_name", "rater", "entity", "semantic", "site", "synthetic"])
        for name, site, image in zip(names, sites, ratings.tolist(), strict=True):
            for rater, (entity, semantic) in enumerate(image, 1):
                writer.writerow([name, f"synthetic_{rater}", entity, semantic, f"synthetic_site_{site}", "true"])


def _texts(names: list[str], scenes: list[Scene], seed: int) -> Iterable[dict[str, Any]]:
    for name, scene in zip(names, scenes, strict=True):
        scores = {
            "entity_score": (scene.entity_level - 1) / (LEVELS - 1),
            "semantic_score": (scene.semantic_level - 1) / (LEVELS - 1),
        }
        teller = Teller(scene, seed)
        for kind, text in (("naive", teller.naive()), ("cot", teller.chain_of_thought())):
            yield {"file_name": name, "kind": kind, "model_output": text, **scores, "synthetic": True}


def _graph(name: str, scene: Scene) -> dict[str, Any]:
    levels = {"entity_level": scene.entity_level, "semantic_level": scene.semantic_level}
    return {"file_name": name, "synthetic": True, **levels, **asdict(scene)}


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def _contact(shown: dict[tuple[int, int], Image.Image], size: int) -> Image.Image:
    """Return a picture of each pair of levels that there is, side by side."""
    margin = 24
    sheet = Image.new("RGB", (LEVELS * size + margin, LEVELS * size + margin), "#ffffff")
    draw = ImageDraw.Draw(sheet)
    draw.text((margin, 6), "SYNTHETIC scenes: ES 1 to 5 downwards, SS 1 to 5 to the right", "#b00020")
    for (entity, semantic), image in shown.items():
        sheet.paste(image, (margin + (semantic - 1) * size, margin + (entity - 1) * size))
    for level in range(LEVELS):
        draw.text((8, margin + int((level + 0.5) * size)), str(level + 1), "#000000")
    return sheet
