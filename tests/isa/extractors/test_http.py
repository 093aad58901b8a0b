"""What an endpoint's refusals say of the image, of us and of the server; and that no error holds the key."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from pl_fed.errors import FederatedConfigError
from pl_fed.isa.extractor import ExtractionError, TransientExtractionError
from pl_fed.isa.extractors import EndpointExtractor, Patience
from pl_fed.isa.extractors.http import JsonPoster, _seconds
from tests.helpers.endpoint import Server, answer, says
from tests.helpers.isa import picture

KEY = "secret-key-1234"


def ask(server: Server, attempts: int = 2) -> str:
    return EndpointExtractor(server.url, "m", patience=Patience(attempts=attempts)).ask(picture(), "What?", 5)


@pytest.mark.parametrize("around", ["{}\r", "{}\n", "{}\r\n", " \t{} "])
def test_a_line_end_after_the_key_is_not_sent(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, around: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", around.format(KEY))
    server = serve(says("good"))
    assert ask(server) == "good" and server.received[0][1]["Authorization"] == f"Bearer {KEY}"


def test_an_empty_key_is_none(serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", " \n")
    server = serve(says("good"))
    assert ask(server) == "good" and "Authorization" not in server.received[0][1]


@pytest.mark.parametrize("key", ["secret\nkey", "secret\rkey", "secr\u00e9t", "secret\x7f", "secret\u200b"])
def test_a_key_that_no_header_holds(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("SOME_KEY", key)
    with pytest.raises(FederatedConfigError, match="the key in the environment variable 'SOME_KEY' to be") as error:
        EndpointExtractor("http://127.0.0.1:9", "m", api_key_variable="SOME_KEY")
    assert "secr" not in str(error.value) and error.value.__context__ is None


def test_the_key_is_hidden_as_others_quote_it(serve: Callable[..., Server]) -> None:
    """httpx prints the header as Python does; a server writes JSON."""
    url = serve(says("x")).url
    with pytest.raises(TransientExtractionError) as error:
        JsonPoster(url, f"{KEY}\r", Patience(attempts=1))({}, len)
    assert KEY not in str(error.value) and "***" in str(error.value)
    url = serve(answer(401, b'{"error": "wrong key a\\"b"}')).url
    with pytest.raises(FederatedConfigError, match=r"wrong key \*\*\*"):
        JsonPoster(url, 'a"b', Patience(attempts=1))({}, len)


@pytest.mark.parametrize("status", [400, 413, 415, 422])
def test_refusals_of_an_image(serve: Callable[..., Server], status: int) -> None:
    server = serve(answer(status, b"no"))
    with pytest.raises(ExtractionError, match=f"refused the request, status {status}: no") as error:
        ask(server)
    assert not isinstance(error.value, TransientExtractionError) and len(server.received) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308, 401, 402, 403, 404, 405, 410])
def test_refusals_of_us_end_the_run(serve: Callable[..., Server], status: int) -> None:
    server = serve(answer(status, b"", Location="/elsewhere"))
    with pytest.raises(FederatedConfigError, match=f"but got status {status}: check `base_url`, `model`, the key in"):
        ask(server)
    assert len(server.received) == 1


@pytest.mark.parametrize("status", [201, 202, 204])
def test_a_success_without_an_answer_is_a_failed_try(
    serve: Callable[..., Server], waits: list[float], status: int
) -> None:
    with pytest.raises(TransientExtractionError, match="no answer in 2 tries, the last one: JSONDecodeError"):
        ask(serve(answer(status, b"")))
    assert ask(serve(answer(status, b""), says("good"))) == "good" and len(waits) == 2


def test_times_to_wait() -> None:
    """Numbers and dates; what is neither, or lies beyond all calendars, says nothing."""
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert _seconds("7") == 7.0 and 25 < (_seconds(date) or 0) <= 30
    assert _seconds("-5") == 0.0 and _seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    far = f"Wed, 21 Oct {'9' * 23} 07:28:00 GMT"
    for header in (
        None,
        "",
        "rubbish",
        "nan",
        "1e999",
        far,
        "Wed, 21 Oct 2015 99:99:99 GMT",
        "Wed, 99 Oct",
        "9" * 5000,
    ):
        assert _seconds(header) is None
