"""Which process trains which clients of a round, and what a run in several processes cannot do."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint, Timer

from pl_fed.errors import FederatedConfigError
from pl_fed.rounds import ClientWork


@dataclass(frozen=True)
class Processes:
    """How this process speaks to the others; by default it is alone.

    Args:
        number: How many there are.
        gather: Returns the values of all of them, by rank.
        broadcast: Returns the value of the first.
    """

    number: int = 1
    gather: Callable[[Any], list[Any]] = lambda value: [value]
    broadcast: Callable[[Any], Any] = lambda value: value


def share_out(work: Sequence[ClientWork], num_processes: int) -> list[tuple[ClientWork, ...]]:
    """Divide clients over processes, the longest first, each to the process that has the least to do.

    Args:
        work: A round's clients.
        num_processes: Number of processes.

    Returns:
        The clients of each process, in the order of the round. With fewer clients than processes some are trained
        twice, to the same end: a process without a batch would end its epoch before the others.
    """
    shares: list[list[int]] = [[] for _ in range(num_processes)]
    load = [0] * num_processes
    for place in sorted(range(len(work)), key=lambda place: -len(work[place].batches)):
        process = load.index(min(load))
        shares[process].append(place)
        load[process] += len(work[place].batches)
    for process in range(len(work), num_processes):
        shares[process] = [process % len(work)]
    return [tuple(work[place] for place in sorted(share)) for share in shares]


def check_trainer(trainer: Trainer, callbacks: Iterable[Callback], num_processes: int) -> None:
    """Refuse what would have to happen at the same batch in every process: each has batches of its own.

    Raises:
        FederatedConfigError: If the Trainer is to do something inside a round.
    """
    what = _inside_rounds(trainer, callbacks) if num_processes > 1 and not vars(trainer).get("fast_dev_run") else None
    if what is not None:
        raise FederatedConfigError(
            f"Expected nothing inside rounds with {num_processes} processes, which have unlike numbers of batches, but "
            f"got {what}: take it out, or set `trainer.devices=1`."
        )


def check_rounds(active: bool, num_processes: int) -> None:
    """Refuse training in several processes with ordinary loaders, where each would train a model of its own.

    Raises:
        FederatedConfigError: If there are several processes and no rounds.
    """
    if num_processes > 1 and not active:
        raise FederatedConfigError(
            f"Expected one process for training without rounds but got {num_processes}: set `trainer.devices=1`, or "
            "`trainer.strategy=ddp`."
        )


def _inside_rounds(trainer: Trainer, callbacks: Iterable[Callback]) -> str | None:
    settings = vars(trainer)
    for key, usual in (("limit_train_batches", 1.0), ("val_check_interval", 1.0), ("max_steps", -1)):
        found = trainer.max_steps if key == "max_steps" else settings.get(key, usual)
        if found not in (usual, None):
            return f"`trainer.{key}` of {found}"
    for callback in callbacks:
        if isinstance(callback, ModelCheckpoint) and _saves_inside(callback):
            return "a `ModelCheckpoint` with `every_n_train_steps` or `train_time_interval`"
        if isinstance(callback, OnExceptionCheckpoint):
            return "an `OnExceptionCheckpoint`"
        if isinstance(callback, Timer) and str(getattr(callback, "_interval", "")).endswith("step"):
            return "a `Timer` with `interval: step` (`trainer.max_time` makes one)"
    return None


def _saves_inside(callback: ModelCheckpoint) -> bool:
    return callback._every_n_train_steps > 0 or callback._train_time_interval is not None
