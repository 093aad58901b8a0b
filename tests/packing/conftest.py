"""Folders with tiny random models, written once."""

from collections.abc import Callable

import pytest

from tests.helpers.packed import save


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Return a maker of folders."""
    made: dict[tuple[str, float], str] = {}

    def make(kind: str, dropout: float = 0.0) -> str:
        key = (kind, dropout)
        if key not in made:
            made[key] = save(kind, tmp_path_factory.mktemp(kind), dropout)
        return made[key]

    return make
