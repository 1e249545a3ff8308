"""What is sent, when it is sent again, and when it is not; against a local server that does everything wrong."""

from __future__ import annotations

import email.utils
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from chat_endpoint import Answer, Asked, Server, says, serving

from sightline.data import endpoint as endpoint_module
from sightline.data.endpoint import Endpoint, Stopped, Unanswered, complete
from sightline.errors import UserError
from sightline.runtime import api_key

KEY = "sk-very-secret-0123"
MESSAGES = [{"role": "user", "content": [{"type": "text", "text": "What is this? 这是什么？"}]}]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(lambda asked: says("A cat.")) as running:
        yield running


def endpoint_of(server: Server, **settings: Any) -> Endpoint:
    return Endpoint(server.url, "m", **{"key": KEY, "timeout": 10, "tries": 3, "first_wait": 0.01, **settings})


def in_turn(*answers: Answer) -> Callable[[Asked], Answer]:
    left = list(answers)
    return lambda asked: left.pop(0) if len(left) > 1 else left[0]


def test_what_is_sent(server: Server) -> None:
    """Written down from the reference of the chat completions API."""
    reply = complete(endpoint_of(server, extra={"temperature": 0.5}), MESSAGES, Counter())
    assert (reply.text, reply.finish) == ("A cat.", "stop")
    (asked,) = server.asked
    assert asked.path == "/v1/chat/completions"
    assert asked.body == {"model": "m", "messages": MESSAGES, "temperature": 0.5}
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert asked.headers["content-type"] == "application/json"


