"""A virtual environment for each peer, made once and kept: their requirements do not go together."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
SHARED = ("torch", "transformers", "peft")  # in the versions that pl_fed is checked with
PEERS = {"pfl": "pfl==0.6.0", "flower": "flwr[simulation]==1.41.0", "nvflare": "nvflare==2.9.0"}


class NoEnvironmentError(Exception):
    """A peer that cannot be installed; the message says why."""


def requirements(peer: str) -> list[str]:
    """Return what a peer's environment holds, with exact versions."""
    pinned = CONSTRAINTS.read_text().splitlines()
    return [PEERS[peer], *(line for line in pinned if line.partition("==")[0] in SHARED)]


def environment(peer: str, folder: Path) -> Path:
    """Return the Python of a peer's environment, which is made if it is not there.

    Args:
        peer: One of `PEERS`.
        folder: Of all environments; other versions get another one.

    Raises:
        NoEnvironmentError: If it cannot be made.
    """
    wanted = requirements(peer)
    digest = hashlib.sha256("\n".join([*wanted, sys.version]).encode()).hexdigest()[:8]
    place = folder / f"{peer}-{digest}"
    python, ready = place / "bin" / "python", place / "ready"
    if ready.exists():
        return python
    shutil.rmtree(place, ignore_errors=True)  # what an interrupted run left
    print(f"Installing {', '.join(wanted)} into {place}", flush=True)
    _run(sys.executable, "-m", "venv", str(place))
    _run(str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted)
    ready.touch()
    return python


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise NoEnvironmentError(errors[-1] if errors else f"exit code {done.returncode}")
