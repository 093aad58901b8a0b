"""What is compared."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Runner:
    """A framework in a setting.

    Args:
        title: Its name in the table.
        script: In this folder.
        peer: Whose environment it needs; None for pl_fed's own.
        launcher: Arguments of Python before the script.
        arguments: Of the script.
        variables: Of its environment.
        one_process: Whether the process that keeps the time does all the work.
    """

    title: str
    script: str
    peer: str | None = None
    launcher: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()
    one_process: bool = True


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
KEEP_MEMORY = (("MALLOC_MMAP_MAX_", "0"), ("MALLOC_TRIM_THRESHOLD_", "100000000000"))
"""Keeps glibc from giving memory back after every pass (`docs/performance.md`)."""

RUNNERS = {
    "plain": Runner("loop over PEFT", "run_plain.py"),
    "pfl": Runner("pfl-research", "run_pfl.py", "pfl"),
    "pfl-2": Runner("pfl-research, 2 processes", "run_pfl.py", "pfl", TORCHRUN, one_process=False),
    "flower": Runner("Flower simulation, 2 actors", "run_flower.py", "flower", one_process=False),
    "nvflare": Runner("NVFlare simulator, 2 sites", "run_nvflare.py", "nvflare", one_process=False),
    "sequential": Runner("pl_fed sequential", "run_pl_fed.py", arguments=("--engine", "sequential")),
    "packed": Runner("pl_fed packed", "run_pl_fed.py"),
    "packed-keep": Runner("pl_fed packed, memory kept", "run_pl_fed.py", variables=KEEP_MEMORY),
    "packed-2": Runner("pl_fed packed, 2 processes", "run_pl_fed.py", arguments=("--devices", "2"), one_process=False),
}
