"""Imports inside `pl_fed` point down the table of layers; read from the source, so lazy imports count too."""

import ast
import re
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOP_LEVEL = {"callbacks", "datamodules"}  # folders at the root that install inside pl_fed

# Bottom first. A module may import its own row and the rows above it in this table, without cycles.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"types", "errors"}),
    frozenset(
        {
            "updates",
            "rounds",
            "clients",
            "chunks",
            "client_loader",
            "client_store",
            "loaders",
            "codecs",
            "wire",
            "corrections",
            "processes",
            "fast_pickle",
        }
    ),
    frozenset({"adapters", "norms", "context", "packing"}),
    frozenset({"rules", "server_optimizer", "privacy", "accounting"}),
    frozenset({"attacks", "metrics", "isa"}),
    frozenset({"modules", "datamodules"}),
    frozenset({"engines", "exchange", "frozen", "controls", "progress", "secure_round", "federation_config"}),
    frozenset({"federation", "chunk_round", "client_round", "federation_state", "round_sharing", "personalised"})
    | frozenset({"checkpoint_io", "resumption", "loop", "process_group", "strategy_checks", "strategy"}),
    frozenset({"cli", "cli_parser", "cli_tracking", "cli_trainer", "cli_ratings", "compare", "precision"}),
)
# Outside the table: who may import what.
EVERYONE = {"_lightning"}  # the shim over the two copies of Lightning; imports nothing of pl_fed
CALLBACKS_MAY_IMPORT = {
    "types",
    "errors",
    "updates",
    "rounds",  # pure functions, `derive_seed` among them
    "context",
    "adapters",
    "rules.base",
    "accounting",
    "attacks",
    "privacy",
    "metrics",
    "callbacks",
}
MAY_IMPORT_CALLBACKS = {"callbacks", "cli", "cli_trainer", "compare"}
MAY_IMPORT_ASSETS = {"assets", "isa", "modules", "datamodules", "cli"}
ADVICE = "add it to the tables in tests/test_layers.py and CONTRIBUTING.md"

Edge = tuple[str, str]  # (importer, imported), both without the leading "pl_fed."


def part(module: str) -> str:
    """Return the row entry of a module: `rules.fedavg` belongs to `rules`."""
    return module.split(".")[0]


def level(name: str) -> int | None:
    return next((i for i, names in enumerate(LAYERS) if name in names), None)


def inside(name: str, allowed: Iterable[str]) -> bool:
    """Say whether a dotted name is one of `allowed` or lies inside one."""
    return any(name == entry or name.startswith(f"{entry}.") for entry in allowed)


def violation(importer: str, imported: str) -> str | None:
    """Say what is wrong with one import, or nothing."""
    source, target = part(importer), part(imported)
    for name in (source, target):
        if level(name) is None and name not in EVERYONE | {"callbacks", "assets", ""}:
            return f"unknown module `{name}`: {ADVICE}"
    if source == "" or target in EVERYONE or target == "":  # the package itself may offer anything, and has a version
        return None
    if source == target:
        return None
    if source in EVERYONE | {"assets"}:
        return f"`{source}` must import nothing of pl_fed but imports `{imported}`"
    if source == "callbacks":
        ok = inside(imported, CALLBACKS_MAY_IMPORT)
        return None if ok else f"`{importer}` must speak through hooks, not import `{imported}`"
    if target == "callbacks":
        return None if source in MAY_IMPORT_CALLBACKS else f"`{importer}` must not import `{imported}`"
    if target == "assets":
        return None if source in MAY_IMPORT_ASSETS else f"`{importer}` must not import `{imported}`"
    down = level(target) <= level(source)  # type: ignore[operator]  # None was answered above
    return None if down else f"`{importer}` lies below `{imported}` and must not import it"


def modules() -> dict[str, Path]:
    """Return every module of `pl_fed` by its name without the leading `pl_fed.`; the package itself is ``""``."""
    found = {}
    for folder, prefix in ((ROOT / "pl_fed", ()), *((ROOT / name, (name,)) for name in sorted(TOP_LEVEL))):
        for path in folder.rglob("*.py"):
            parts = (*prefix, *path.relative_to(folder).with_suffix("").parts)
            if not (prefix == () and parts[0] in TOP_LEVEL):  # a symlink: read once, from the top
                found[".".join(p for p in parts if p != "__init__")] = path
    return found


