"""What a run ran on: versions, revision, machine."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from pl_fed import __version__

PACKAGES = ("torch", "lightning", "pytorch-lightning", "transformers", "peft")


def environment() -> dict[str, Any]:
    """Return versions, the git revision and the hardware as JSON values."""
    return {"versions": versions(), "git": git_state(Path.cwd()), "hardware": hardware()}


def versions() -> dict[str, str]:
    """Return the versions of what computes; a package that is not installed is left out."""
    found = {"python": platform.python_version(), "pl_fed": __version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return the revision of the git work tree at `folder` and whether tracked files differ from it.

    None outside a work tree, before the first commit, and without git.
    """
    revision = _git(folder, "rev-parse", "--verify", "HEAD")
    status = _git(folder, "--no-optional-locks", "status", "--porcelain", "--untracked-files=no")
    if revision is None or status is None:
        return None
    return {"revision": revision.strip(), "dirty": bool(status.strip())}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def hardware() -> dict[str, Any]:
    """Return the processor, its cores, and the names of CUDA devices."""
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"cpu": cpu_name(Path("/proc/cpuinfo")), "cores": os.cpu_count(), "cuda": cuda}


def cpu_name(cpuinfo: Path) -> str:
    """Return the processor's name as Linux states it in `cpuinfo`, else what the platform says."""
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
