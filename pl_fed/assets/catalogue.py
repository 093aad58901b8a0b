"""The vocabulary of packaged assets: where one comes from, which files it has, and what it becomes."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

# Part of every cache key: raise it when a converter or reader writes something else than before.
CACHE_FORMAT = 1

Client = Literal["pip", "apt", "npm"]


@dataclass(frozen=True)
class PackageSource:
    """One package of one registry.

    Args:
        client: The registry's own command line client.
        package: Name of the package in that registry.
        version: Version asked for; with apt it is only documentation, since each Debian release has one version.
        num_bytes: Size of the download in bytes.
        root: Folder inside the package that the files are relative to.
    """

    client: Client
    package: str
    version: str
    num_bytes: int
    root: str

    def __str__(self) -> str:
        """Name the package the way a reader would ask its registry for it."""
        registry = {"pip": "PyPI", "apt": "Debian", "npm": "npm"}[self.client]
        return f"{registry} {self.package} {self.version}"


@dataclass(frozen=True)
class PackagedFile:
    """One file of a package, or with a wildcard all files that match.

    Args:
        name: Path below `PackageSource.root`; ``*`` matches within one path component.
        sha256: SHA-256 of the file. With a wildcard: of the text ``sha256sum`` prints for the matching files,
            sorted by path.
    """

    name: str
    sha256: str


@dataclass(frozen=True)
class PackagedAsset:
    """A model or data set that installs from a package registry.

    Args:
        name: Short name, which is also the name of its cache folder.
        hub_id: Its id on the hub, or None if the hub has no such thing.
        source: The package that holds it.
        files: Every file that is taken out of the package; nothing else is read.
        licence: Licence of the content, not of the package around it.
        note: How this copy differs from what a reader would expect.
        build: Turns the folder with the checked files into the folder that is cached.
        optional: Whether callers can do without it. A registry that does not answer within seconds is then not waited
            for.
    """

    name: str
    hub_id: str | None
    source: PackageSource
    files: tuple[PackagedFile, ...]
    licence: str
    note: str
    build: Callable[["PackagedAsset", Path, Path], None]
    optional: bool = False

    @property
    def cache_name(self) -> str:
        """Folder name which changes with the files' hashes, so that a new catalogue never meets an old cache."""
        parts = [str(CACHE_FORMAT), *(f"{file.name}={file.sha256}" for file in self.files)]
        return f"{self.name}-{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:8]}"

    def __str__(self) -> str:
        """One line for lists in error messages."""
        hub_id = f" ({self.hub_id})" if self.hub_id else ""
        return f"{self.name}{hub_id} from {self.source}"
