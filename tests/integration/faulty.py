"""A reverse proxy on loopback that breaks what it is told to: S3 on a bad day.

It stands between a client and a real server, passes on what it gets byte for byte (signatures hold,
since Host is passed on too) and asks ``fault`` at each request what to do with it. ``seen`` keeps
every request, so that a test can tell what was asked of the store and how often.

Not covered: HTTPS, answers that are cut off, requests without a Content-Length.
"""

import socket
import struct
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

PIECE = 64 * 1024
HELD_SECONDS = 60.0
"""A request that a test holds and forgets is let go after this."""


@dataclass(frozen=True)
class Asked:
    """A request as it came."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    """Names in lower case."""

    @property
    def is_part(self) -> bool:
        return self.method == "PUT" and "partNumber" in self.query

    @property
    def is_abort(self) -> bool:
        return self.method == "DELETE" and "uploadId" in self.query


@dataclass(frozen=True)
class Refuse:
    """Answer in the server's place, with an S3 error."""

    status: int
    code: str


@dataclass(frozen=True)
class Reset:
    """Take so many bytes of the body, then break the connection off (RST)."""

    after: int = 0


@dataclass(frozen=True)
class Deaf:
    """Pass the request on, but lose its answer: the connection breaks off."""


@dataclass(frozen=True)
class Hold:
    """Take so many bytes of the body, then wait for ``release`` to go on or ``drop`` to end."""

    after: int = 0


Fault = Refuse | Reset | Deaf | Hold


class FaultyProxy:
    """Stands before ``http://127.0.0.1:PORT``; broken by setting ``fault``."""

    def __init__(self, target: str) -> None:
        self.target = urlsplit(target).netloc
        self.fault: Callable[[Asked], Fault | None] = lambda _: None
        self.seen: list[Asked] = []
        self.holding = threading.Event()
        """A request is held now."""
        self.released = threading.Event()
        self.dropping = False

    def __enter__(self) -> Self:
        self._server = _Server(self)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def behave(self) -> None:
        """From now on pass everything on, what is held too; forget what was seen."""
        self.release()
        self.seen.clear()

    def hold(self, which: Callable[[Asked], bool], after: int = 0) -> None:
        """Hold requests like these until ``release``."""
        self.holding.clear()
        self.released.clear()
        self.dropping = False
        self.fault = lambda asked: Hold(after) if which(asked) else None

    def release(self) -> None:
        """Let what is held go on, and hold nothing more."""
        self.fault = lambda _: None
        self.released.set()
        self.holding.clear()

    def drop(self) -> None:
        """As if the client had been cut off while it was held."""
        self.dropping = True
        self.release()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a client that was killed may leave one waiting

    def __init__(self, proxy: FaultyProxy) -> None:
        self.proxy = proxy
        super().__init__(("127.0.0.1", 0), _Pass)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that break are what this is for."""


class _Pass(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"  # so that Expect: 100-continue is answered
    timeout = 30

    def _pass(self) -> None:
        url = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        query = parse_qs(url.query, keep_blank_values=True)
        asked = Asked(self.command, url.path, query, headers)
        self.server.proxy.seen.append(asked)
        match self.server.proxy.fault(asked):
            case Refuse(status, code):
                self._read()
                self._answer(status, {"Content-Type": "application/xml"}, _error(code))
            case Reset(after):
                self._read(after)
                self._break_off()
            case Deaf():
                self._forward(self._read())
                self._break_off()
            case Hold(after):
                body = self._read(after)
                self.server.proxy.holding.set()
                self.server.proxy.released.wait(HELD_SECONDS)
                if self.server.proxy.dropping:
                    self._break_off()
                else:
                    self._answer(*self._forward(body + self._read(taken=len(body))))
            case None:
                self._answer(*self._forward(self._read()))

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass

    def _read(self, most: int | None = None, taken: int = 0) -> bytes:
        """The rest of the body, or ``most`` bytes of it."""
        left = int(self.headers.get("Content-Length", 0)) - taken
        left = left if most is None else min(left, most)
        pieces = []
        while left:
            piece = self.rfile.read(min(PIECE, left))
            if not piece:
                raise ConnectionError("the client is gone")
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces)

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        ours = {"expect", "connection", "transfer-encoding"}
        connection = HTTPConnection(self.server.proxy.target, timeout=30)
        try:
            passed = {k: v for k, v in self.headers.items() if k.lower() not in ours}
            connection.request(self.command, self.path, body or None, passed)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        with suppress(ConnectionError):  # a client that was killed meanwhile is no error
            self.send_response_only(status)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                    self.send_header(name, value)
            length = headers.get("Content-Length") if self.command == "HEAD" else str(len(body))
            self.send_header("Content-Length", length or "0")
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)

    def _break_off(self) -> None:
        """RST, not FIN: what a balancer does that dies."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        socket.close(self.connection.detach())  # close() would wait for rfile

    def log_message(self, format: str, *args: Any) -> None:
        """``seen`` is the record."""


def _error(code: str) -> bytes:
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code>'
        f"<Message>injected</Message></Error>"
    ).encode()
