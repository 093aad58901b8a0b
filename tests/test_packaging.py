"""The folders at the top of the repository install inside `pl_fed`, and nowhere else."""

import importlib
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
TOP_LEVEL = ("callbacks", "configs", "datamodules")  # each is `pl_fed.<name>`


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def folders() -> set[str]:
    """Dotted names of the folders that hold code, with `configs`, which holds none."""
    found = {"pl_fed.configs"}
    for top, name in (("pl_fed", "pl_fed"), ("callbacks", "pl_fed.callbacks"), ("datamodules", "pl_fed.datamodules")):
        for init in (ROOT / top).rglob("__init__.py"):  # does not descend into symlinks
            found.add(".".join([name, *init.parent.relative_to(ROOT / top).parts]))
    return found


def test_every_folder_is_listed_once(settings: dict[str, Any]) -> None:
    assert sorted(settings["packages"]) == sorted(folders())


def test_every_folder_with_code_is_a_package() -> None:
    for top in ("pl_fed", "callbacks", "datamodules"):
        for file in (ROOT / top).rglob("*.py"):
            assert (file.parent / "__init__.py").exists(), f"{file.parent} lacks __init__.py and would not install"


def test_root_script_is_not_installed(settings: dict[str, Any]) -> None:
    assert "py-modules" not in settings


@pytest.mark.parametrize("name", TOP_LEVEL)
def test_mapping_and_symlink_agree(settings: dict[str, Any], name: str) -> None:
    link = ROOT / "pl_fed" / name
    assert link.is_symlink()
    assert os.readlink(link) == f"../{name}"  # relative: a checkout may lie anywhere
    assert link.resolve() == ROOT / name
    assert settings["package-dir"][f"pl_fed.{name}"] == name


@pytest.mark.parametrize("name", ["callbacks", "datamodules"])
def test_top_level_name_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.syspath_prepend(ROOT)
    with pytest.raises(ImportError, match=f"import it as `pl_fed.{name}`"):
        importlib.import_module(name)


def run(*command: str, cwd: Path, **environment: str) -> str:
    """Run a command outside the repository's environment; return what it printed or fail with it."""
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy without the symlinks, as pip does from an sdist, and with no network."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pl_fed", *TOP_LEVEL):
        skip = shutil.ignore_patterns("__pycache__", *(TOP_LEVEL if name == "pl_fed" else ()))
        shutil.copytree(ROOT / name, source / name, ignore=skip)
    for name in ("pyproject.toml", "LICENSE", "README.md", "cli.py"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    build = "from setuptools.build_meta import build_wheel; print(build_wheel('dist'))"
    return source / "dist" / run(sys.executable, "-c", build, cwd=source).splitlines()[-1]


def test_wheel_holds_each_file_once(wheel: Path) -> None:
    """Only `pl_fed/` and its metadata: a top-level `callbacks/` would overwrite another project's."""
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"pl_fed"}
    assert "pl_fed/py.typed" in names
    shipped = {name for name in names if name.endswith((".py", ".yaml"))}
    expected = {
        Path(inside, file.relative_to(ROOT / top)).as_posix()
        for top, inside in (("pl_fed", "pl_fed"), *((name, f"pl_fed/{name}") for name in TOP_LEVEL))
        for pattern in ("*.py", "*.yaml")
        for file in (ROOT / top).rglob(pattern)
    }
    assert shipped == expected


def test_wheel_works_beside_a_foreign_callbacks_folder(wheel: Path, tmp_path: Path) -> None:
    """The user's project has its own `callbacks/`; both it and ours are imported, each from its place."""
    site, project = tmp_path / "site", tmp_path / "project"
    zipfile.ZipFile(wheel).extractall(site)
    (project / "callbacks").mkdir(parents=True)
    (project / "callbacks" / "__init__.py").write_text("OWNER = 'user'\n")
    program = (
        "import callbacks, importlib.resources, pl_fed.callbacks\n"
        "assert callbacks.OWNER == 'user', callbacks\n"
        "assert importlib.resources.files('pl_fed.configs').is_dir()\n"
        "print(pl_fed.callbacks.__file__)"
    )
    printed = run(sys.executable, "-c", program, cwd=project, PYTHONPATH=str(site), PYTHONSAFEPATH="")
    assert Path(printed) == site / "pl_fed" / "callbacks" / "__init__.py"
