"""Statistics and named objects, by hand; texts that say what they are, with and without the classifier."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pl_fed.assets import AssetFetchError
from pl_fed.errors import FederatedConfigError
from pl_fed.isa.extractors import OfflineDescriber, classifier
from pl_fed.isa.extractors.classifier import NamedObject, ObjectNamer, windows
from pl_fed.isa.extractors.offline import describe
from pl_fed.isa.extractors.statistics import CELLS, edge_strength, measure
from pl_fed.isa.parsing import parse
from tests.helpers.isa import loaded, picture


def half(left: str, right: str) -> Image.Image:
    image = Image.new("RGB", (90, 90), left)
    image.paste(right, (45, 0, 90, 90))
    return image


def test_colours_and_light() -> None:
    """Half red, half white: grey values 76 and 255 of 255 by Pillow's weights."""
    found = measure(half("#ff0000", "#ffffff"))
    assert found.colours == (("red", 0.5), ("white", 0.5))
    assert found.brightness == pytest.approx((76 + 255) / 2 / 255) and found.contrast == pytest.approx(179 / 2 / 255)


@pytest.mark.parametrize(
    ("colour", "name"),
    [("#000000", "black"), ("#808080", "grey"), ("#7a4a1e", "brown"), ("#ff8800", "orange"), ("#eeee00", "yellow"),
     ("#00aa00", "green"), ("#00cccc", "cyan"), ("#0000ff", "blue"), ("#9900ee", "purple"), ("#ff3388", "pink"),
     ("#ff0010", "red")],
)  # fmt: skip
def test_names_of_colours(colour: str, name: str) -> None:
    assert measure(Image.new("RGB", (5, 5), colour)).colours == ((name, 1.0),)


def test_edges_by_hand() -> None:
    grey = np.array([[0.0, 1.0], [0.5, 0.5]])
    assert edge_strength(grey).tolist() == [[1.0, 0.5], [0.0, 0.0]]


def test_layout() -> None:
    """All edges of two halves lie on the line between them, in the column of the centre."""
    found = measure(half("black", "white"))
    assert found.busy == ("top", "centre", "bottom") and found.cells[CELLS.index("centre")] == pytest.approx(1 / 3)
    assert found.detail == pytest.approx(1 / 90)
    assert measure(Image.new("RGB", (2, 2))).busy == () and len(measure(Image.new("RGB", (1, 1))).cells) == 9


class ByBrightness(torch.nn.Module):
    """Class 0 for a dark window, class 1 for a bright one, each with probability sigmoid(8)."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        bright = pixels.mean((1, 2, 3)) > 0
        scores = torch.zeros(len(pixels), 2)
        scores[torch.arange(len(pixels)), bright.long()] = 8.0
        return scores


def test_objects_have_places() -> None:
    """White is 1 and black -127/128, so the whole is just bright; a sixth of a window on the right is white."""
    found = ObjectNamer(ByBrightness(), ["night", "day"], threshold=0.5).name(half("white", "black"))
    assert {o.name: o.place for o in found} == {"day": "whole", "night": "upper right"}
    assert all(o.probability == pytest.approx(1 / (1 + np.exp(-8))) for o in found)
    assert ObjectNamer(ByBrightness(), ["night", "day"], threshold=1.0).name(picture()) == []


def test_windows_are_normalised() -> None:
    assert windows(Image.new("RGB", (30, 50), (127, 255, 0)))[:, :, 100, 100].tolist() == [[0.0, 1.0, -127 / 128]] * 5


@pytest.fixture
def no_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> str:
        raise AssetFetchError("expected `pip` to succeed but got a machine without a network.\nmore lines")

    monkeypatch.setattr(classifier, "resolve_model", refuse)


def test_without_a_classifier_statistics_remain(no_classifier: None, tmp_path: Path) -> None:
    extractor = OfflineDescriber()
    with pytest.warns(UserWarning, match="names no objects: its classifier could not be fetched .*without a network"):
        assert extractor.settings["classifier"] is None
    text = extractor.extract(loaded(half("red", "white"), tmp_path), "naive")
    assert text.startswith("Objects: None\n") and "Colours: red 50%, white 50%" in text
    assert text.endswith(
        "comes from image statistics alone: it does not understand events, relations, causes or feelings."
    )
    assert extractor.settings == OfflineDescriber(classifier=False).settings


def test_sections_hold_only_what_can_be_known(no_classifier: None, tmp_path: Path) -> None:
    extractor = OfflineDescriber(classifier=False)
    story = parse(extractor.extract(loaded(Image.new("RGB", (9, 9), "black"), tmp_path), "cot"))
    assert {key: f.clues for key, f in story.findings.items()} == {"special_time": ("the picture is dark",)}
    assert story.description == extractor.extract(loaded(Image.new("RGB", (9, 9), "black"), tmp_path), "naive")


def test_the_packaged_classifier_is_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Random weights in the place of the real ones: names, threshold and settings go through the real path."""
    torch.manual_seed(0)
    network = classifier.EfficientNet.from_name(classifier.WEIGHTS)
    save_file({name: t.contiguous() for name, t in network.state_dict().items()}, tmp_path / "model.safetensors")
    names = [f"thing {i}" for i in range(1000)]
    names[int(network.eval()(windows(picture())[:1]).argmax())] = "library"
    (tmp_path / "imagenet1k_clean_names.json").write_text(json.dumps(names))
    monkeypatch.setattr(classifier, "resolve_model", lambda name: str(tmp_path))
    before = torch.random.get_rng_state()
    extractor = OfflineDescriber(threshold=1e-6)
    story = parse(extractor.extract(loaded(picture(), tmp_path), "questions"))
    assert torch.equal(before, torch.random.get_rng_state())
    assert "looks like: library" in story.findings["special_location"].clues
    assert story.description.startswith("Objects: ") and extractor.settings["threshold"] == 1e-6


def test_objects_in_words() -> None:
    text = describe(measure(picture()), [NamedObject("cup", 0.812, "whole"), NamedObject("lamp", 0.4, "upper left")])
    assert text.startswith("Objects: cup (81%, whole picture); lamp (40%, upper left)\n")
    assert describe(measure(picture()), []).startswith("Objects: None\n")


def test_threshold_is_a_probability() -> None:
    with pytest.raises(FederatedConfigError, match="`threshold` above 0 and at most 1 but got 0"):
        OfflineDescriber(threshold=0.0)
