"""Merging of YAML configurations, and the fingerprint of the result.

Mappings merge key by key and everything else is replaced, with three rules of LightningCLI's files on top: another
``class_path`` drops the old ``init_args``, ``key+`` appends to a list, and (ours) ``key-`` takes the entries of these
class paths out of it.
"""

import copy
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import yaml

from pl_fed.errors import FederatedConfigError

CONFIGS = Path(__file__).parents[1] / "configs"
WITHOUT_EFFECT = ("run", "trainer.logger", "trainer.default_root_dir", "trainer.enable_progress_bar")
Nested = dict[str, Any]


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """PyYAML's loader, with ``1e-3`` as the number that the command line takes it for."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_yaml(text: str) -> Any:
    """Return what a YAML text says.

    Example:
        >>> parse_yaml("lr: 1e-3")
        {'lr': 0.001}
    """
    return yaml.load(text, _Loader)  # a SafeLoader


def read_config(name: str) -> Nested:
    """Read a configuration file by its path, or by its name among the package's.

    Raises:
        FederatedConfigError: If there is none, or it holds no mapping.
    """
    places = [Path(name), CONFIGS / name, CONFIGS / PurePath(name).name]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise FederatedConfigError(
            f"Expected a configuration file in `base` but got '{name}', which is neither in the working directory nor "
            "among the package's configs: correct the path."
        )
    content = parse_yaml(found.read_text(encoding="utf-8")) or {}
    if not isinstance(content, dict):
        raise FederatedConfigError(f"Expected a mapping in '{found}' but got {type(content).__name__}: correct it.")
    return content


def nest(path: str, value: Any) -> Nested:
    """Return nested mappings for a dotted path.

    Example:
        >>> nest("trainer.max_epochs", 8)
        {'trainer': {'max_epochs': 8}}
    """
    for key in reversed(path.split(".")):
        value = {key: value}
    return dict(value)


def merged(*configs: Nested) -> Nested:
    """Merge configurations, the later over the earlier; keys of the first level may be dotted paths.

    Example:
        >>> base = {"rule": {"class_path": "A", "init_args": {"x": 1}}, "list": [1]}
        >>> merged(base, {"rule": {"class_path": "B"}, "list+": [2]})
        {'rule': {'class_path': 'B'}, 'list': [1, 2]}
    """
    result: Nested = {}
    for config in configs:
        for key in sorted(config, key=_turn):
            result = _over(result, nest(key, config[key]))
    return result


def _over(base: Any, top: Any) -> Any:
    """Return `top` laid over `base`; neither is changed."""
    if not isinstance(top, Mapping):
        return copy.deepcopy(top)
    if isinstance(base, str) and set(top) <= {"class_path", "init_args"}:
        base = {"class_path": base}  # the short form of a class without arguments
    result = copy.deepcopy(dict(base)) if isinstance(base, Mapping) else {}
    if "class_path" in top and top["class_path"] != result.get("class_path"):
        result = {}  # arguments of another class would leak
    for key in sorted(top, key=_turn):
        name = key[:-1] if str(key).endswith(("+", "-")) else key
        if str(key).endswith("+"):
            result[name] = _list(result.get(name)) + copy.deepcopy(_list(top[key]))
        elif str(key).endswith("-"):
            result[name] = _without(name, _list(result.get(name)), _list(top[key]))
        else:
            result[name] = _over(result.get(name), top[key])
    return result


def _turn(key: Any) -> int:
    """Return when a key has its turn: what is taken out goes first, so that an entry can be exchanged."""
    return {"-": 0, "+": 2}.get(str(key)[-1:], 1)


def _list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def _without(name: str, entries: list[Any], unwanted: list[Any]) -> list[Any]:
    kept = [entry for entry in entries if _class_path(entry) not in unwanted]
    if missing := sorted(set(unwanted) - {_class_path(entry) for entry in entries}):
        raise FederatedConfigError(
            f"Expected entries of `{name}` to take out with `{name}-` but got {missing}, which it does not have: "
            f"choose from {[_class_path(entry) for entry in entries]}."
        )
    return kept


def _class_path(entry: Any) -> str:
    return str(entry.get("class_path") if isinstance(entry, Mapping) else entry)


def lookup(config: Nested, path: str) -> Any:
    """Return the value at a dotted path, or None.

    Example:
        >>> lookup({"a": {"b": 1}}, "a.b"), lookup({"a": "text"}, "a.b")
        (1, None)
    """
    found: Any = config
    for key in path.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def fingerprint(config: Nested, train: bool) -> str:
    """Return a hash of what decides a run's figures: where it is written has no part in it.

    Paths are taken as they are written, for two folders may hold different files of one name.

    Args:
        config: Everything that the run is given, its seed among it.
        train: Whether the run trains.
    """
    relevant = copy.deepcopy(config)
    for path in WITHOUT_EFFECT:
        *parents, key = path.split(".")
        holder = lookup(relevant, ".".join(parents)) if parents else relevant
        if isinstance(holder, dict):
            holder.pop(key, None)
    text = json.dumps({"config": _canonical(relevant), "train": train}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _canonical(value: Any) -> Any:
    """Return the same value for the same meaning: 1 for 1.0."""
    if isinstance(value, Mapping):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
