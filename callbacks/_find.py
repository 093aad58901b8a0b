"""How callbacks find each other, in whatever order they are listed."""

from typing import TypeVar

from pl_fed._lightning import Callback, Trainer

Kind = TypeVar("Kind", bound=Callback)


def find_callback(trainer: Trainer, kind: type[Kind]) -> Kind | None:
    """Return the Trainer's first callback of that class, or None."""
    return next(iter(find_callbacks(trainer, kind)), None)


def find_callbacks(trainer: Trainer, kind: type[Kind]) -> list[Kind]:
    """Return the Trainer's callbacks of that class in their order."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set at run time
    return [callback for callback in callbacks if isinstance(callback, kind)]