def test_the_same_as_the_openai_client_sends(server: Server) -> None:
    openai = pytest.importorskip("openai")
    picture = {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,QUJD"}}
    messages = [{"role": "user", "content": [*MESSAGES[0]["content"], picture]}]
    complete(endpoint_of(server, extra={"max_tokens": 9}), messages, Counter())
    client = openai.OpenAI(base_url=server.url, api_key=KEY, max_retries=0)
    theirs = client.chat.completions.create(model="m", messages=messages, max_tokens=9)
    assert theirs.choices[0].message.content == "A cat."  # so the server speaks the client's language
    ours, reference = server.asked
    assert (ours.path, ours.body) == (reference.path, reference.body)
    for name in ("authorization", "content-type", "accept"):
        assert ours.headers[name] == reference.headers[name]


def test_without_a_key_none_is_sent(server: Server) -> None:
    complete(endpoint_of(server, key=None), MESSAGES, Counter())
    assert "authorization" not in server.asked[0].headers


GOOD = says("A cat.").content
FAULTS = {
    "HTTP 500 (overloaded)": Answer(b'{"error": {"message": "overloaded"}}', status=500),
    "HTTP 503": Answer(status=503),
    "HTTP 502 ( Bad gateway": Answer(b"<html><h1>Bad gateway</h1></html>", status=502),
    "HTTP 429 (slow down)": Answer(b'{"error": "slow down"}', status=429),
    "HTTP 408": Answer(status=408),
    "the reply is no JSON: Hello": Answer(b"Hello"),
    "the reply is no JSON: nothing at all": Answer(b""),
    "the reply holds no message: upstream is gone": Answer(b'{"error": {"message": "upstream is gone"}}'),
    "the reply holds no message: {": Answer(b'{"choices": []}'),
    "the reply holds no message: []": Answer(b"[]"),
    "the reply holds no message: null": Answer(b"null"),
    "the reply is no JSON: {": Answer(GOOD, length=len(GOOD) - 5),
    "the reply broke off": Answer(GOOD[:50], length=len(GOOD)),
    "no reply within 1 s": Answer(GOOD, late=30),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_may_pass_is_tried_again(server: Server, fault: str) -> None:
    server.reply = in_turn(FAULTS[fault], says("A cat."))
    endpoint = endpoint_of(server, timeout=1 if "within" in fault else 10)
    assert complete(endpoint, MESSAGES, Counter()).text == "A cat."
    assert len(server.asked) == 2
    assert endpoint.faults.get().startswith(fault.replace("( ", "("))


def test_a_longer_body_than_there_is_ends_by_the_clock(server: Server) -> None:
    """The server keeps the connection open, as if there were more to come."""
    server.reply = lambda asked: Answer(GOOD, headers={"Connection": "keep-alive"}, length=len(GOOD) + 10)
    with pytest.raises(Unanswered, match=r"no reply within 0\.3 s"):
        complete(endpoint_of(server, timeout=0.3), MESSAGES, Counter())


def test_a_body_that_trickles_ends_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def trickle() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                for _ in range(40):
                    time.sleep(0.05)
                    try:
                        connection.sendall(b" ")
                    except OSError:
                        return

        thread = threading.Thread(target=trickle, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        start = time.monotonic()
        with pytest.raises(Unanswered, match=r"no reply within 0\.3 s"):
            complete(Endpoint(url, "m", timeout=0.3, tries=1), MESSAGES, Counter())
        assert time.monotonic() - start < 1.5
        thread.join()


def test_tries_are_bounded(server: Server) -> None:
    server.reply = lambda asked: Answer(status=500)
    with pytest.raises(Unanswered, match="HTTP 500, 3 times in all"):
        complete(endpoint_of(server), MESSAGES, Counter())
    assert len(server.asked) == 3


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
    with pytest.raises(Unanswered, match=r"no connection \(.*refused.*\), 2 times in all"):
        complete(Endpoint(url, "m", tries=2, first_wait=0.01), MESSAGES, Counter())


def test_waits_double(server: Server) -> None:
    server.reply = lambda asked: Answer(status=500)
    start = time.monotonic()
    with pytest.raises(Unanswered):
        complete(endpoint_of(server, first_wait=0.1, tries=4), MESSAGES, Counter())
    assert 0.75 * (0.1 + 0.2 + 0.4) <= time.monotonic() - start < 2


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_honoured(server: Server, as_date: bool) -> None:
    wait = email.utils.formatdate(time.time() + 2, usegmt=True) if as_date else "1"
    server.reply = in_turn(Answer(status=429, headers={"Retry-After": wait}), says("A cat."))
    start = time.monotonic()
    complete(endpoint_of(server), MESSAGES, Counter())
    assert 0.9 <= time.monotonic() - start < 4


def test_retry_after_holds_for_all_threads(server: Server) -> None:
    server.reply = in_turn(Answer(status=429, headers={"Retry-After": "1"}), says("A cat."))
    endpoint = endpoint_of(server)
    first = threading.Thread(target=complete, args=(endpoint, MESSAGES, Counter()))
    first.start()
    while not endpoint.faults.qsize():
        time.sleep(0.01)
    time.sleep(0.05)
    start = time.monotonic()
    complete(endpoint, MESSAGES, Counter())
    assert time.monotonic() - start > 0.7
    first.join()


def test_a_retry_after_without_sense_is_ours_to_choose(server: Server) -> None:
    server.reply = in_turn(Answer(status=503, headers={"Retry-After": "soon"}), says("A cat."))
    assert complete(endpoint_of(server), MESSAGES, Counter()).text == "A cat."


@pytest.mark.parametrize(
    ("answer", "remedy"),
    [
        (Answer(b'{"error": {"message": "no such key"}}', status=401), "no such key.*check OPENAI_API_KEY"),
        (Answer(status=402), "no credit left"),
        (Answer(b'{"error": {"message": "?", "code": "insufficient_quota"}}', status=429), "no credit left"),
        (Answer(b'{"detail": "Not Found"}', status=404), r"HTTP 404 \(Not Found\).*--model and --base-url"),
        (Answer(status=307, headers={"Location": "https://elsewhere/v1"}), "https://elsewhere/v1; name the final"),
        (Answer(status=302, headers={"Location": "http://[x"}), r"http://\[x; name the final"),
        (Answer(b"\x1b[31m" + "\u202e".encode(), status=404), r"HTTP 404 \(\\x1b\[31m\\u202e\)"),
        (Answer(status=429, headers={"Retry-After": "86400"}), "wait 1440 minutes"),
    ],
)
def test_what_no_further_try_mends_ends_at_once(server: Server, answer: Answer, remedy: str) -> None:
    server.reply = lambda asked: answer
    with pytest.raises(UserError, match=remedy) as error:
        complete(endpoint_of(server), MESSAGES, Counter())
    assert "\n" not in str(error.value)
    assert len(server.asked) == 1


def test_a_missing_key_is_asked_for(server: Server) -> None:
    server.reply = lambda asked: Answer(status=401)
    with pytest.raises(UserError, match="set OPENAI_API_KEY in the environment"):
        complete(endpoint_of(server, key=None), MESSAGES, Counter())


def test_what_concerns_one_request_ends_that_one(server: Server) -> None:
    server.reply = lambda asked: Answer(b'{"error": {"message": "picture too small"}}', status=400)
    with pytest.raises(Unanswered, match=r"HTTP 400 \(picture too small\)"):
        complete(endpoint_of(server), MESSAGES, Counter())
    assert len(server.asked) == 1


def test_a_stop_ends_the_wait(server: Server) -> None:
    server.reply = lambda asked: Answer(status=500)
    endpoint = endpoint_of(server, first_wait=60)
    threading.Timer(0.2, endpoint.stop.set).start()
    with pytest.raises(Stopped):
        complete(endpoint, MESSAGES, Counter())
    assert len(server.asked) == 1


def test_what_useless_replies_cost_counts_too(server: Server) -> None:
    empty = Answer(b'{"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 0}}')
    silent = Answer(b'{"choices": [{"message": {"content": "A cat."}}], "usage": null}')
    server.reply = in_turn(empty, Answer(status=500), silent)
    spent = Counter[str]()
    complete(endpoint_of(server), MESSAGES, spent)
    assert +spent == {"replies": 2, "prompt_tokens": 7, "without_usage": 1}


@pytest.mark.parametrize(
    ("message", "finish"),
    [({"refusal": "I will not."}, "refusal: I will not."), ({}, "stop"), ({"content": []}, "stop")],
)
def test_a_reply_without_text(server: Server, message: dict[str, Any], finish: str) -> None:
    server.reply = lambda asked: says(None, **message)
    reply = complete(endpoint_of(server), MESSAGES, Counter())
    assert (reply.text, reply.finish) == ("", finish)


@pytest.mark.parametrize("status", [200, 302, 400, 401, 404, 429, 500])
def test_the_key_is_in_no_message(server: Server, status: int) -> None:
    def echo(asked: Asked) -> Answer:
        header = asked.headers["authorization"]
        return Answer(f'{{"error": "wrong: {header}"}}'.encode(), status=status, headers={"Location": f"/{header}"})

    server.reply = echo
    endpoint = endpoint_of(server)
    with pytest.raises((UserError, Unanswered)) as error:
        complete(endpoint, MESSAGES, Counter())
    said = [str(error.value), *(endpoint.faults.get() for _ in range(endpoint.faults.qsize())), repr(endpoint)]
    assert KEY not in "".join(said)
    assert "***" in said[0]


def test_a_key_that_is_none_is_not_shown(server: Server) -> None:
    with pytest.raises(UserError, match="OPENAI_API_KEY has characters") as error:
        endpoint_of(server, key="sk-1\nsk-2")
    assert "sk-" not in str(error.value)


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    assert api_key() == KEY
    monkeypatch.setenv("OPENAI_API_KEY", "")
    assert api_key() is None


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000/v1",
        "ftp://x/v1",
        "http://",
        "http://x:port/v1",
        "http://x:99999",
        "http://x/v 1",
        "http://ü/v1",
        "http://[x",
    ],
)
def test_no_address(url: str) -> None:
    with pytest.raises(UserError, match="is no http"):
        Endpoint(url, "m")


@pytest.mark.parametrize(
    "url", ["http://me:secret@x/v1", "http://secret@x/v1", "http://x/v1?key=secret", "http://x#secret"]
)
def test_an_address_with_more_in_it_is_not_repeated(url: str) -> None:
    with pytest.raises(UserError, match="OPENAI_API_KEY alone") as error:
        Endpoint(url, "m")
    assert "secret" not in str(error.value)


def test_a_reply_without_end_is_not_read_to_its_end(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sightline.network.LARGEST_REPLY", 1000)
    server.reply = in_turn(Answer(b"x" * 1001), Answer(b"x" * 1001, status=503), says("A cat."))
    assert complete(endpoint_of(server), MESSAGES, Counter()).text == "A cat."


def test_the_wait_stops_doubling(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "_LONGEST_BACKOFF", 0.0)
    server.reply = lambda asked: Answer(status=500 if len(server.asked) < 1100 else 400)
    with pytest.raises(Unanswered, match="HTTP 400"):
        complete(endpoint_of(server, tries=2000), MESSAGES, Counter())
