"""From files to texts: what is repeated, what is kept, and which errors come back."""

from pathlib import Path

import pytest

from pl_fed.errors import FederatedConfigError
from pl_fed.isa.extraction import Extracted, Extraction, with_progress
from pl_fed.isa.extractor import check_mode
from pl_fed.isa.images import ImageFile
from pl_fed.isa.story import Mode
from pl_fed.isa.text_cache import TextCache
from tests.helpers.isa import Recorder, saved


def run(
    extractor: Recorder, files: list[ImageFile], cache: Path | None, mode: Mode = "naive", retry: bool = False
) -> list[Extracted]:
    if cache is None:
        found = dict(Extraction(extractor, mode, None, retry).run(files))
    else:
        with TextCache(cache) as texts:
            found = dict(Extraction(extractor, mode, texts, retry).run(files))
    return [found[i] for i in range(len(files))]


def test_nothing_is_done_twice(tmp_path: Path) -> None:
    files = [saved(tmp_path, f"{i}.png", i) for i in range(3)]
    first, second, other = Recorder(), Recorder(), Recorder()
    before = run(first, files, tmp_path / "t.sqlite")
    assert run(second, files, tmp_path / "t.sqlite") == before or [e.text for e in before] == [
        e.text for e in run(Recorder(), files, tmp_path / "t.sqlite")
    ]
    assert first.asked == ["0.png", "1.png", "2.png"] and second.asked == []
    run(other, files, tmp_path / "t.sqlite", mode="cot")
    assert len(other.asked) == 3, "another mode is another text"


def test_the_same_content_is_extracted_once(tmp_path: Path) -> None:
    files = [saved(tmp_path, "a.png"), saved(tmp_path, "b.png")]
    extractor = Recorder()
    first, second = run(extractor, files, tmp_path / "t.sqlite")
    assert extractor.asked == ["a.png"] and first.text == second.text and first.note == ""
    assert second.note == "the same content as a.png"


def test_errors_stay_until_they_are_asked_for(tmp_path: Path) -> None:
    files = [saved(tmp_path, f"{i}.png", i) for i in range(2)]
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    found = run(Recorder(broken=("0.png",)), [ImageFile(bad, "bad.png"), *files], tmp_path / "t.sqlite")
    assert [e.error for e in found] == ["no image of a format that Pillow reads", "it is broken", ""]
    healed = Recorder()
    assert [e.error for e in run(healed, files, tmp_path / "t.sqlite")] == ["it is broken", ""] and healed.asked == []
    assert [e.error for e in run(healed, files, tmp_path / "t.sqlite", retry=True)] == ["", ""]
    assert healed.asked == ["0.png"]


def test_what_failed_for_now_is_tried_in_the_next_run(tmp_path: Path) -> None:
    (file,) = [saved(tmp_path, "a.png")]
    assert run(Recorder(away=("a.png",)), [file], tmp_path / "t.sqlite")[0].error == "nobody is there"
    assert run(Recorder(), [file], tmp_path / "t.sqlite")[0].error == ""


def test_nobody_is_asked_for_ever(tmp_path: Path) -> None:
    """Three failures in a row, then no more questions."""
    files = [saved(tmp_path, f"{i}.png", i) for i in range(6)]
    extractor = Recorder(away=tuple(f"{i}.png" for i in range(6)))
    found = run(extractor, files, tmp_path / "t.sqlite")
    assert extractor.asked == ["0.png", "1.png", "2.png"]
    assert found[5].error == "not tried, since the 3 images before got no answer"


def test_without_a_cache(tmp_path: Path) -> None:
    extractor = Recorder()
    run(extractor, [saved(tmp_path, "a.png"), saved(tmp_path, "b.png")], None)
    assert extractor.asked == ["a.png", "b.png"]


def test_unknown_mode() -> None:
    with pytest.raises(FederatedConfigError, match="Expected `mode` to be one of naive, cot, questions but got 'x'"):
        check_mode("x")


def test_progress_passes_everything_on() -> None:
    items = [(i, Extracted(ImageFile(Path(str(i)), str(i)))) for i in range(3)]
    assert list(with_progress(items, 3)) == items
