"""The command line's parser: a usage error is one sentence, with the option that was probably meant.

jsonargparse reports every type that it tried, indented, over many lines; the sentence is made from its innermost part.
"""

import importlib
import os
import re
import textwrap
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningArgumentParser

_UNKNOWN = re.compile(
    r"Option '(?P<option>[^']+)' is not accepted|Subcommand '[^']+' does not accept option '(?P<nested>[^']+)'"
    r"|Group '(?P<group>[^']+)' does not accept option '(?P<inner>[^']+)'"
    r"|unrecognized arguments: -*(?P<argument>[^\s=]+)"
)
_CLASS = re.compile(r"Problem with given class_path '(?P<path>[^']+)':\s*(?P<reason>.+)")
_NO_CLASS = re.compile(r"No module named|has no attribute|not a subclass|not correspond to a subclass|Not a valid")
_CHOICE = re.compile(r"argument (?P<key>\S+): invalid choice: '(?P<value>.*)' \(choose from (?P<choices>.+)\)")
_KEY = re.compile(r'^(?P<indent> *(?:- )?)Parser key "(?P<key>[^"]+)"', re.MULTILINE)
_TYPES = re.compile(r"Subtypes: \[(?P<types>.+)\]|Expected an? (?P<type>\S.*?)\. Got value")
_NESTED = re.compile(r"NestedArg\(key='(?P<key>[^']+)', val=(?P<value>.+)\)")
_VALUE = re.compile(r"(?:Given|Got) value: (?P<value>.+)")
_OURS = re.compile(r"Expected [^\n]*`[^\n]* but got [^\n]*")
_LONGEST = 300  # characters


