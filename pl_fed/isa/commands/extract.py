"""The command ``extract``: texts about images, in the layout of the ISA data."""

from collections.abc import Sequence

from jsonargparse import ArgumentParser
from rich import get_console

from pl_fed.isa.commands.options import add_extraction, full_names, say_cost, say_estimate, start
from pl_fed.isa.extraction import with_progress
from pl_fed.isa.images import find_images
from pl_fed.isa.tables import Row, check_output, write_rows

HELP = "Writes a text about each image, one JSON object a line with `file_name` and `model_output`."


def make_parser(parser_class: type[ArgumentParser] = ArgumentParser) -> ArgumentParser:
    """Return the parser of the command."""
    parser = parser_class(prog="cli.py extract", description=HELP)
    add_extraction(parser)
    parser.add_argument("--output", type=str, required=True, help="The file, which ends in .jsonl.")
    return parser


def main(arguments: Sequence[str], parser_class: type[ArgumentParser] = ArgumentParser) -> None:
    """Run the command.

    Args:
        arguments: The command line after ``extract``.
        parser_class: What reports usage errors.
    """
    parser = make_parser(parser_class)
    options = parser.instantiate(parser.parse_args(full_names(arguments)))
    check_output(options.output, (".jsonl",))
    files = find_images(options.paths)
    rows: dict[int, Row] = {}
    extraction, cache = start(options)
    with cache:
        say_estimate(extraction, files)
        if options.estimate_only:
            return
        for i, found in with_progress(extraction.run(files), len(files)):
            rows[i] = {"file_name": found.file.name, "model_output": found.text}
            rows[i] |= {"error": found.error} if found.error else {}
    write_rows([rows[i] for i in sorted(rows)], options.output)
    say_cost(extraction, len(files))
    errors = sum("error" in row for row in rows.values())
    get_console().print(f"{len(rows) - errors} texts and {errors} errors: {options.output}", markup=False)
