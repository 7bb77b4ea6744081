"""One HTTP request on one connection that we opened ourselves.

Host, SNI and the certificate check keep the name while the socket goes to a checked address. Every
wait (handshake, header, body) ends at the call's deadline, however slowly bytes drip. A body is
counted after decoding, as it comes. Every fault is a ``FetchFailed`` that says whether it may pass.
Not covered: where the socket may go (dialing), encodings other than gzip.
"""

import http.client
import socket
import ssl
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from io import BufferedReader, RawIOBase
from typing import Final, Protocol, cast

from wan_worker.inputs.addresses import Target
from wan_worker.inputs.dialing import CONNECT_SECONDS, Call, dial

POLL_SECONDS: Final = 0.5
"""How long a stalled read may keep a cancelled job."""
CHUNK_BYTES: Final = 64 * 1024
RETRYABLE: Final = frozenset({408, 425, 429})
"""And every 5xx."""


class Sink(Protocol):
    """Where a body goes; what it raises passes through, unless it is an OSError (a network's)."""

    def seek(self, offset: int, /) -> int: ...
    def truncate(self) -> int: ...
    def write(self, data: bytes, /) -> int: ...


@contextmanager
def exchange(
    method: str, target: Target, call: Call, headers: Mapping[str, str], body: bytes | None = None
) -> Iterator[http.client.HTTPResponse]:
    """One request on one connection that we opened ourselves, and every fault on it translated."""
    with ExitStack() as stack:
        try:
            sock = stack.enter_context(dial(target, call))
            if target.scheme == "https":
                sock.settimeout(min(call.left(), CONNECT_SECONDS))  # for the handshake as a whole
                tls = call.policy.tls()
                sock = stack.enter_context(tls.wrap_socket(sock, server_hostname=target.host))
            connection = http.client.HTTPConnection(target.host, target.port)
            connection.auto_open = 0  # it must never dial by itself
            connection.sock = cast(socket.socket, _Wire(sock, call.left))
            fixed = {"Host": target.authority, "User-Agent": "wan-worker", "Connection": "close"}
            connection.request(method, target.path, body, {**headers, **fixed})
            yield stack.enter_context(connection.getresponse())
        except ssl.SSLError:
            raise call.failed("the TLS connection failed", retryable=False) from None
        except (OSError, http.client.HTTPException):
            raise call.failed("the server is unreachable or broke off", retryable=True) from None


class _Reader(BufferedReader):
    """What http.client reads from. It asks for as many bytes as a chunk's header says, and takes a
    negative size as it comes: -1 would read all that a server can send into memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            raise http.client.HTTPException("a chunk of negative size")
        return super().read(size)


class _Wire(RawIOBase):
    """A socket as http.client wants it, on which every wait ends at the deadline."""

    def __init__(self, sock: socket.socket, left: Callable[[], float]) -> None:
        self._sock = sock
        self._left = left

    def sendall(self, data: bytes) -> None:
        self._sock.settimeout(self._left())
        self._sock.sendall(data)

    def makefile(self, _mode: str) -> BufferedReader:
        return _Reader(self, CHUNK_BYTES)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while True:
            self._sock.settimeout(min(self._left(), POLL_SECONDS))
            try:
                return self._sock.recv_into(buffer)
            except TimeoutError:
                continue

    def close(self) -> None:
        """http.client closes its side when the headers are in; the body still comes over it."""


def receive(response: http.client.HTTPResponse, call: Call, max_bytes: int, sink: Sink) -> None:
    if response.status != 200:
        retryable = response.status in RETRYABLE or response.status >= 500
        raise call.failed(f"the server answered {response.status}", retryable=retryable)
    too_large = call.failed(f"is larger than {max_bytes} bytes", retryable=False)
    if response.length is not None and response.length > max_bytes:
        raise too_large
    encoded = "Content-Encoding" in response.headers
    done, total = 0, None if encoded else response.length
    sink.seek(0)
    sink.truncate()
    try:
        for part in _decoded(response, call):
            done += len(part)
            if done > max_bytes:
                raise too_large
            sink.write(part)
            call.progress(done, total)
    except zlib.error:
        raise call.failed("its compressed content is damaged", retryable=False) from None
    if response.length:  # what http.client still waits for
        raise call.failed("the server broke off before the end", retryable=True)


def _decoded(response: http.client.HTTPResponse, call: Call) -> Iterator[bytes]:
    """The body, unpacked where the server compresses although it was asked not to.

    Yields no more than a chunk at a time, so that the caller stops a bomb early.
    """
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    if encoding in ("", "identity"):
        while raw := response.read(CHUNK_BYTES):
            yield raw
        return
    if encoding not in ("gzip", "x-gzip"):
        raise call.failed("the server uses an encoding that was not asked for", retryable=False)
    unpack = zlib.decompressobj(wbits=31)
    while raw := response.read(CHUNK_BYTES):
        while raw:
            call.left()
            yield unpack.decompress(raw, CHUNK_BYTES)
            raw = unpack.unconsumed_tail
            if unpack.eof and unpack.unused_data:
                raise call.failed("its compressed content has a tail", retryable=False)
    if not unpack.eof:
        raise call.failed("the server broke off before the end", retryable=True)
