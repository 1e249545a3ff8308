"""What servers do to whoever fetches: send without end, or a byte a second, lead astray; and what is said of it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from sightline import connections
from sightline.connections import Refused, is_private, refuse_url, shown_url
from sightline.limits import Limits, use
from sightline.network import Bounds, fetch_bytes, of_image, retry_after

OURS, ROWS = of_image(private=True), of_image(private=False)
Reply = Callable[[socket.socket], None]


@pytest.fixture(autouse=True)
def _usual(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield
    use(Limits())


class Raw:
    """A server that answers each connection with bytes as it likes."""

    def __init__(self) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listening.getsockname()[1]}"
        self.asked: list[str] = []
        self.reply: Reply = lambda connection: None
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listening.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            self.asked.append(connection.recv(65536).split(b"\r\n")[0].decode())
            with suppress(OSError):  # the other side has had enough
                self.reply(connection)


@pytest.fixture
def server() -> Iterator[Raw]:
    raw = Raw()
    yield raw
    raw.listening.close()


def says(head: str, body: bytes = b"") -> Reply:
    return lambda connection: connection.sendall(f"HTTP/1.1 {head}\r\n\r\n".encode() + body)


def refusal(url: str, bounds: Bounds = OURS) -> str:
    with pytest.raises(Refused) as error:
        fetch_bytes(url, bounds)
    return str(error.value)


# --- how much, and how long -------------------------------------------------------------------------------------------


def test_an_answer_comes_whole(server: Raw) -> None:
    server.reply = says("200 OK\r\nContent-Length: 5", b"hello")
    assert fetch_bytes(server.url, OURS) == b"hello"


def test_an_answer_without_end(server: Raw) -> None:
    sent = 0

    def endless(connection: socket.socket) -> None:
        nonlocal sent
        says("200 OK")(connection)
        while True:
            sent += connection.send(bytes(1 << 16))

    server.reply = endless
    use(Limits(image_megabytes=2))
    assert refusal(server.url) == (
        "is larger than 2 MB; fetch it by hand, or, where you trust it, --raise-limit image_megabytes=4"
    )
    assert sent < 20e6  # what lies in the buffers of sockets is not asked for


def test_an_announced_length_is_enough(server: Raw) -> None:
    server.reply = says("200 OK\r\nContent-Length: 900000000", b"x")
    assert "--raise-limit image_megabytes=900" in refusal(server.url)


def dripping(before: bytes) -> Reply:
    def reply(connection: socket.socket) -> None:
        connection.sendall(before)
        while True:
            connection.sendall(b"x")
            time.sleep(0.02)

    return reply


@pytest.mark.parametrize(
    "before", [b"", b"HTTP/1.1 200 OK\r\nX-", b"HTTP/1.1 200 OK\r\n\r\n"], ids=["", "head", "body"]
)
def test_a_byte_at_a_time(server: Raw, before: bytes) -> None:
    server.reply = dripping(before)
    use(Limits(image_seconds=0.3))
    start = time.monotonic()
    assert "takes longer than 0.3 s; fetch it by hand, or" in refusal(server.url)
    assert time.monotonic() - start < 15


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7), (" 1.5", 1.5), ("Thu, 01 Jan 1970 00:00:00 GMT", 0), ("soon", None), ("9" * 5000, None), (None, None)],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert retry_after(value) == seconds


# --- whom -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "own"),
    [
        *[(each, True) for each in ("127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.8", "172.16.3.4", "192.168.1.1")],
        *[(each, True) for each in ("169.254.169.254", "100.64.0.1", "224.0.0.1", "255.255.255.255", "::1", "::")],
        *[(each, True) for each in ("fe80::1%eth0", "fd00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1")],
        *[(each, True) for each in ("64:ff9b::7f00:1", "2002:7f00:1::")],
        *[
            (each, False)
            for each in ("1.1.1.1", "142.250.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808")
        ],
    ],
)
def test_addresses_of_the_own_network(address: str, own: bool) -> None:
    assert is_private(address) is own


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1"])
def test_rows_do_not_ask_the_own_network(server: Raw, host: str) -> None:
    port = server.url.rpartition(":")[2]
    try:
        socket.getaddrinfo(host, port)
    except OSError:
        pytest.skip("not an address here")
    assert "in the own network, which rows may not ask; --private-network" in refusal(f"http://{host}:{port}/a", ROWS)
    assert server.asked == []


def test_the_address_that_is_judged_is_the_one_that_is_reached(server: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    port = int(server.url.rpartition(":")[2])
    answers = [("127.0.0.1", port), ("127.0.0.2", port)]
    asked: list[str] = []

    def resolve(host: str, *_: object, **__: object) -> list[object]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", answers[len(asked) - 1])]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(connections, "is_private", lambda address: address != "127.0.0.1")
    server.reply = says("200 OK\r\nContent-Length: 2", b"ok")
    assert fetch_bytes("http://changes-its-mind.example/a", ROWS) == b"ok"
    assert asked == ["changes-its-mind.example"], "resolved once: a second answer would be another address"


def test_redirects_are_judged_like_first_addresses(server: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "is_private", lambda address: address != "127.0.0.1")
    server.reply = says("302 Found\r\nLocation: http://127.0.0.2:1/secret\r\nContent-Length: 0")
    assert "127.0.0.2 in the own network" in refusal(server.url, ROWS)


@pytest.mark.parametrize(
    "target", ["ftp://x/a", "file:///etc/passwd", "data:,a", "gopher://x", "http://me:pw@x/", "//x:0"]
)
def test_redirects_lead_to_http_alone(server: Raw, target: str) -> None:
    server.reply = says(f"302 Found\r\nLocation: {target}\r\nContent-Length: 0")
    said = refusal(server.url)
    assert said.startswith("leads to ") and "pw" not in said


def test_redirects_are_followed_and_come_to_an_end(server: Raw) -> None:
    def reply(connection: socket.socket) -> None:
        if "/there" in server.asked[-1]:
            says("200 OK\r\nContent-Length: 2", b"ok")(connection)
        else:
            where = "/there" if "/here" in server.asked[-1] else f"/{len(server.asked)}"
            says(f"301 Moved\r\nLocation: {where}\r\nContent-Length: 0")(connection)

    server.reply = reply
    assert fetch_bytes(f"{server.url}/here", OURS) == b"ok"
    with pytest.raises(OSError, match="301"):
        fetch_bytes(f"{server.url}/round", OURS)
    assert len(server.asked) < 20


def test_a_proxy_is_the_users_own(server: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.setenv("no_proxy", "")
    server.reply = says("200 OK\r\nContent-Length: 2", b"ok")
    assert fetch_bytes("http://nobody.invalid/a", ROWS) == b"ok"
    assert server.asked == ["GET http://nobody.invalid/a HTTP/1.1"]
    assert "own network" in refusal("http://169.254.169.254/latest", ROWS)
    assert len(server.asked) == 1


# --- what is said -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        *("http://x/a b", "http://x/\0", "http://x/a\r\nHost: y", "http://[/a", "http://", "http://x:99999/"),
        *("http://me:secret@x/", "ftp://x/", "http://xü/", "http://.x/", f"http://{'a' * 64}.de/", "file:///a"),
        "http://x:0/",
    ],
)
def test_urls_that_can_never_work(url: str) -> None:
    with pytest.raises(Refused) as error:
        refuse_url(url)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://x.org/a.jpg", "https://x.org/a.jpg"),
        ("https://me:secret@x.org:8/a.jpg?key=secret#secret", "https://x.org:8/a.jpg?..."),
        ("https://me:se@cret@x.org/a@b", "https://x.org/a@b"),
        ("https://x.org?secret", "https://x.org?..."),
        ("https://x.org/\x1b[2J", "https://x.org/\\x1b[2J"),
    ],
)
def test_secrets_of_urls_are_not_said(url: str, said: str) -> None:
    assert shown_url(url) == said


def test_urls_are_said_in_short() -> None:
    assert len(shown_url("http://x/" + "a" * 100_000)) == 160
