"""A key that an endpoint repeats goes nowhere; a page of its is looked at as far as a person reads."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

import pytest
from chat_endpoint import Answer, Server, says, serving

from sightline.data.endpoint import Endpoint, Unanswered, complete

KEY = "sk-very-secret-0123"
MESSAGES = [{"role": "user", "content": "What?"}]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with serving(lambda asked: says("A cat.")) as running:
        yield running


def endpoint_of(server: Server, key: str = KEY) -> Endpoint:
    return Endpoint(server.url, "m", key, timeout=10, tries=3, first_wait=0.01)


def test_a_reply_that_repeats_the_key_is_not_kept(server: Server) -> None:
    replies = [says("A cat."), says(f"You said {KEY}.")]
    server.reply = lambda asked: replies.pop()
    endpoint = endpoint_of(server)
    assert complete(endpoint, MESSAGES, Counter()).text == "A cat."
    assert KEY not in endpoint.faults.get()
    server.reply = lambda asked: says(f"You said {KEY}.")
    with pytest.raises(Unanswered, match="repeats the key") as error:
        complete(endpoint, MESSAGES, Counter())
    assert KEY not in str(error.value)


def test_a_key_that_is_a_word_is_no_secret(server: Server) -> None:
    server.reply = lambda asked: says("An EMPTY room.")
    assert complete(endpoint_of(server, key="EMPTY"), MESSAGES, Counter()).text == "An EMPTY room."


def test_a_page_of_angle_brackets_is_looked_at_in_no_time(server: Server) -> None:
    server.reply = lambda asked: Answer(b"<" * 2_000_000, status=400)
    start = time.process_time()
    with pytest.raises(Unanswered, match="HTTP 400"):
        complete(endpoint_of(server), MESSAGES, Counter())
    assert time.process_time() - start < 5


def test_a_head_that_trickles_ends_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")

    def serve() -> None:
        connection, _ = listening.accept()
        with connection, suppress(OSError):
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nX-")
            while True:
                connection.sendall(b"x")
                time.sleep(0.02)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, daemon=True).start()
        endpoint = Endpoint(f"http://127.0.0.1:{listening.getsockname()[1]}/v1", "m", timeout=0.1, tries=1)
        start = time.monotonic()
        with pytest.raises(Unanswered, match="no reply within"):
            complete(endpoint, MESSAGES, Counter())
        assert time.monotonic() - start < 15
