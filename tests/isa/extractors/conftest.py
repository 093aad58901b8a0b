"""Endpoints on this machine, and waits that are written down instead of waited."""

import threading
from collections.abc import Callable, Iterator

import pytest

from pl_fed.isa.extractors import http
from tests.helpers.endpoint import Reply, Server


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[tuple[Server, threading.Thread]] = []

    def start(*replies: Reply) -> Server:
        server = Server(*replies)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        return server

    yield start
    for server, thread in servers:
        server.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What would have been slept."""
    found: list[float] = []
    monkeypatch.setattr(http.time, "sleep", found.append)
    return found
