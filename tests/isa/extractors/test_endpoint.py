"""An endpoint on this machine that fails, stalls, cuts off and talks nonsense; no wait is real unless it is tested."""

import base64
import io
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pl_fed.errors import FederatedConfigError
from pl_fed.isa.extractor import ExtractionError, TransientExtractionError
from pl_fed.isa.extractors import EndpointExtractor, Patience, Price, http
from pl_fed.isa.prompts import DESCRIBE, QUESTIONS
from tests.helpers.endpoint import Reply, Server, answer, cut_off, says
from tests.helpers.isa import loaded, picture

KEY = "secret-key-1234"


def ask(server: Server, patience: Patience | None = None, **options: Any) -> str:
    extractor = EndpointExtractor(server.url, "some-model", patience=patience, **options)
    return extractor.ask(picture(), "What?", 50)


def test_what_is_sent(serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    server = serve(says("A story."))
    assert ask(server, api_key_variable="SOME_KEY", max_tokens=20, max_side=20) == "A story."
    ((path, headers, body),) = server.received
    assert path == "/v1/chat/completions" and headers["Authorization"] == f"Bearer {KEY}"
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("some-model", 20, 0.0)
    text, image = body["messages"][0]["content"]
    assert text == {"type": "text", "text": "What?"}
    kind, data = image["image_url"]["url"].split(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (20, 15)


def test_modes(serve: Callable[..., Server], tmp_path: Path) -> None:
    """Naive asks once; questions asks once for each section and once for the description."""
    server = serve(says("A cup."))
    extractor = EndpointExtractor(server.url, "m")
    assert extractor.extract(loaded(picture(), tmp_path), "naive") == "A cup."
    text = extractor.extract(loaded(picture(), tmp_path), "questions")
    assert text.count("1. A cup.") == 7 and text.endswith("Description: A cup.")
    asked = [body["messages"][0]["content"][0]["text"] for _, _, body in server.received]
    assert asked == [DESCRIBE, *QUESTIONS.values(), DESCRIBE]


@pytest.mark.parametrize(
    "bad",
    [
        answer(500, b"oops"),
        answer(429, b""),
        answer(200, b"<html>rubbish</html>"),
        answer(200, b"[" * 100_000),
        answer(200, b"[1]"),
        answer(200, b"null"),
        says(None),
        says([1]),
        answer(200, b'{"choices": []}'),
        answer(200, b'{"error": "none"}'),
        cut_off,
    ],
)
def test_a_bad_answer_is_followed_by_another_try(serve: Callable[..., Server], waits: list[float], bad: Reply) -> None:
    server = serve(bad, says("good"))
    assert ask(server) == "good" and len(server.received) == 2 and len(waits) == 1


def test_waits_double_and_end(serve: Callable[..., Server], waits: list[float]) -> None:
    """Means of 1, 2, 4 and 8 seconds, each between a half and one and a half times that, cut at 6."""
    server = serve(answer(503, b"busy"))
    with pytest.raises(TransientExtractionError, match="no answer in 5 tries, the last one: status 503: busy"):
        ask(server, Patience(longest_wait_seconds=6.0))
    assert len(server.received) == 5 and len(waits) == 4
    for wait, mean in zip(waits, (1, 2, 4, 8), strict=True):
        assert min(6, mean / 2) <= wait <= min(6, mean * 1.5)


def test_retry_after_is_honoured(serve: Callable[..., Server], waits: list[float]) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    server = serve(answer(429, b"", Retry_After="7"), answer(503, b"", Retry_After=date), says("good"))
    assert ask(server) == "good"
    assert waits[0] == 7.0 and 25 < waits[1] <= 30
    server = serve(answer(429, b"", Retry_After="rubbish"), says("good"))
    assert ask(server) == "good" and 0.5 <= waits[2] <= 1.5
    server = serve(answer(429, b"slow down", Retry_After="9999"))
    with pytest.raises(TransientExtractionError, match="status 429: slow down; the server asks to wait 9999 seconds"):
        ask(server)
    assert len(server.received) == 1 and len(waits) == 3


@pytest.mark.parametrize("kind", ["stall", "trickle", "trickle_headers"])
def test_a_server_that_stalls_is_given_up_in_time(serve: Callable[..., Server], waits: list[float], kind: str) -> None:
    """Two tries of 0.2 seconds; without a limit it would be 20 seconds or for ever."""
    server = serve(says("x"))
    server.replies = [getattr(server, kind)]
    with pytest.raises(TransientExtractionError, match="no answer in 2 tries, the last one: (Read)?Time"):
        ask(server, Patience(attempts=2, timeout_seconds=0.2))


def test_nobody_there(waits: list[float]) -> None:
    with pytest.raises(TransientExtractionError, match="no answer in 2 tries, the last one: ConnectError"):
        EndpointExtractor("http://127.0.0.1:9", "m", patience=Patience(attempts=2)).ask(picture(), "What?", 5)


def test_an_answer_without_end(serve: Callable[..., Server], waits: list[float], monkeypatch: Any) -> None:
    monkeypatch.setattr(http, "_MAX_BYTES", 100)
    with pytest.raises(TransientExtractionError, match="an answer of more than 100 bytes"):
        ask(serve(says("x" * 200)), Patience(attempts=1))


def test_refusals_are_not_tried_again(serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that repeats the key in its error does not get it into ours."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = serve(answer(401, f"wrong key {KEY}".encode()))
    with pytest.raises(FederatedConfigError, match=r"but got status 401: wrong key \*\*\*: check `base_url`"):
        ask(server)
    server = serve(answer(400, f"image too large for {KEY}".encode()))
    with pytest.raises(ExtractionError, match=r"refused the request, status 400: image too large for \*\*\*") as error:
        ask(server)
    assert not isinstance(error.value, TransientExtractionError) and len(server.received) == 1


def test_an_empty_answer_is_an_error(serve: Callable[..., Server], tmp_path: Path) -> None:
    with pytest.raises(ExtractionError, match="the model answered nothing"):
        EndpointExtractor(serve(says("  ")).url, "m").extract(loaded(picture(), tmp_path), "naive")


def test_the_key_is_nowhere(serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    caplog.set_level("DEBUG")
    extractor = EndpointExtractor(serve(says("x")).url, "m")
    extractor.ask(picture(), "What?", 5)
    assert KEY not in caplog.text + json.dumps(extractor.settings) + extractor.report()


def test_cost(serve: Callable[..., Server]) -> None:
    """2 million tokens sent at 3 and 1 million received at 10 a million: 16. Then one answer without a count."""
    usage = {"prompt_tokens": 2_000_000, "completion_tokens": 1_000_000}
    server = serve(says("x", usage=usage), says("12345678", usage="none"))
    extractor = EndpointExtractor(server.url, "m", price=Price(3.0, 10.0))
    extractor.ask(picture(), "What?", 5)
    assert extractor.report() == "2000000 tokens sent, 1000000 received, estimated cost 16."
    extractor.ask(picture(), "What? 12", 5)
    assert extractor.report().startswith("2000002 tokens sent, 1000002 received (in part guessed")


def test_estimate_before_anything_is_sent() -> None:
    """Naive: len(DESCRIBE) // 4 + 900 tokens up and 500 down an image; questions: eight requests."""
    extractor = EndpointExtractor(
        "http://127.0.0.1:9", "m", max_tokens=500, price=Price(2.0, 10.0, tokens_per_image=900)
    )
    sent = len(DESCRIBE) // 4 + 900
    cost = (3 * sent * 2 + 3 * 500 * 10) / 1e6
    assert extractor.estimate(3, "naive") == (
        f"3 requests, {3 * sent} tokens to send, 1500 to receive, cost of {cost:.4g}."
    )
    asked = [*QUESTIONS.values(), DESCRIBE]
    sent = sum(len(prompt) // 4 + 900 for prompt in asked)
    found = extractor.estimate(1, "questions")
    assert found.startswith(f"8 requests, {sent} tokens to send, {7 * 120 + 500} to receive")
    assert "set `price.per_million_input`" in EndpointExtractor("http://127.0.0.1:9", "m").estimate(1, "cot")


def test_rate_limit(serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    """At 60 a minute a start is a second after the one before, whatever the answer took."""
    clock = [100.0]
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(http.time, "sleep", sleep)
    monkeypatch.setattr(http.time, "monotonic", lambda: clock[0])
    extractor = EndpointExtractor(serve(says("x")).url, "m", patience=Patience(requests_per_minute=60))
    for _ in range(2):
        extractor.ask(picture(), "What?", 5)
    clock[0] += 0.75
    extractor.ask(picture(), "What?", 5)
    assert waits == [0.0, 1.0, 0.25]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_url": "localhost:8000"}, "Expected `base_url` to begin with http:// or https:// but got 'localhost"),
        ({"max_side": 0}, "`max_tokens` and `max_side` of at least 1 but got 1000 and 0"),
    ],
)
def test_settings_that_cannot_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(FederatedConfigError, match=message):
        EndpointExtractor(**{"base_url": "http://localhost", "model": "m", **options})


def test_no_patience() -> None:
    with pytest.raises(FederatedConfigError, match="Expected `patience.timeout_seconds` above 0 but got 0"):
        Patience(timeout_seconds=0)


def test_time_is_real_in_this_file() -> None:
    """The patches above go through the module `time` itself, and must not stay."""
    before = time.monotonic()
    time.sleep(0.001)
    assert time.monotonic() > before
