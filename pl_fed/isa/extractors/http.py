"""Posts JSON with retries, a rate limit and a time limit, to servers that fail, stall, cut off or talk nonsense."""

import contextlib
import json
import math
import random
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any

import httpx

from pl_fed.errors import FederatedConfigError
from pl_fed.isa.extractor import ExtractionError, TransientExtractionError

_LATER = frozenset({408, 409, 425, 429})  # besides everything from 500 on
_BODY = frozenset({400, 413, 415, 422})  # what is wrong is what was sent; with any other one nothing will get through
_FAILED_TRY = (
    httpx.HTTPError,
    httpx.InvalidURL,
    TimeoutError,
    ValueError,
    LookupError,
    TypeError,
    RecursionError,
)  # nothing that could be read came back
_MAX_BYTES = 16 * 2**20
_MAX_DETAIL = 200  # characters of a server's error


@dataclass(frozen=True)
class Patience:
    """How often, how long and how fast a server is asked.

    Args:
        attempts: Tries for one answer.
        timeout_seconds: Longest time for one try, from its first byte to its last.
        first_wait_seconds: Mean time before the second try; it doubles with each further one.
        longest_wait_seconds: Longest time before a try. A server that asks for more is not waited for.
        requests_per_minute: Fastest rate; None is as fast as the answers come.
    """

    attempts: int = 5
    timeout_seconds: float = 120.0
    first_wait_seconds: float = 1.0
    longest_wait_seconds: float = 60.0
    requests_per_minute: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not value > 0:
                raise FederatedConfigError(f"Expected `patience.{field.name}` above 0 but got {value}: raise it.")


class JsonPoster:
    """Posts to one address.

    Args:
        url: The address.
        key: Secret for the ``Authorization`` header; None for none. It never stands in an error.
        patience: How often, how long and how fast.
    """

    def __init__(self, url: str, key: str | None, patience: Patience) -> None:
        self._url, self._key, self._patience = url, key, patience
        self._random = random.Random()  # clients that failed together should not come back together
        self._next_start = -math.inf

    def __call__(self, body: Mapping[str, Any], check: Callable[[Mapping[str, Any]], object]) -> dict[str, Any]:
        """Return the server's answer.

        Args:
            body: What is sent.
            check: Fails with a LookupError or TypeError for an answer that is none; it then counts as a failed try.

        Raises:
            FederatedConfigError: If the server refuses us, is elsewhere, or knows no such model.
            ExtractionError: If it refuses this body.
            TransientExtractionError: If no try brought an answer.
        """
        content = json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        problem = ""
        for attempt in range(self._patience.attempts):
            self._keep_rate()
            asked = None
            try:
                status, retry_after, answer = self._try(content, headers)
                if 200 <= status < 300:
                    found = json.loads(answer)
                    check(found)
                    return dict(found)
            except _FAILED_TRY as error:
                problem = self._hide(f"{type(error).__name__}: {error}")
            else:
                problem, asked = self._refused(status, answer), _seconds(retry_after)
            if asked is not None and asked > self._patience.longest_wait_seconds:
                raise TransientExtractionError(f"{problem}; the server asks to wait {asked:.0f} seconds")
            if attempt + 1 < self._patience.attempts:
                time.sleep(self._wait(attempt) if asked is None else asked)
        raise TransientExtractionError(f"no answer in {self._patience.attempts} tries, the last one: {problem}")

    def _try(self, content: bytes, headers: Mapping[str, str]) -> tuple[int, str | None, bytes]:
        """Return status, ``Retry-After`` and body; an answer that trickles in is given up in time."""
        seconds = self._patience.timeout_seconds
        answer = bytearray()
        with _Deadline(seconds) as deadline:
            options: dict[str, Any] = {"timeout": seconds, "headers": headers, "extensions": {"trace": deadline.trace}}
            with httpx.Client() as client, client.stream("POST", self._url, content=content, **options) as response:
                for chunk in response.iter_bytes():  # as they come: to fill larger ones could take for ever
                    answer += chunk
                    if len(answer) > _MAX_BYTES:
                        raise ValueError(f"an answer of more than {_MAX_BYTES} bytes")
        return response.status_code, response.headers.get("retry-after"), bytes(answer)

    def _refused(self, status: int, answer: bytes) -> str:
        """Return what went wrong if it is worth another try.

        Raises:
            FederatedConfigError: If it is us.
            ExtractionError: If it is the body.
        """
        detail = " ".join(self._hide(answer.decode("utf-8", "replace")).split())[:_MAX_DETAIL]
        problem = f"status {status}{': ' + detail if detail else ''}"
        if status in _LATER or status >= 500:
            return problem
        if status in _BODY:
            raise ExtractionError(f"the endpoint refused the request, {problem}")
        raise FederatedConfigError(
            f"Expected the endpoint '{self._url}' to accept the request but got {problem}: check `base_url`, `model`, "
            "the key in the variable that `api_key_variable` names, and the credit of its account."
        )

    def _hide(self, text: str) -> str:
        """Return a text without the key, also as Python or JSON would quote it."""
        if not self._key:
            return text
        for form in (self._key, repr(self._key)[1:-1], json.dumps(self._key)[1:-1]):
            text = text.replace(form, "***")
        return text

    def _wait(self, attempt: int) -> float:
        """Return a time around the doubling one, half to one and a half of it."""
        wait = self._patience.first_wait_seconds * 2.0**attempt * self._random.uniform(0.5, 1.5)
        return min(wait, self._patience.longest_wait_seconds)

    def _keep_rate(self) -> None:
        if self._patience.requests_per_minute is not None:
            time.sleep(max(0.0, self._next_start - time.monotonic()))
            self._next_start = time.monotonic() + 60 / self._patience.requests_per_minute


class _Deadline:
    """Ends a request in time, whatever it waits for: the limits of httpx begin anew with every byte.

    Args:
        seconds: Time for the whole request.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._over = seconds, False
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def trace(self, event: str, details: Mapping[str, Any]) -> None:
        """Take note of the connections, as the extension ``trace`` of httpx tells them."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self._sockets.append(details["return_value"].get_extra_info("socket"))
            if self._over:  # it took that long to connect
                self._end()

    def _end(self) -> None:
        self._over = True
        for connection in self._sockets:
            with contextlib.suppress(OSError):  # closed already, or handed on to TLS
                connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> "_Deadline":
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._over and (error is None or isinstance(error, httpx.HTTPError)):
            raise TimeoutError(f"no whole answer in {self._seconds:g} seconds") from error


def _seconds(retry_after: str | None) -> float | None:
    """Return the seconds of a ``Retry-After`` header, which has a number or a date; None if it says nothing usable."""
    if not retry_after:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            date = parsedate_to_datetime(retry_after)
            seconds = (date - datetime.now(date.tzinfo and UTC)).total_seconds()
        except (ValueError, TypeError, LookupError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
