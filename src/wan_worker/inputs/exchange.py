"""One HTTP request on one connection that we opened ourselves.

Host, SNI and the certificate check use the name; the socket goes to a checked address. Every wait
(handshake, header, body) ends at the call's deadline, even if bytes arrive slowly. A body's bytes
are counted after decoding, as they arrive. Every fault is a ``FetchFailed`` that says whether a
retry may help.
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
"""How long a stalled read may delay the end of a cancelled job."""
CHUNK_BYTES: Final = 64 * 1024
RETRYABLE: Final = frozenset({408, 425, 429})
"""After these statuses and every 5xx, a retry may help."""


class Sink(Protocol):
    """Where a body goes. Its errors pass through, but an OSError counts as the network's."""

    def seek(self, offset: int, /) -> int: ...
    def truncate(self) -> int: ...
    def write(self, data: bytes, /) -> int: ...


@contextmanager
def exchange(
    method: str, target: Target, call: Call, headers: Mapping[str, str], body: bytes | None = None
) -> Iterator[http.client.HTTPResponse]:
    """Send one request on a connection of our own; turn every fault into ``FetchFailed``."""
    with ExitStack() as stack:
        try:
            sock = stack.enter_context(dial(target, call))
            if target.scheme == "https":
                sock.settimeout(min(call.left(), CONNECT_SECONDS))  # for the handshake as a whole
                tls = call.policy.tls()
                sock = stack.enter_context(tls.wrap_socket(sock, server_hostname=target.host))
            connection = http.client.HTTPConnection(target.host, target.port)
            connection.auto_open = 0  # it must never dial by itself
            connection.sock = cast(socket.socket, _DeadlineSocket(sock, call.left))
            fixed = {"Host": target.authority, "User-Agent": "wan-worker", "Connection": "close"}
            connection.request(method, target.path, body, {**headers, **fixed})
            yield stack.enter_context(connection.getresponse())
        except ssl.SSLError:
            raise call.failed("the TLS connection failed", retryable=False) from None
        except (OSError, http.client.HTTPException):
            raise call.failed("the server is unreachable or broke off", retryable=True) from None


class _CheckedReader(BufferedReader):
    """The file that http.client reads. It asks for as many bytes as a chunk's header says, even for
    a negative size: -1 would read all that a server can send into memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            raise http.client.HTTPException("a chunk of negative size")
        return super().read(size)


class _DeadlineSocket(RawIOBase):
    """A socket for http.client whose every wait ends at the deadline."""

    def __init__(self, sock: socket.socket, left: Callable[[], float]) -> None:
        self._sock = sock
        self._left = left

    def sendall(self, data: bytes) -> None:
        self._sock.settimeout(self._left())
        self._sock.sendall(data)

    def makefile(self, _mode: str) -> BufferedReader:
        return _CheckedReader(self, CHUNK_BYTES)

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
        """Do nothing: http.client calls this after the headers, and the body still follows."""


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
    if response.length:  # bytes that http.client still expects
        raise call.failed("the server broke off before the end", retryable=True)


def _decoded(response: http.client.HTTPResponse, call: Call) -> Iterator[bytes]:
    """Yield the body, unpacked if the server compresses it although we asked it not to.

    Each piece is at most one chunk, so that the caller can stop a decompression bomb early.
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
