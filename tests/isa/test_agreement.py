"""Agreement of raters against scipy and the published example, and the command that prints it."""

import csv
import json
import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from pl_fed.cli import main
from pl_fed.errors import FederatedConfigError
from pl_fed.isa.agreement import AgreementConfig, AgreementRow, agreement
from pl_fed.isa.agreement_report import write_agreement
from pl_fed.isa.ratings import Ratings

SHROUT_FLEISS = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
QUICK = AgreementConfig(num_resamples=40)


def ratings(entity: object, semantic: object | None = None) -> Ratings:
    """Make ratings of raters r0, r1, ... from a table (images, raters) for each score."""
    scores = np.stack([np.asarray(entity, float), np.asarray(entity if semantic is None else semantic, float)], -1)
    files, raters = (tuple(f"{name}{i}" for i in range(n)) for name, n in zip("ir", scores.shape[:2], strict=True))
    return Ratings("made here", files, raters, scores)


def find(rows: list[AgreementRow], score: str, measure: str, raters: str | None = None) -> AgreementRow:
    return next(r for r in rows if (r.score, r.measure) == (score, measure) and raters in (None, r.raters))


def test_pairs_are_those_of_scipy() -> None:
    """Levels with ties; the mean of pairs, and the intervals around."""
    rng = np.random.default_rng(0)
    truth = rng.integers(1, 6, 60)
    table = np.clip(truth[:, None] + rng.integers(-1, 2, (60, 3)), 1, 5)
    other = np.clip(truth[:, None] + rng.integers(-2, 3, (60, 3)), 1, 5)
    rows = agreement(ratings(table, other), QUICK)
    references = {"PCC": stats.pearsonr, "SRCC": stats.spearmanr, "Kendall tau-b": stats.kendalltau}
    for measure, reference in references.items():
        values = [reference(table[:, a], table[:, b]).statistic for a, b in combinations(range(3), 2)]
        found = [find(rows, "entity", measure, f"r{a} - r{b}") for a, b in combinations(range(3), 2)]
        assert [row.value for row in found] == pytest.approx(values)
        mean = find(rows, "entity", measure, "mean of pairs")
        assert mean.value == pytest.approx(np.mean(values)) and mean.low < mean.value < mean.high
        assert find(rows, "semantic", measure, "r0 - r2").value == pytest.approx(
            reference(other[:, 0], other[:, 2]).statistic
        )
    mean_pcc = find(rows, "entity", "PCC", "mean of pairs").value
    assert find(rows, "entity", "Spearman-Brown").value == pytest.approx(3 * mean_pcc / (1 + 2 * mean_pcc))
    others = [np.delete(table, rater, 1).mean(1) for rater in range(3)]
    human = [stats.spearmanr(table[:, rater], others[rater]).statistic for rater in range(3)]
    assert find(rows, "entity", "SRCC", "one against the others").value == pytest.approx(np.mean(human))
    off = [np.sqrt(np.mean((table[:, rater] - others[rater]) ** 2)) for rater in range(3)]
    assert find(rows, "entity", "RMSE").value == pytest.approx(np.mean(off))
    assert {row.num_images for row in rows} == {60}
    assert rows == agreement(ratings(table, other), QUICK)


def test_icc_is_the_published_one() -> None:
    config = AgreementConfig(icc=("ICC(2,1)", "ICC(3,1)", "ICC(2,k)", "ICC(3,k)"), num_resamples=0)
    rows = agreement(ratings(SHROUT_FLEISS), config)
    found = [round(find(rows, "entity", kind).value, 2) for kind in config.icc]
    assert found == [0.29, 0.71, 0.62, 0.91]
    assert all(math.isnan(row.low) for row in rows)


def test_nothing_but_pairs() -> None:
    rows = agreement(ratings(SHROUT_FLEISS), AgreementConfig(icc=(), num_resamples=5))
    assert not any(row.measure.startswith("ICC") for row in rows) and len(rows) == 2 * (3 * 7 + 1 + 3)


