"""A small HTTP server on this machine that breaks off, lies, changes its mind and refuses, as told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Served:
    """A file and how the server behaves about it."""

    content: bytes
    etag: str | None = '"one"'
    modified: str | None = None
    kind: str = "application/octet-stream"
    ranges: bool = True
    if_range: bool = True
    """Whether it honours If-Range."""
    breaks: list[int] = field(default_factory=list)
    """How many bytes it sends in the coming answers before it hangs up."""
    announced: int | None = None
    """What it claims to be the length of the file."""
    length: bool = True
    """Whether it says a length at all."""
    refusals: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    """Status and headers of the coming answers."""
    changes: list[tuple[bytes, str]] = field(default_factory=list)
    """Content and ETag that it has after each of the coming answers."""


class Server:
    """What is served, and what was asked for."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.files: dict[str, Served] = {}
        self.asked: list[tuple[str, str, str | None]] = []
        """Method, path, Range of each request."""

    def gets(self, path: str) -> list[str | None]:
        return [wanted for method, asked, wanted in self.asked if method == "GET" and asked == path]


@contextmanager
def file_server() -> Iterator[Server]:
    """A server in a thread of its own, until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            server.asked.append((self.command, self.path, self.headers.get("Range")))
            file = server.files.get(self.path)
            if file is None:
                return self.refuse(404, {})
            if body and file.refusals:
                return self.refuse(*file.refusals.pop(0))
            content, etag, total = file.content, file.etag, file.announced or len(file.content)
            start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
            asked = self.headers.get("If-Range")
            same = asked is None or not file.if_range or asked in (etag, file.modified)
            if not file.ranges or not same:
                start = 0
            if start >= total and start:
                return self.refuse(416, {"Content-Range": f"bytes */{total}"})
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            if file.length:
                self.send_header("Content-Length", str(total - start))
            self.send_header("Content-Type", file.kind)
            for name, value in (("ETag", etag), ("Last-Modified", file.modified)):
                if value:
                    self.send_header(name, value)
            self.end_headers()
            if body:
                sent = content[start:]
                self.wfile.write(sent[: file.breaks.pop(0)] if file.breaks else sent)
                if file.changes:
                    file.content, file.etag = file.changes.pop(0)

        def refuse(self, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = Server(f"http://127.0.0.1:{httpd.server_port}")
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()
