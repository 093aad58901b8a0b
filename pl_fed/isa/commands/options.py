"""Options that the commands for images share."""

import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from lightning.fabric.utilities import rank_zero_info

from pl_fed.assets import cache_dir
from pl_fed.isa.extraction import Extraction
from pl_fed.isa.extractor import Extractor
from pl_fed.isa.images import ImageFile
from pl_fed.isa.story import Mode
from pl_fed.isa.text_cache import TextCache

EXTRACTORS, SCORERS = "pl_fed.isa.extractors", "pl_fed.isa.scorers"
_PACKAGES = {"--extractor": EXTRACTORS, "--scorer": SCORERS}


def add_extraction(parser: ArgumentParser) -> None:
    """Add paths, ``--extractor``, ``--mode``, ``--cache``, ``--retry_errors`` and ``--estimate_only``."""
    parser.add_argument("paths", nargs="+", help="Image files, folders of them, or globs.")
    parser.add_argument(
        "--extractor",
        type=Extractor,
        default={"class_path": f"{EXTRACTORS}.OfflineDescriber"},
        help="What writes the texts: OfflineDescriber, LocalExtractor, EndpointExtractor, PrecomputedExtractor, or the"
        " class path of your own; `--extractor.help NAME` lists the options of one.",
    )
    parser.add_argument(
        "--mode",
        type=Mode,
        default="cot",
        help="naive: a description; cot: clues and conclusions by section; questions: the same, asked one by one.",
    )
    parser.add_argument("--cache", type=str, default=str(cache_dir() / "isa" / "texts.sqlite"), help="File of texts.")
    parser.add_argument("--retry_errors", action="store_true", help="Try again what failed in an earlier run.")
    parser.add_argument("--estimate_only", action="store_true", help="Say what the texts will cost at most, and end.")


def full_names(arguments: Sequence[str]) -> list[str]:
    """Return arguments with our own classes by their whole path.

    Example:
        >>> full_names(["a.png", "--scorer", "HeuristicScorer", "--scorer.words_scale=3"])
        ['a.png', '--scorer', 'pl_fed.isa.scorers.HeuristicScorer', '--scorer.words_scale=3']
    """
    found: list[str] = []
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if equals and option in _PACKAGES:
            argument = f"{option}={_full_name(value, _PACKAGES[option])}"
        elif found and re.sub(r"\.help$", "", found[-1]) in _PACKAGES:
            argument = _full_name(argument, _PACKAGES[re.sub(r"\.help$", "", found[-1])])
        found.append(argument)
    return found


def _full_name(name: str, package: str) -> str:
    known = importlib.import_module(package).__all__
    return f"{package}.{name}" if name in known else name


def start(options: Any) -> tuple[Extraction, TextCache]:
    """Return what runs the extraction, and the cache that has to be closed in the end."""
    cache = TextCache(Path(options.cache).expanduser())
    try:
        return Extraction(options.extractor, options.mode, cache, options.retry_errors), cache
    except BaseException:
        cache.close()
        raise


def say_estimate(extraction: Extraction, files: Sequence[ImageFile]) -> None:
    """Print what the texts that are not in the cache will cost at most, where they cost anything."""
    if extraction.extractor.estimate(1, extraction.mode):  # else images are not read for it
        num_new = extraction.count_new(files)
        estimate = extraction.extractor.estimate(num_new, extraction.mode)
        rank_zero_info(f"{num_new} of {len(files)} images have no text yet. At most {estimate}")


def say_cost(extraction: Extraction, num_images: int) -> None:
    """Print how many texts were new, and what they cost."""
    report = extraction.extractor.report()
    rank_zero_info(f"{extraction.num_extracted} of {num_images} texts are new.{' ' + report if report else ''}")
