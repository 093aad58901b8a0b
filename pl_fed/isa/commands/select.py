"""The command ``select``: a contact sheet of the images whose scores are in a band."""

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser
from rich import get_console

from pl_fed.isa.selection import Criteria, select
from pl_fed.isa.sheet import write_html, write_png
from pl_fed.isa.tables import check_output, read_rows

HELP = """\
Takes the images of a table that `score` wrote with a semantic score from --min_ss on and an entity score inside --es,
the highest semantic score first, and draws them on one sheet. Scores are those from 0 to 1.
"""


def make_parser(parser_class: type[ArgumentParser] = ArgumentParser) -> ArgumentParser:
    """Return the parser of the command."""
    parser = parser_class(prog="cli.py select", description=HELP)
    parser.add_argument("scores", help="A table that `score` wrote.")
    parser.add_argument("--min_ss", type=float, default=0.0, help="Lowest semantic score.")
    parser.add_argument("--es", type=float, nargs=2, default=[0.0, 1.0], help="Lowest and highest entity score.")
    parser.add_argument("--top", type=int | None, help="Most images.")
    parser.add_argument("--folder", type=str | None, help="Where the images are, if they have moved since.")
    parser.add_argument("--output", type=str, required=True, help="The sheet; ends in .png or .html.")
    return parser


def main(arguments: Sequence[str], parser_class: type[ArgumentParser] = ArgumentParser) -> None:
    """Run the command.

    Args:
        arguments: The command line after ``select``.
        parser_class: What reports usage errors.
    """
    options = make_parser(parser_class).parse_args(list(arguments))
    check_output(options.output, (".png", ".html"))
    criteria = Criteria(options.min_ss, (options.es[0], options.es[1]), options.top)
    rows = select(read_rows(options.scores), criteria)
    if not rows:
        get_console().print(f"No image has {criteria}; no sheet was written.", markup=False)
        return
    folder = None if options.folder is None else Path(options.folder)
    path = Path(options.output)
    if path.suffix.lower() == ".png":
        write_png(rows, path, folder)
    else:
        write_html(rows, path, folder, str(criteria))
    get_console().print(f"{len(rows)} images with {criteria}: {path}", markup=False)
