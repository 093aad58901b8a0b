"""The commands as a user has them, from a folder with odd files to tables, sheets and pages."""

import csv
import io
import json
from pathlib import Path
from typing import cast

import pytest
from rich.console import Console

from pl_fed.cli import main
from pl_fed.isa.commands.score import score_table
from pl_fed.isa.tables import Row, read_rows
from tests.helpers.isa import saved

OFFLINE = ["--extractor=OfflineDescriber", "--extractor.classifier=false"]
pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_FED_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for i in range(3):
        saved(folder, f"{i}.png", i)
    saved(folder, "[b]copy.png", 0)
    (folder / "bad.png").write_text("no image")
    return folder


def test_score_extract_and_precomputed_agree(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Scores from extracted texts are those of the command that extracts by itself."""
    main(["score", str(photos), *OFFLINE, "--output", "s.csv"])
    shown = capsys.readouterr().out
    rows = {row["file_name"]: row for row in read_rows("s.csv")}
    assert set(rows) == {"0.png", "1.png", "2.png", "[b]copy.png", "bad.png"}
    assert rows["bad.png"]["error"] == "no image of a format that Pillow reads" and not rows["bad.png"]["entity_score"]
    assert rows["[b]copy.png"]["note"] == "the same content as 0.png"
    good = rows["0.png"]
    assert (good["entity_direction"], good["semantic_direction"]) == (
        "higher is more crowded, the middle is best",
        "higher is richer",
    )
    assert good["entity_1_to_5"] == pytest.approx(1 + 4 * good["entity_score"])
    assert "ES (Entity Score, 1-5): higher is more crowded" in " ".join(shown.split())
    main(["extract", str(photos), *OFFLINE, "--output", "t.jsonl"])
    lines = [json.loads(line) for line in Path("t.jsonl").read_text().splitlines()]
    assert [set(line) for line in lines if line["file_name"] == "0.png"] == [{"file_name", "model_output"}]
    main(
        ["score", str(photos), "--extractor=PrecomputedExtractor", "--extractor.path=t.jsonl", "--output", "p.parquet"]
    )
    again = {row["file_name"]: row for row in read_rows("p.parquet")}
    for name in ("0.png", "1.png", "2.png", "[b]copy.png"):
        assert again[name]["semantic_score"] == rows[name]["semantic_score"]
        assert again[name]["model_output"] == rows[name]["model_output"]


def test_the_second_run_does_nothing(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    for _ in range(2):
        main(["score", str(photos), *OFFLINE])
    assert [r.getMessage() for r in caplog.records if "are new" in r.getMessage()] == [
        "3 of 5 texts are new.",
        "0 of 5 texts are new.",
    ]


def test_an_endpoint_says_what_it_will_cost_and_asks_nobody(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Three different images of five files; nothing listens at that address, and no output is written."""
    caplog.set_level("INFO")
    asks = ["--extractor=EndpointExtractor", "--extractor.base_url=http://127.0.0.1:9/v1", "--extractor.model=m"]
    price = ["--extractor.price.per_million_input=2", "--extractor.price.per_million_output=10"]
    for command in ("extract", "score"):
        main([command, str(photos), *asks, *price, "--estimate_only", "--output", "texts.jsonl"])
    said = [r.getMessage() for r in caplog.records if "have no text yet" in r.getMessage()]
    assert len(said) == 2 and said[0] == said[1] and not Path("texts.jsonl").exists()
    assert said[0].startswith("3 of 5 images have no text yet. At most 3 requests, ") and "cost of 0.0" in said[0]


def printed(rows: list[Row], max_rows: int) -> str:
    console = Console(width=200, file=io.StringIO())
    console.print(score_table(rows, max_rows))
    return cast(io.StringIO, console.file).getvalue()


def test_names_are_no_markup(photos: Path) -> None:
    main(["score", str(photos), *OFFLINE, "--output=s.json"])
    text = printed(read_rows("s.json"), 9)
    assert "[b]copy.png" in text and "error: no image of a format" in text and "more rows" not in text
    assert "3 more rows" in printed(read_rows("s.json"), 2)


@pytest.mark.parametrize("name", ["sheet.png", "sheet.html"])
def test_select(photos: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["score", str(photos), *OFFLINE, "--output=s.jsonl"])
    main(["select", "s.jsonl", "--min_ss", "0", "--es", "0", "0.9", "--top=2", "--output", name])
    assert "2 images with SS >= 0 and 0 <= ES <= 0.9, the best 2: " in capsys.readouterr().out
    assert Path(name).stat().st_size > 0
    main(["select", "s.jsonl", "--min_ss=1", "--output=none.png"])
    assert "no sheet was written" in capsys.readouterr().out and not Path("none.png").exists()


@pytest.mark.parametrize("link", [False, True])
def test_rate(photos: Path, link: bool) -> None:
    with pytest.warns(UserWarning, match="'bad.png' is left out: no image of a format"):
        main(["rate", str(photos), "--rater", "Ann", "--output", "pages/page.html", *(["--link"] if link else [])])
    page = Path("pages/page.html").read_text()
    assert ("../photos/%5Bb%5Dcopy.png" in page) == link and ("data:image/jpeg" in page) != link


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score", "{photos}", "--scorer=HeuristicScorer", "--scorer.words_scale=0"], "Expected `words_scale` above 0"),
        (["score", "nope"], "Expected 'nope' to be a file, a folder or a glob"),
        (["score", "{photos}", "--output=s.txt"], "Expected `output` to end in .csv"),
        (
            ["score", "{photos}", "--output={photos}/bad.png/s.csv"],
            "Expected `output` to be a file that can be written",
        ),
        (["extract", "{photos}", "--output=s.csv"], "Expected `output` to end in .jsonl"),
        (["score", "{photos}/bad.png"], "Expected at least one image with a text but all 1 failed"),
        (["select", "nope.csv", "--output=x.png"], "Expected `scores` to be a table but 'nope.csv' cannot be read"),
        (["select", "s.csv", "--output=x.gif"], "Expected `output` to end in .png, .html"),
        (["rate", "{photos}", "--rater= ", "--output=p.html"], "Expected a name in `rater`"),
        (["rate", "{photos}/bad.png", "--rater=A", "--output=p.html"], "Expected images that can be read but got none"),
    ],
)
@pytest.mark.filterwarnings("ignore:'bad.png' is left out")
def test_a_users_error_is_one_sentence(photos: Path, arguments: list[str], message: str) -> None:
    if arguments[0] == "score":
        arguments = [*arguments, *OFFLINE]
    with pytest.raises(SystemExit, match=f"pl_fed: {message}"):
        main([argument.format(photos=photos) for argument in arguments])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score", "x", "--exractor=y"], "got `exractor`: did you mean `extractor`?"),
        (["score", "x", "--mode=prose"], "`mode` to be one of 'naive', 'cot', 'questions' but got 'prose'"),
        (["score", "x", "--scorer=nowhere.S"], "Expected `scorer` to name a class but got 'nowhere.S'"),
    ],
)
def test_a_usage_error_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    printed = capsys.readouterr().err.strip()
    assert stopped.value.code == 2 and "\n" not in printed and message in printed


def test_isa_columns_come_first(photos: Path) -> None:
    main(["score", str(photos / "0.png"), *OFFLINE, "--output=s.csv"])
    with Path("s.csv").open(newline="") as stream:
        assert next(csv.reader(stream))[:3] == ["file_name", "entity_score", "semantic_score"]