def statements(tree: ast.AST, typing: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the import statements at any depth, with those under `if TYPE_CHECKING` or without."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING") and not typing:
            yield from statements(ast.Module(node.orelse, []), typing)
        else:
            yield from statements(node, typing)


def imports(name: str, path: Path, known: Iterable[str], typing: bool = True) -> Iterator[str]:
    """Yield the modules of `pl_fed` that one file imports."""
    package = ["pl_fed", *name.split(".")] if name else ["pl_fed"]
    if path.name != "__init__.py":
        package.pop()
    for node in statements(ast.parse(path.read_text(), str(path)), typing):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        else:
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            targets = [f"{origin}.{alias.name}" for alias in node.names]
        for target in targets:
            head, *rest = target.split(".")
            if head == "pl_fed":
                while rest and ".".join(rest) not in known:  # `from module import thing` names the thing
                    rest.pop()
                yield ".".join(rest)


def edges(typing: bool = True) -> list[Edge]:
    known = modules()
    return [(name, target) for name, path in known.items() for target in imports(name, path, known, typing)]


def test_imports_point_down() -> None:
    found = sorted({problem for edge in edges() if (problem := violation(*edge))})
    assert not found, "\n".join(found)


def test_every_module_has_a_layer() -> None:
    known = {part(name) for name in modules()} - EVERYONE - {"callbacks", "assets", ""}
    assert not (missing := sorted(name for name in known if level(name) is None)), f"{missing}: {ADVICE}"


def test_contributing_shows_the_same_rows() -> None:
    rows = re.findall(r"^\| (\d+) \| ([^|]*) \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert [frozenset(re.findall(r"`(\w+)`", names)) for _, names in rows] == list(LAYERS)


def test_no_cycles() -> None:
    """Within a row modules may import each other, but one after the other; for a type checker also in a circle."""
    graph: dict[str, set[str]] = {}
    for importer, imported in edges(typing=False):
        if importer and imported and not importer.startswith(f"{imported}."):  # a package and what it exports
            graph.setdefault(importer, set()).add(imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize(
    ("edge", "problem"),
    [
        (("strategy", "rules.fedavg"), None),
        (("strategy", "loop"), None),
        (("rules.fedavg", "rules.base"), None),
        (("errors", "_lightning"), None),
        (("callbacks.audit", "rules.base"), None),
        (("cli", "callbacks.audit"), None),
        (("modules.causal_lm", "assets"), None),
        (("", "strategy"), None),
        (("callbacks.audit", "rules.fedavg"), "must speak through hooks"),
        (("callbacks.audit", "strategy"), "must speak through hooks"),
        (("strategy", "callbacks.audit"), "must not import"),
        (("rules.fedavg", "assets"), "must not import"),
        (("assets", "errors"), "must import nothing"),
        (("rules.base", "strategy"), "lies below"),
        (("helpers", "errors"), "unknown module `helpers`: add it to the tables"),
    ],
)
def test_table_says(edge: Edge, problem: str | None) -> None:
    """The checker itself: allowed imports give nothing, each kind of mistake its own sentence."""
    found = violation(*edge)
    assert found is None if problem is None else problem in (found or "")


def test_reader_resolves_every_form_of_import(tmp_path: Path) -> None:
    """`import a.b`, `from a import module`, `from a.module import thing`, relative, and inside a function."""
    file = tmp_path / "mean.py"
    file.write_text(
        "import pl_fed.errors\nfrom pl_fed import updates\nfrom pl_fed.rounds import cohort\nfrom . import base\n"
        "from .base import Rule\nfrom .. import __version__\nimport pl_fedora\n"
        "def f():\n    from pl_fed.strategy import FederatedStrategy\nif TYPE_CHECKING:\n    import pl_fed.cli\n"
    )
    known = {"errors", "updates", "rounds", "rules", "rules.base", "strategy", "cli"}
    executed = ["errors", "updates", "rounds", "rules.base", "rules.base", "", "strategy"]
    assert list(imports("rules.mean", file, known, typing=False)) == executed
    assert list(imports("rules.mean", file, known)) == [*executed, "cli"]
