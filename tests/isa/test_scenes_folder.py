"""What is told and rated of synthetic scenes, and the folder they fill."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pl_fed.cli import main
from pl_fed.errors import FederatedConfigError
from pl_fed.isa import story
from pl_fed.isa.agreement import AgreementConfig, agreement
from pl_fed.isa.ratings import read_ratings
from pl_fed.isa.scenes.compose import compose
from pl_fed.isa.scenes.folder import SceneConfig, write_scenes
from pl_fed.isa.scenes.raters import RaterConfig, rate
from pl_fed.isa.scenes.tell import Teller

SECTIONS = [section.title for section in story.SECTIONS]
CELLS = [(entity, semantic) for entity in range(1, 6) for semantic in range(1, 6)]

# Texts.


def sections_of(text: str) -> dict[str, str]:
    *parts, last = text.split("\n\n")
    found = {name: body for name, _, body in (part.partition("\nClue(s):\n") for part in parts)}
    return {**found, "Description": last.removeprefix("Description: ")}


def numbers(num: int) -> list[str]:
    return [str(number) for number in range(1, num + 1)]


@pytest.mark.parametrize(("entity", "semantic"), CELLS)
def test_texts_say_what_there_is(entity: int, semantic: int) -> None:
    scene = compose(entity, semantic, 5)
    found = sections_of(Teller(scene).chain_of_thought())
    assert list(found) == [*SECTIONS, "Description"]
    counts = {name: sum(clue.section == name for clue in scene.clues) for name in SECTIONS}
    counts["High-level event"] = sum(not event.limited for event in scene.events)
    counts["Event causal relationship"] = len(scene.links)
    for name, count in counts.items():
        *clues, conclusion = found[name].splitlines()
        assert clues == ["None"] if count == 0 else [clue.split(".")[0] for clue in clues] == numbers(len(clues))
        assert len(clues) == max(1, count * (1 + (name == "Event causal relationship")))  # a link has two ends
        assert (conclusion == "Conclusion: None") == (count == 0) and conclusion.count(".") == count
    naive = Teller(scene).naive()
    for text in (naive, found["Description"]):
        assert all(entity.name.removeprefix("the ") in text for entity in scene.entities)
    assert "because" not in naive and "Conclusion" not in naive
    assert Teller(scene).naive() == naive
    wordings = {Teller(scene, seed).chain_of_thought() for seed in range(6)}
    assert len(wordings) > 1  # other words
    assert len({tuple(sections_of(text)[name].startswith("None") for name in SECTIONS) for text in wordings}) == 1


# Raters.


def test_raters_without_faults_give_the_levels() -> None:
    levels = np.array(CELLS)
    exact = rate(levels, np.zeros(25, int), RaterConfig(noise=0, habit=0), seed=0)
    assert (exact == levels[:, None]).all() and exact.shape == (25, 3, 2)
    noisy = rate(levels, np.zeros(25, int), RaterConfig(noise=2.0), seed=0)
    assert noisy.min() == 1 and noisy.max() == 5 and (noisy != exact).any()
    np.testing.assert_array_equal(noisy[:7], rate(levels[:7], np.zeros(7, int), RaterConfig(noise=2.0), seed=0))


def test_site_bias_is_that_of_the_site() -> None:
    """Without noise, images of one level get one rating at a site, and another at another."""
    config = RaterConfig(noise=0, habit=0, site_bias=1.5, num_sites=6)
    found = rate(np.full((60, 2), 3), np.arange(60) % 6, config, seed=1)
    by_site = [set(map(tuple, found[site::6].reshape(-1, 2).tolist())) for site in range(6)]
    assert all(len(ratings) == 1 for ratings in by_site) and len(set.union(*by_site)) > 1


@pytest.mark.parametrize("change", [{"num_raters": 0}, {"num_sites": 0}, {"noise": -0.1}, {"habit": -1.0}])
def test_impossible_raters(change: dict[str, float]) -> None:
    with pytest.raises(FederatedConfigError, match=f"`{next(iter(change))}` to be at least . but got"):
        RaterConfig(**change)  # type: ignore[arg-type]


# The folder.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "scenes"
    main(["scenes", "--output", str(folder), "--num_images=75", "--seed=3", "--size=32", "--noise=0.5"])
    return folder


def test_everything_says_that_it_is_synthetic(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["README.md", "SYNTHETIC_contact.png", "images", "ratings.csv", "scenes.jsonl", "texts.jsonl"]
    pictures = sorted((folder / "images").iterdir())
    assert len(pictures) == 75 and all(path.name.startswith("synthetic_s3_") for path in pictures)
    for path in (pictures[0], folder / "SYNTHETIC_contact.png"):
        with Image.open(path) as image:
            assert image.info["Description"].startswith("SYNTHETIC")  # type: ignore[union-attr]
    assert "SYNTHETIC" in (folder / "README.md").read_text()
    for name in ("texts.jsonl", "scenes.jsonl"):
        assert all(json.loads(line)["synthetic"] is True for line in (folder / name).read_text().splitlines())
    ratings = read_ratings(folder / "ratings.csv")
    assert set(ratings.columns["synthetic"].values()) == {"true"}
    assert ratings.groups("site") == [f"synthetic_site_{i}" for i in range(3)]
    assert all(rater.startswith("synthetic_") for rater in ratings.raters)


def test_ratings_follow_the_levels(folder: Path) -> None:
    """Variance 2 of the levels, .25 of noise, .04 of habits and about 1/12 of rounding: ICC(2,1) of about .84."""
    ratings = read_ratings(folder / "ratings.csv")
    rows = [json.loads(line) for line in (folder / "scenes.jsonl").read_text().splitlines()]
    levels = np.array([(row["entity_level"], row["semantic_level"]) for row in rows])
    assert [row["file_name"] for row in rows] == list(ratings.file_names)
    assert np.abs(4 * ratings.means() + 1 - levels).mean() < 0.4
    found = agreement(ratings, AgreementConfig(icc=("ICC(2,1)",), num_resamples=0))
    values = [row.value for row in found if row.measure == "ICC(2,1)"]
    assert values == pytest.approx([0.84, 0.84], abs=0.06)


def test_a_folder_is_a_function_of_the_seed(folder: Path, tmp_path: Path) -> None:
    """Bit by bit; and a longer series begins with the shorter one."""
    again = write_scenes(tmp_path / "again", SceneConfig(num_images=30, seed=3, size=32), RaterConfig(noise=0.5))
    for path in sorted((again / "images").iterdir()):
        assert path.read_bytes() == (folder / "images" / path.name).read_bytes()
    for name in ("ratings.csv", "texts.jsonl", "scenes.jsonl"):
        assert (folder / name).read_text().startswith((again / name).read_text())
    other = write_scenes(tmp_path / "other", SceneConfig(num_images=1, seed=4, size=32))
    assert (other / "scenes.jsonl").read_text() != (again / "scenes.jsonl").read_text().splitlines(True)[0]


def test_refused(folder: Path) -> None:
    with pytest.raises(FederatedConfigError, match="a new or an empty folder as `output` but got '.*scenes': choose"):
        write_scenes(folder)
    with pytest.raises(FederatedConfigError, match="`num_images` to be at least 1 but got 0"):
        SceneConfig(num_images=0)
    with pytest.raises(FederatedConfigError, match="`size` of at least 32 pixels but got 31"):
        SceneConfig(size=31)
    with pytest.raises(FederatedConfigError, match="`seed` to be at least 0 but got -1"):
        SceneConfig(seed=-1)
