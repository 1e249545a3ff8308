"""URLs -> connections over HTTP and HTTPS alone, to addresses that are judged, until a given time."""

from __future__ import annotations

import functools
import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
import urllib.parse
import urllib.request
from contextlib import suppress
from typing import Any

from sightline.terminal import printable

_ADDRESSES = 4
"""Of those that a name has; all of a thousand dead ones would take hours."""


class Refused(Exception):
    """This URL is not asked, or its answer not taken, and no other try will change that."""


def shown_url(url: str) -> str:
    """A URL as messages show it: without user, password, query and fragment, which may be secrets."""
    bare = re.split(r"[?#]", url, maxsplit=1)[0]
    scheme, slashes, rest = bare.partition("://")
    if slashes:
        host, slash, path = rest.partition("/")
        bare = scheme + slashes + host.rpartition("@")[2] + slash + path
    line = printable(bare) + ("?..." if bare != url and "?" in url else "")
    return line if len(line) <= 160 else line[:120] + "..." + line[-37:]


def refuse_url(url: str) -> None:
    """Raise Refused for a URL that can never work."""
    if not url.startswith(("http://", "https://")):
        raise Refused("is no http(s) URL")
    if not re.fullmatch(r"[!-~]+", url):
        raise Refused("has blanks or other characters that no URL has; write them as %20 and the like")
    try:
        parts = urllib.parse.urlsplit(url)
        well_formed = bool(parts.hostname) and parts.port != 0
        (parts.hostname or "").encode("idna")
    except ValueError:
        raise Refused("is no proper URL") from None
    if not well_formed:
        raise Refused("is no proper URL")
    if "@" in parts.netloc:
        raise Refused("holds a user name or a password, which are not sent to servers")


def is_private(address: str) -> bool:
    """Whether an IP address belongs to this machine or its network (loopback, link-local, private, ...)."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inside = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        if ip in ipaddress.ip_network("64:ff9b::/96"):  # NAT64
            inside.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
        if any(each is not None and is_private(str(each)) for each in inside):
            return True
        if ip.ipv4_mapped is not None:
            return False
    return not ip.is_global or ip.is_multicast


class Watch:
    """Breaks connections off when the time is over: a timeout of a socket begins anew with every byte."""

    def __init__(self, until: float) -> None:
        self.ended = False
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(min(max(until - time.monotonic(), 0.0), threading.TIMEOUT_MAX), self._end)
        self._timer.daemon = True
        self._timer.start()

    def add(self, connection: socket.socket) -> None:
        with self._lock:
            if self.ended:
                raise TimeoutError
            self._sockets.append(connection.dup())  # the connection itself may vanish into one of TLS

    def _end(self) -> None:
        with self._lock:
            self.ended = True
            for each in self._sockets:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._timer.cancel()
        with self._lock:
            for each in self._sockets:
                each.close()
            self._sockets.clear()


def opener(private: bool, watch: Watch, *, redirects: bool = True) -> urllib.request.OpenerDirector:
    """HTTP and HTTPS alone; files, FTP and data URIs are left out."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        _Http(private, watch),
        _Https(private, watch),
        *([_Redirects()] if redirects else []),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
    ):
        opener.add_handler(handler)
    return opener


class _Http(urllib.request.HTTPHandler):
    def __init__(self, private: bool, watch: Watch) -> None:
        super().__init__()
        self._guard = private, watch

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_guarded(http.client.HTTPConnection, request, *self._guard), request)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, private: bool, watch: Watch) -> None:
        super().__init__(context=_certificates())
        self._guard = private, watch

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        make = _guarded(http.client.HTTPSConnection, request, *self._guard)
        return self.do_open(make, request, context=_certificates())


class _Redirects(urllib.request.HTTPRedirectHandler):
    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        where = headers.get("location") or headers.get("uri") or ""
        target = urllib.parse.urljoin(req.full_url, where)
        try:
            refuse_url(urllib.parse.quote(target, safe="".join(map(chr, range(33, 127)))))
        except Refused as error:
            fp.close()
            raise Refused(f"leads to {shown_url(target)}, which {error}") from None
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


@functools.cache
def _certificates() -> ssl.SSLContext:
    return ssl.create_default_context()


def _guarded(kind: Any, request: urllib.request.Request, private: bool, watch: Watch) -> Any:
    """Makes connections that know whom they reach: the address that is judged is the one that is connected to."""
    to = urllib.parse.urlsplit(request.full_url)
    by_proxy = request.host != to.netloc  # it is the user's own, and it alone knows the address

    def connect(where: tuple[str, int], timeout: float, source: Any = None) -> socket.socket:
        if by_proxy and not private:
            with suppress(OSError):
                _addresses((str(to.hostname), to.port or 443), private)
        fault: OSError = OSError("it has no address")
        for family, socket_kind, protocol, _, address in _addresses(where, private or by_proxy):
            connection = socket.socket(family, socket_kind, protocol)
            try:
                watch.add(connection)
                connection.settimeout(timeout)
                connection.connect(address)
                return connection
            except OSError as error:
                connection.close()
                fault = error
        raise fault

    def make(host: str, **settings: Any) -> Any:
        connection = kind(host, **settings)
        connection._create_connection = connect
        return connection

    return make


def _addresses(where: tuple[str, int], private: bool) -> list[Any]:
    found = socket.getaddrinfo(*where, type=socket.SOCK_STREAM)
    allowed = [each for each in found if private or not is_private(str(each[4][0]))]
    if found and not allowed:
        raise Refused(f"leads to {where[0]} in the own network, which rows may not ask; --private-network allows it")
    return allowed[:_ADDRESSES]
