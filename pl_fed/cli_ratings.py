"""The commands ``agreement``, of raters, and ``scenes``, synthetic pictures with known scores."""

import textwrap
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from rich.console import Console

from pl_fed.cli_parser import CommandParser
from pl_fed.isa.agreement import LEGEND, AgreementConfig, agreement
from pl_fed.isa.agreement_report import agreement_table, check_output, write_agreement
from pl_fed.isa.ratings import Missing, Scale, read_ratings
from pl_fed.isa.scenes.folder import SceneConfig, write_scenes
from pl_fed.isa.scenes.raters import RaterConfig


def run_agreement(arguments: Sequence[str]) -> None:
    """Print how far the raters of a file agree, and write it where asked.

    Args:
        arguments: The command line after ``agreement``.
    """
    parser = CommandParser(prog="cli.py agreement", description="How far raters agree, with intervals over images.")
    parser.add_argument("ratings", type=str, help="A .csv, .tsv, .jsonl or .parquet file; see docs/isa.md.")
    parser.add_argument("--scale", type=Scale, default="auto", help="Of the ratings; auto finds out.")
    text = "allow: an empty cell means that the rater has not rated the image."
    parser.add_argument("--missing", type=Missing, default="error", help=text)
    parser.add_class_arguments(AgreementConfig, None)
    parser.add_argument("--output", type=str | None, default=None, help="Also write a .csv or .json file.")
    given = parser.instantiate(parser.parse_args(list(arguments)))
    output = None if given.output is None else check_output(given.output)
    config = AgreementConfig(**{field.name: given[field.name] for field in fields(AgreementConfig)})
    rows = agreement(read_ratings(given.ratings, given.scale, given.missing), config)
    console = Console()
    console.print(agreement_table(rows, Path(given.ratings).name, config.level))
    console.print(textwrap.fill(LEGEND, min(console.width, 100)), markup=False, highlight=False)
    if output is not None:
        write_agreement(rows, output)
        console.print(f"Report: {output}", markup=False, highlight=False, soft_wrap=True)


def run_scenes(arguments: Sequence[str]) -> None:
    """Write a folder of synthetic scenes.

    Args:
        arguments: The command line after ``scenes``.
    """
    text = "Draws SYNTHETIC story scenes with known scores, with texts and simulated raters."
    parser = CommandParser(prog="cli.py scenes", description=text)
    parser.add_argument("--output", type=str, required=True, help="A new or an empty folder.")
    parser.add_class_arguments(SceneConfig, None)
    parser.add_class_arguments(RaterConfig, None)
    given = parser.instantiate(parser.parse_args(list(arguments)))
    config = SceneConfig(**{field.name: given[field.name] for field in fields(SceneConfig)})
    raters = RaterConfig(**{field.name: given[field.name] for field in fields(RaterConfig)})
    folder = write_scenes(given.output, config, raters)
    print(f"{config.num_images} SYNTHETIC scenes: {folder}")
