"""Folders with tiny random models, written once; kernels for parts of unlike sizes on a CPU."""

from collections.abc import Callable, Iterator

import pytest

from pl_fed.packing import jagged
from tests.helpers.kernels import lend
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


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a CPU have the kernels; what is known of them is forgotten before and after."""
    trusted = (jagged.grouped_agrees, jagged.varlen_agrees)
    for function in trusted:
        function.cache_clear()
    lend(monkeypatch)
    yield
    for function in trusted:
        function.cache_clear()