class FederatedArgumentParser(LightningArgumentParser):
    """Lightning's parser with errors of one sentence, and with ``null`` for nested options."""

    def parse_args(  # type: ignore[override]  # as jsonargparse itself
        self, args: Sequence[str] | None = None, *more: Any, **options: Any
    ) -> Any:
        """Parse arguments; an inner parser gets a nested ``null`` as ``None``, which it would take for text."""
        if args is not None and not self.exit_on_error:
            args = [re.sub(r"^(--[^=]+)=None$", r"\1=null", arg) for arg in args]
        return super().parse_args(args, *more, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print one sentence and exit with code 2; with ``PL_FED_TRACEBACK=1`` all that jsonargparse says."""
        if not self.exit_on_error or os.environ.get("PL_FED_TRACEBACK"):
            super().error(message, ex)
        self.exit(2, f"pl_fed: {usage_sentence(message, _options(self))}\n")


class CommandParser(ArgumentParser):
    """The parser of a command beside Lightning's, with the same errors of one sentence."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print one sentence and exit with code 2; with ``PL_FED_TRACEBACK=1`` all that jsonargparse says."""
        if not self.exit_on_error or os.environ.get("PL_FED_TRACEBACK"):
            super().error(message, ex)
        self.exit(2, f"pl_fed: {usage_sentence(message, _options(self))}\n")


def own_sentence(message: str) -> str | None:
    """Return the sentence of pl_fed inside another error's text, if there is one."""
    found = _OURS.search(message)
    return None if found is None else found.group()


def usage_sentence(message: str, known: Iterable[str]) -> str:
    """Make one sentence of jsonargparse's message.

    Args:
        message: All of its lines.
        known: The options of the command line, without dashes.

    Example:
        >>> usage_sentence("unrecognized arguments: --trainer.max_epohs 3", ["trainer.max_epochs", "data"])
        'Expected a known option but got `trainer.max_epohs`: did you mean `trainer.max_epochs`?'
    """
    return (
        own_sentence(message)
        or _unknown_option(message, known)
        or _unknown_class(message)
        or _wrong_choice(message)
        or _wrong_value(message)
        or f"Expected options as in `--help` but got an error: {_short(message).rstrip('.')}."
    )


def _unknown_option(message: str, known: Iterable[str]) -> str | None:
    found = list(_UNKNOWN.finditer(message))
    if not found:
        return None
    last = found[-1]
    key = last["option"] or last["nested"] or last["argument"] or f"{last['group']}.{last['inner']}"
    owners = list(_CLASS.finditer(message, 0, last.start()))
    if not owners:
        return f"Expected a known option but got `{key}`: {_meant(key, known, 'see `--help`')}"
    name = owners[-1]["path"]
    options = _class_options(name)
    advice = _meant(key, options, f"its options are {', '.join(options)}")
    return f"Expected an option of {name} (`{_path(message)}`) but got `{key}`: {advice}"


def _unknown_class(message: str) -> str | None:
    wrong = [found for found in _CLASS.finditer(message) if _NO_CLASS.search(found["reason"])]
    if not wrong:
        return None
    path, reason = wrong[-1]["path"], wrong[-1]["reason"].strip().rstrip(".:")
    module, _, name = path.rpartition(".")
    try:
        names = [f"{module}.{other}" for other in dir(importlib.import_module(module))] if name else []
    except (ImportError, ValueError):
        names = []
    advice = _meant(path, names, "check its spelling, and that its package is installed", quote="'")
    return f"Expected `{_path(message)}` to name a class but got '{path}' ({reason}): {advice}"


def _wrong_choice(message: str) -> str | None:
    found = _CHOICE.search(message)
    if found is None:
        return None
    choices = re.findall(r"[\w.-]+", found["choices"])
    advice = _meant(found["value"], choices, "choose one of them", quote="'")
    return f"Expected `{found['key']}` to be one of {', '.join(choices)} but got '{found['value']}': {advice}"


def _wrong_value(message: str) -> str | None:
    types, value = list(_TYPES.finditer(message)), _VALUE.search(message)
    if not types or value is None:
        return None
    if nested := _NESTED.search(value["value"]):
        path = _path(message)
        return (
            f"Expected an option of `{path}` and its value but got `{nested['key']}` and {_short(nested['value'])}: "
            f"check both with `--{path}.help CLASS`."
        )
    expected = _types(types[-1]["types"] or types[-1]["type"])
    return f"Expected `{_path(message)}` to be {expected} but got '{_short(value['value'])}': give it such a value."


def _types(text: str) -> str:
    """Write types for people: no module names, and null for None."""
    text = re.sub(r"<class '([^']+)'>", r"\1", text)
    text = re.sub(r"(?:\w+\.)+(\w+)", r"\1", text).replace("NoneType", "null")
    return re.sub(r"Literal\[([^\]]*)\]", r"one of \1", text).replace(", null", " or null")


def _path(message: str) -> str:
    """Join the keys from the outermost to the innermost, which jsonargparse takes as an option."""
    keys, depth = [], -1
    for found in _KEY.finditer(message):
        if len(found["indent"]) > depth:
            keys.append(found["key"])
            depth = len(found["indent"])
    return ".".join(keys)


def _meant(name: str, known: Iterable[str], otherwise: str, quote: str = "`") -> str:
    near = get_close_matches(name, sorted(set(known)), n=1)
    return f"did you mean {quote}{near[0]}{quote}?" if near else f"{otherwise}."


def _short(text: str) -> str:
    return textwrap.shorten(text, _LONGEST, placeholder=" ...")


def _class_options(path: str) -> list[str]:
    module, _, name = path.rpartition(".")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(getattr(importlib.import_module(module), name), fail_untyped=False)
    return _options(parser)


def _options(parser: ArgumentParser) -> list[str]:
    """Return the options of a parser and of its commands, without dashes."""
    found: dict[str, None] = {}
    for action in parser._actions:
        if isinstance(action.choices, dict):
            found |= {option: None for command in action.choices.values() for option in _options(command)}
        found |= {option.lstrip("-"): None for option in action.option_strings if option.startswith("--")}
    return [option for option in found if option not in ("help", "print_config")]
