"""A local endpoint that says what a test wants it to say, however wrong, and remembers what it was asked."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image


@dataclass
class Asked:
    """A request as it arrived."""

    path: str
    headers: dict[str, str]
    """Names in lower case."""
    body: dict[str, Any]

    def picture(self) -> Image.Image:
        """The first picture of the first message."""
        (part,) = (part for part in self.body["messages"][0]["content"] if part["type"] == "image_url")
        head, _, data = part["image_url"]["url"].partition(",")
        assert head == "data:image/jpeg;base64"
        return Image.open(io.BytesIO(base64.b64decode(data, validate=True)))


@dataclass
class Answer:
    """What to send back; `length` lies about the size, `late` is in seconds."""

    content: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None
    late: float = 0.0


def says(text: str | None, **message: Any) -> Answer:
    """A well-formed reply with this text, of 100 and 10 tokens."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    whole = {"id": "x", "object": "chat.completion", "model": "m", "created": 1, "choices": [choice], "usage": usage}
    return Answer(json.dumps(whole).encode())


def pairs_text(n: int, what: str = "it") -> str:
    return json.dumps([{"question": f"Question {i} on {what}?", "answer": f"Answer {i} on {what}."} for i in range(n)])


@dataclass
class Server:
    url: str
    reply: Callable[[Asked], Answer]
    asked: list[Asked] = field(default_factory=list)
    at_once: int = 0
    """The most requests that were open together."""


@contextmanager
def serving(reply: Callable[[Asked], Answer]) -> Iterator[Server]:
    """Serve on a free port; requests are answered in threads, so `reply` may be late."""
    closing = threading.Event()
    lock = threading.Lock()
    busy = 0

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            nonlocal busy
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked = Asked(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
            with lock:
                server.asked.append(asked)
                busy += 1
                server.at_once = max(server.at_once, busy)
            answer = server.reply(asked)
            closing.wait(answer.late)
            with lock:
                busy -= 1
            with suppress(BrokenPipeError, ConnectionResetError):  # the client was killed
                self.send(answer)

        do_GET = do_POST

        def send(self, answer: Answer) -> None:
            self.send_response(answer.status)
            length = len(answer.content) if answer.length is None else answer.length
            for name, value in {"Content-Length": str(length), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *_: Any) -> None:
            pass

    class HTTPServer(ThreadingHTTPServer):
        request_queue_size = 64  # of its own it takes five at once, and lets the sixth wait a second

    http_server = HTTPServer(("127.0.0.1", 0), Handler)
    server = Server(f"http://127.0.0.1:{http_server.server_address[1]}/v1", reply)
    thread = threading.Thread(target=http_server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        closing.set()
        http_server.shutdown()
        http_server.server_close()
        thread.join()
