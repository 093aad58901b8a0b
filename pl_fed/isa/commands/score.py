"""The command ``score``: two scores for each image, with the reasons, on the screen and in a table."""

import sys
from collections.abc import Sequence

from jsonargparse import ArgumentParser
from rich import get_console
from rich.table import Table
from rich.text import Text

from pl_fed.isa.assessment import assess
from pl_fed.isa.commands.options import SCORERS, add_extraction, full_names, say_cost, say_estimate, start
from pl_fed.isa.extraction import with_progress
from pl_fed.isa.images import find_images
from pl_fed.isa.rubric import RUBRICS
from pl_fed.isa.scorers.base import Scorer
from pl_fed.isa.tables import ENDINGS, Row, check_output, write_rows

HELP = """\
Gives each image an Entity Score and a Semantic Score, from 0 to 1 and from 1 to 5, with an uncertainty and the clues
that were found. Works without a network: what is there by default counts and was trained on no rating.
"""
_LONGEST = 70  # characters of a reason on the screen


def make_parser(parser_class: type[ArgumentParser] = ArgumentParser) -> ArgumentParser:
    """Return the parser of the command."""
    parser = parser_class(prog="cli.py score", description=HELP)
    add_extraction(parser)
    parser.add_argument(
        "--scorer",
        type=Scorer,
        default={"class_path": f"{SCORERS}.HeuristicScorer"},
        help="What gives the scores: HeuristicScorer, ZeroShotScorer, CheckpointScorer, or your own class path.",
    )
    parser.add_argument("--output", type=str | None, help=f"The table; ends in {', '.join(ENDINGS)}.")
    parser.add_argument("--show", type=int, default=20, help="Rows on the screen, those of the highest SS first.")
    return parser


def main(arguments: Sequence[str], parser_class: type[ArgumentParser] = ArgumentParser) -> None:
    """Run the command; exit code 1 if no image has scores.

    Args:
        arguments: The command line after ``score``.
        parser_class: What reports usage errors.
    """
    parser = make_parser(parser_class)
    options = parser.instantiate(parser.parse_args(full_names(arguments)))
    if options.output is not None:
        check_output(options.output)
    files = find_images(options.paths)
    extraction, cache = start(options)
    with cache:
        say_estimate(extraction, files)
        if options.estimate_only:
            return
        found = dict(assess(with_progress(extraction.run(files), len(files)), options.scorer))
    rows = [found[i] for i in sorted(found)]
    if options.output is not None:
        write_rows(rows, options.output)
    get_console().print(score_table(rows, options.show))
    say_cost(extraction, len(files))
    if options.output is not None:
        get_console().print(f"Scores: {options.output}", markup=False)
    if all(row["error"] for row in rows):
        sys.exit(f"pl_fed: Expected at least one image with a text but all {len(rows)} failed: see the errors above.")


def score_table(rows: Sequence[Row], max_rows: int) -> Table:
    """Return rows for the screen, those of the highest semantic score first, those with errors last.

    Args:
        rows: All rows.
        max_rows: How many are shown.
    """
    caption = "; ".join(f"{r.short} ({r.title}, 1-5): {r.direction}" for r in RUBRICS)
    left = len(rows) - max_rows
    table = Table(caption=f"{caption}. ±: standard deviation.{f' {left} more rows.' if left > 0 else ''}")
    table.add_column("image", overflow="fold")
    for rubric in RUBRICS:
        table.add_column(rubric.short, justify="right", no_wrap=True)
    table.add_column("why, or what is wrong", overflow="fold")
    # Texts, so that brackets in names and descriptions are no markup.
    for row in sorted(rows, key=lambda row: (bool(row["error"]), -(row["semantic_score"] or 0)))[:max_rows]:
        cells = [_cell(row, rubric.key) for rubric in RUBRICS]
        table.add_row(Text(row["file_name"]), *cells, Text(_reason(row)))
    return table


def _cell(row: Row, key: str) -> str:
    level, spread = row[f"{key}_1_to_5"], row[f"{key}_uncertainty"]
    return "-" if level is None else f"{level:.2f} ± {4 * spread:.2f}"


def _reason(row: Row) -> str:
    clues = [clue for section in row["clues"] for clue in section["clues"]]
    text = f"error: {row['error']}" if row["error"] else "; ".join(clues) or row["description"].replace("\n", "; ")
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 4]} ..."
