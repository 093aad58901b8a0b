"""Tiny models of real classes, saved and loaded through the real path; no torchvision."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from pl_fed.assets import AssetNotFoundError
from pl_fed.errors import FederatedConfigError
from pl_fed.isa.extractor import ExtractionError
from pl_fed.isa.extractors import LocalExtractor, Placement
from pl_fed.isa.extractors.local import TASKS
from tests.helpers import tiny_vision
from tests.helpers.isa import loaded, picture

pytestmark = pytest.mark.filterwarnings("ignore:.*swigvarlink.*:DeprecationWarning")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    done: dict[str, Path] = {}

    def make(kind: str) -> str:
        if kind not in done:
            done[kind] = tmp_path_factory.mktemp(kind)
            getattr(tiny_vision, kind)(done[kind])
        return str(done[kind])

    return make


@pytest.mark.parametrize("kind", ["idefics3", "llava", "florence2", "blip"])
def test_a_description_is_what_the_model_generates(saved: Callable[[str], str], tmp_path: Path, kind: str) -> None:
    """The same as processor, `generate` and decoding by hand; twice the same; the prompt is not in it."""
    folder, image = saved(kind), loaded(picture(), tmp_path)
    extractor = LocalExtractor(folder, max_new_tokens=6)
    text = extractor.extract(image, "naive")
    assert 0 < len(text) <= 6 and text == LocalExtractor(folder, max_new_tokens=6).extract(image, "naive")
    assert len(LocalExtractor(folder, max_new_tokens=12).extract(image, "naive")) > len(text)
    if kind in TASKS:
        processor, model = AutoProcessor.from_pretrained(folder), AutoModelForImageTextToText.from_pretrained(folder)
        inputs = processor(images=image.pixels, text=TASKS[kind] or None, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        assert processor.batch_decode(ids, skip_special_tokens=True)[0].strip() == text


@pytest.mark.parametrize("kind", ["idefics3", "llava"])
def test_the_image_matters(saved: Callable[[str], str], kind: str) -> None:
    extractor = LocalExtractor(saved(kind), max_new_tokens=20)
    assert len({extractor.ask(picture(seed), "What?", 20) for seed in range(6)}) > 1


def test_modes_of_a_model_that_chats(saved: Callable[[str], str], tmp_path: Path) -> None:
    extractor = LocalExtractor(saved("idefics3"), max_new_tokens=4)
    image = loaded(picture(), tmp_path)
    assert len(extractor.extract(image, "cot")) <= 4
    assert extractor.extract(image, "questions").startswith("Special time\nClue(s):\n")


@pytest.mark.parametrize("mode", ["cot", "questions"])
def test_a_model_of_fixed_tasks_only_describes(saved: Callable[[str], str], tmp_path: Path, mode: str) -> None:
    with pytest.raises(FederatedConfigError, match=f"Expected `mode` naive for .* but got '{mode}'"):
        LocalExtractor(saved("florence2")).extract(loaded(picture(), tmp_path), mode)  # type: ignore[arg-type]


def test_dtype_and_settings(saved: Callable[[str], str]) -> None:
    folder = saved("idefics3")
    half = LocalExtractor(folder, 3, Placement(dtype="bfloat16"))
    assert len(half.ask(picture(), "What?", 3)) <= 3
    assert half.settings != LocalExtractor(folder, 3).settings != LocalExtractor(folder, 4).settings
    assert LocalExtractor(folder, 3).settings == LocalExtractor(folder, 3).settings


def test_a_failing_model_is_an_error_of_the_image(saved: Callable[[str], str]) -> None:
    extractor = LocalExtractor(saved("blip"), task="x" * 200)  # longer than its 64 positions
    with pytest.raises(ExtractionError, match="the model failed: "):
        extractor.ask(picture(), "", 5)


def test_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(AssetNotFoundError, match="Expected `extractor.model` to be a local folder.*'no/model'"):
        LocalExtractor("no/model").ask(picture(), "What?", 5)
    with pytest.raises(FederatedConfigError, match="`extractor.model` to be a vision-language model but"):
        LocalExtractor(str(tmp_path)).ask(picture(), "What?", 5)
    with pytest.raises(FederatedConfigError, match="`max_new_tokens` of at least 1 but got 0"):
        LocalExtractor(max_new_tokens=0)
