"""Fetch and post within caps and one deadline, dialling only what addresses allows.

- The name is resolved once per try, every answer must be public, and the socket goes to one of the
  checked addresses, while Host, SNI and the certificate check keep the name (no DNS rebinding).
- Each redirect is a new URL, checked like the first; nothing but a fixed set of headers is sent, so
  no credential can cross hosts.
- Every wait (resolver, connect, handshake, header, body) ends at one monotonic deadline, however
  slowly bytes drip; bodies are counted after decoding, as they come.
- A name that is internal and a name that does not exist give the same answer.

With ``allow_private`` (the operator's escape hatch, and loopback tests) any address, port and
environment proxy setting will do; schemes, caps and deadlines stay.

Not covered: proxies (refused where the environment sets one), encodings other than gzip,
Retry-After given as a date.
"""

import http.client
import re
import socket
import ssl
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from io import BufferedReader, BytesIO, RawIOBase
from typing import Final, Protocol, cast

from wan_worker import addresses
from wan_worker.addresses import Target
from wan_worker.errors import FetchFailed

MAX_REDIRECTS: Final = 5
PAUSES: Final = (0.25, 0.5)
"""Seconds before the second and the third try."""
RESOLVE_SECONDS: Final = 5.0
CONNECT_SECONDS: Final = 5.0
"""For one address, so that a dead IPv6 route leaves time for IPv4."""
POLL_SECONDS: Final = 0.5
"""How long a stalled read may keep a cancelled job."""
CHUNK_BYTES: Final = 64 * 1024
REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
RETRYABLE: Final = frozenset({408, 425, 429})
"""And every 5xx."""

_bypassed: Callable[..., bool] = urllib.request.proxy_bypass_environment  # type: ignore[attr-defined]


def system_resolve(host: str) -> tuple[str, ...]:
    """Every address of a name, in the system's order of preference."""
    answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(answer[4][0]) for answer in answers))


def system_dial(ip: str, port: int, seconds: float) -> socket.socket:
    return socket.create_connection((ip, port), timeout=seconds)


@cache
def system_tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def _never() -> None:
    """Nobody cancels."""


def _silent(_done: int, _total: int | None) -> None:
    """Nobody watches."""


class Sink(Protocol):
    """Where a body goes; what it raises passes through, unless it is an OSError (a network's)."""

    def seek(self, offset: int, /) -> int: ...
    def truncate(self) -> int: ...
    def write(self, data: bytes, /) -> int: ...


@dataclass(frozen=True)
class Policy:
    """Where this worker may connect, and the edges of the system it does that through."""

    allow_private: bool = False
    resolve: Callable[[str], tuple[str, ...]] = system_resolve
    dial: Callable[[str, int, float], socket.socket] = system_dial
    tls: Callable[[], ssl.SSLContext] = system_tls
    proxies: Callable[[], Mapping[str, str]] = urllib.request.getproxies_environment
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True)
class Reply:
    status: int
    retry_after: float | None
    """Seconds, where the server asked for them in seconds."""


@dataclass(frozen=True)
class _Call:
    """What all tries and hops of one call share."""

    policy: Policy
    field: str | None
    seconds: float
    ends: float
    canceled: Callable[[], None] = _never
    progress: Callable[[int, int | None], None] = _silent

    def left(self) -> float:
        """Seconds until the deadline; raises when it has passed or the job is cancelled."""
        self.canceled()
        left = self.ends - self.policy.clock()
        if left <= 0:
            raise self.failed(f"took longer than {self.seconds:g} seconds", retryable=True)
        return left

    def failed(self, what: str, *, retryable: bool) -> FetchFailed:
        message = what[:1].upper() + what[1:]
        return FetchFailed(message, field=self.field, retryable=retryable)


def check(url: str, policy: Policy, *, field: str | None, https_only: bool = False) -> None:
    """Would this URL be dialled at all? For URLs that are used later, or by another client.

    Args:
        https_only: refuse plain http, unless private addresses are allowed too.

    Raises:
        UrlBlocked: it is malformed, or its host is not public or can't be resolved.
    """
    target = addresses.parse(url, field, any_port=policy.allow_private)
    if policy.allow_private:
        return
    if https_only and target.scheme != "https":
        raise addresses.blocked(field, "must be an https URL")
    _dialable(target, _Call(policy, field, RESOLVE_SECONDS, policy.clock() + RESOLVE_SECONDS))


def fetch(
    url: str,
    policy: Policy,
    *,
    max_bytes: int,
    seconds: float,
    field: str | None,
    canceled: Callable[[], None] = _never,
) -> bytes:
    """The body behind a URL, within a size and a total time; ``fetch_into`` in memory."""
    sink = BytesIO()
    fetch_into(
        sink, url, policy, max_bytes=max_bytes, seconds=seconds, field=field, canceled=canceled
    )
    return sink.getvalue()


