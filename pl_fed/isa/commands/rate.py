"""The command ``rate``: a page on which one rater rates the images of a folder by the rubric."""

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from jsonargparse import ArgumentParser
from lightning.fabric.utilities import rank_zero_warn
from rich import get_console

from pl_fed.errors import FederatedConfigError
from pl_fed.isa.html import data_uri
from pl_fed.isa.images import ImageFile, ImageReadError, find_images, read_image
from pl_fed.isa.rating_page import rating_page
from pl_fed.isa.tables import check_output

HELP = """\
Writes one HTML page to rate images from 1 to 5, blind and in an order of the rater's own. It works without a server:
ratings stay in the browser until they are downloaded as CSV (file_name, rater, entity, semantic). One page a rater.
"""


def make_parser(parser_class: type[ArgumentParser] = ArgumentParser) -> ArgumentParser:
    """Return the parser of the command."""
    parser = parser_class(prog="cli.py rate", description=HELP)
    parser.add_argument("paths", nargs="+", help="Folders, files or globs of images.")
    parser.add_argument("--rater", type=str, required=True, help="Name of the rater, as it stands in the table.")
    parser.add_argument("--output", type=str, required=True, help="The page; ends in .html.")
    parser.add_argument("--max_side", type=int, default=1024, help="Longest side of the images in the page, in pixels.")
    text = "Refer to the images by relative paths; the page then works only beside them, and their names can be found."
    parser.add_argument("--link", action="store_true", help=text)
    return parser


def main(arguments: Sequence[str], parser_class: type[ArgumentParser] = ArgumentParser) -> None:
    """Run the command.

    Args:
        arguments: The command line after ``rate``.
        parser_class: What reports usage errors.
    """
    options = make_parser(parser_class).parse_args(list(arguments))
    check_output(options.output, (".html",))
    if not options.rater.strip() or options.max_side < 1:
        raise FederatedConfigError(
            f"Expected a name in `rater` and a `max_side` of at least 1 but got '{options.rater}' and "
            f"{options.max_side}: give both."
        )
    output = Path(options.output)
    found = [(file.name, _source(file, output, options)) for file in find_images(options.paths)]
    images = [(name, source) for name, source in found if source is not None]
    if not images:
        raise FederatedConfigError("Expected images that can be read but got none: see the warnings above.")
    output.write_text(rating_page(images, options.rater), encoding="utf-8")
    get_console().print(f"{len(images)} images for {options.rater}: {output}", markup=False)


def _source(file: ImageFile, output: Path, options: object) -> str | None:
    """Return an image's address; None if it cannot be read."""
    try:
        pixels = read_image(file).pixels
    except ImageReadError as error:
        rank_zero_warn(f"'{file.name}' is left out: {error}")
        return None
    if not getattr(options, "link", False):
        return data_uri(pixels, getattr(options, "max_side", 1024))
    return quote(os.fsencode(os.path.relpath(file.path.absolute(), output.absolute().parent)))