def test_unbalanced_ratings() -> None:
    """A pair is compared where both have rated; the ICC is that of the images with all ratings."""
    whole = np.array(SHROUT_FLEISS, float)
    table = np.concatenate([whole, [[3, 3, np.nan, np.nan], [np.nan, 1, 9, np.nan], [np.nan, np.nan, np.nan, 2]]])
    rows = agreement(ratings(table), QUICK)
    first = find(rows, "entity", "PCC", "r0 - r1")
    assert first.num_images == 7
    assert first.value == pytest.approx(stats.pearsonr([*whole[:, 0], 3], [*whole[:, 1], 3]).statistic)
    assert find(rows, "entity", "PCC", "mean of pairs").num_images == 6
    both = find(rows, "entity", "ICC(2,k)")
    assert (both.num_images, round(both.value, 2)) == (6, 0.62)
    apart = agreement(ratings([[1, 2, np.nan], [2, 3, np.nan], [np.nan, 1, 2], [np.nan, 3, 3]]), QUICK)
    assert find(apart, "entity", "ICC(2,k)").num_images == 0
    assert all(math.isnan(find(apart, "entity", name).value) for name in ("ICC(2,k)", "Spearman-Brown"))


def test_groups_by_themselves() -> None:
    """North agrees, south does the opposite; raters of the other group are not among the pairs."""
    table = np.full((6, 4), np.nan)
    table[:3, :2] = [[1, 1], [2, 2], [4, 4]]
    table[3:, 2:] = [[1, 4], [2, 2], [4, 1]]
    made = ratings(table)
    sites = {(i, r): "north" if r < 2 else "south" for i in range(6) for r in range(4) if not np.isnan(table[i, r])}
    made = Ratings(made.source, made.file_names, made.raters, made.scores, {"site": sites})
    rows = agreement(made, AgreementConfig(by="site", num_resamples=0))
    found = {row.group: row for row in rows if (row.score, row.measure) == ("entity", "SRCC") and "-" in row.raters}
    assert {group: row.num_images for group, row in found.items()} == {"north": 3, "south": 3}
    assert {group: row.value for group, row in found.items()} == pytest.approx({"north": 1, "south": -1})
    with pytest.raises(FederatedConfigError, match="at least two raters in group 'r0' of 'rater' but got r0: agree"):
        agreement(made, AgreementConfig(by="rater"))


def test_one_rater() -> None:
    with pytest.raises(FederatedConfigError, match="at least two raters in 'made here' but got r0"):
        agreement(ratings([[1], [2]]))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prints a table and writes what it prints as JSON and CSV."""
    lines = [f"i{i}.png,[red]{r},{SHROUT_FLEISS[i][r] / 10},{1 if r else 0.5}" for i in range(6) for r in range(4)]
    path = tmp_path / "mine.csv"
    path.write_text("\n".join(["file_name,rater,entity,semantic", *lines]))
    options = ["agreement", str(path), "--num_resamples=20", "--icc", '["ICC(2,k)", "ICC(3,1)"]']
    main([*options, f"--output={tmp_path / 'out' / 'report.json'}"])
    shown = capsys.readouterr().out
    assert "Agreement of raters: mine.csv" in shown and "absolute agreement" in shown and "not defined" in shown
    assert "[red]0" in shown, "a name is no markup"
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    found = next(row for row in written if (row["score"], row["measure"]) == ("entity", "ICC(2,k)"))
    assert round(found["value"], 2) == 0.62 and found["num_images"] == 6
    assert next(row for row in written if (row["score"], row["measure"]) == ("semantic", "PCC"))["value"] is None
    main([*options, f"--output={tmp_path / 'report.csv'}"])
    with (tmp_path / "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(written) and float(rows[0]["value"]) == pytest.approx(written[0]["value"])
    assert rows[-1]["value"] == "" or rows[-1]["score"] == "semantic"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nowhere.csv"], "pl_fed: Expected a table at 'nowhere.csv' but there is no such file"),
        (["r.csv", "--output=report.html"], "`output` to end in .csv or .json but got 'report.html'"),
    ],
)
def test_errors_of_the_command(options: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        main(["agreement", *options])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["r.csv", "--scale=1-7"], "Expected `scale` to be"),
        (["r.csv", "--sclae=1-5"], "Expected a known option but got `sclae`: did you mean `scale`"),
    ],
)
def test_usage_errors_are_one_sentence(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["agreement", *options])
    shown = capsys.readouterr().err
    assert shown.startswith("pl_fed: ") and message in shown and shown.count("\n") == 1


def test_refused_output(tmp_path: Path) -> None:
    with pytest.raises(FederatedConfigError, match="`output` to end in .csv or .json"):
        write_agreement([], tmp_path / "report.txt")