def fetch_into(
    sink: Sink,
    url: str,
    policy: Policy,
    *,
    max_bytes: int,
    seconds: float,
    field: str | None,
    canceled: Callable[[], None] = _never,
    progress: Callable[[int, int | None], None] = _silent,
) -> None:
    """Write the body behind a URL, within a size and a total time; each try starts afresh.

    Args:
        sink: empty, seekable.
        canceled: called between waits; raises to give up.
        progress: called with the bytes so far and those in all, where the server says.

    Raises:
        UrlBlocked: the URL, or one that it redirects to, may not be dialled.
        FetchFailed: the server did not deliver; ``retryable`` says whether it may later.
    """
    target = addresses.parse(url, field, any_port=policy.allow_private)
    call = _Call(policy, field, seconds, policy.clock() + seconds, canceled, progress)
    for pause in PAUSES:
        try:
            return _follow(target, call, max_bytes, sink)
        except FetchFailed as failure:
            if not failure.retryable or pause >= call.ends - policy.clock():
                raise
        policy.sleep(pause)
    return _follow(target, call, max_bytes, sink)


def post(
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    policy: Policy,
    *,
    seconds: float,
    field: str | None = None,
) -> Reply:
    """One POST. Redirects are answers like any other; the response's body is never read.

    Raises:
        UrlBlocked: the URL may not be dialled.
        FetchFailed: no answer came in time.
    """
    target = addresses.parse(url, field, any_port=policy.allow_private)
    call = _Call(policy, field, seconds, policy.clock() + seconds)
    with _exchange("POST", target, call, headers, body) as response:
        return Reply(response.status, _retry_after(response.headers.get("Retry-After")))


def connect(url: str, policy: Policy, *, field: str | None, seconds: float) -> socket.socket:
    """A connection, without TLS, to where a URL leads: for a client that speaks for itself.

    Raises:
        UrlBlocked: the URL may not be dialled.
        FetchFailed: the time is up.
        OSError: nobody answers at any of the checked addresses.
    """
    target = addresses.parse(url, field, any_port=policy.allow_private)
    return _connect(target, _Call(policy, field, seconds, policy.clock() + seconds))


# Where may the socket go?


def _dialable(target: Target, call: _Call) -> tuple[str, ...]:
    """The addresses that may be dialled for this target: all of its host's, all of them public."""
    policy = call.policy
    proxies = dict(policy.proxies())
    proxied = proxies.get(target.scheme) or proxies.get("all")
    if proxied and not policy.allow_private and not _bypassed(target.host, proxies):
        raise addresses.blocked(
            call.field,
            "this worker's environment sends such requests through a proxy, where the address can't"
            " be checked; list the host in NO_PROXY or set RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS",
        )
    found = (target.host,) if target.is_address else _resolve(target.host, call)
    if policy.allow_private:
        if not found:
            raise call.failed("its host name can't be resolved", retryable=True)
    elif not found or not all(map(addresses.is_public, found)):
        # One message for both, so that nobody can map a private network by asking.
        raise addresses.blocked(call.field, "its host can't be reached at a public address")
    return found


def _resolve(host: str, call: _Call) -> tuple[str, ...]:
    """Ask the resolver, which has no time limit of its own: hence the thread. () for no answer."""
    seconds = min(call.left(), RESOLVE_SECONDS)
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="resolve")
    try:
        return pool.submit(call.policy.resolve, host).result(seconds)
    except (OSError, UnicodeError):  # TimeoutError is an OSError
        return ()
    finally:
        pool.shutdown(wait=False)


# One request, and what comes back.


def _follow(target: Target, call: _Call, max_bytes: int, sink: Sink) -> None:
    """GET, through a few redirects."""
    headers = {"Accept": "*/*", "Accept-Encoding": "identity"}
    for _ in range(MAX_REDIRECTS + 1):
        with _exchange("GET", target, call, headers) as response:
            if response.status not in REDIRECTS:
                return _body(response, call, max_bytes, sink)
            location = response.headers.get("Location")
        if not location:
            raise call.failed("the server redirects to nowhere", retryable=False)
        any_port = call.policy.allow_private
        target = addresses.redirected(target, location, call.field, any_port=any_port)
    raise addresses.blocked(call.field, f"redirects more than {MAX_REDIRECTS} times")


@contextmanager
def _exchange(
    method: str, target: Target, call: _Call, headers: Mapping[str, str], body: bytes | None = None
) -> Iterator[http.client.HTTPResponse]:
    """One request on one connection that we opened ourselves, and every fault on it translated."""
    with ExitStack() as stack:
        try:
            sock = stack.enter_context(_connect(target, call))
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


def _connect(target: Target, call: _Call) -> socket.socket:
    """A connection to the first of the checked addresses that answers."""
    problem = OSError()
    for ip in _dialable(target, call):
        try:
            return call.policy.dial(ip, target.port, min(call.left(), CONNECT_SECONDS))
        except OSError as error:
            problem = error
    raise problem


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


def _body(response: http.client.HTTPResponse, call: _Call, max_bytes: int, sink: Sink) -> None:
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


def _decoded(response: http.client.HTTPResponse, call: _Call) -> Iterator[bytes]:
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


def _retry_after(text: str | None) -> float | None:
    return float(text) if text and re.fullmatch(r"[0-9]{1,9}", text, re.ASCII) else None
