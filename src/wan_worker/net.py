"""Public addresses only: fetch with pinned IPs, caps and a total deadline; post.

A job's URLs are written by strangers, and this worker sits inside somebody's network. So:

- one parser, ``_parse``, decides what a URL means, and what it returns is what is dialled;
- the name is resolved once per try, every answer must be public, and the socket goes to one of the
  checked addresses, while Host, SNI and the certificate check keep the name (no DNS rebinding);
- each redirect is a new URL, checked like the first; nothing but a fixed set of headers is sent,
  so no credential can cross hosts;
- every wait (resolver, connect, handshake, header, body) ends at one monotonic deadline, however
  slowly bytes drip; bodies are counted after decoding, as they come;
- a name that is internal and a name that does not exist give the same answer.

With ``allow_private`` (the operator's escape hatch, and loopback tests) any address, port and
environment proxy setting will do; schemes, caps and deadlines stay.

Not covered: network-specific NAT64 prefixes (RFC 6052, unknowable from outside), addresses that a
firewall should block although they are public (the operator's own), international host names (write
them as xn--…), Retry-After given as a date.
"""

import contextlib
import http.client
import ipaddress
import re
import socket
import ssl
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from io import BufferedReader, RawIOBase
from typing import Final, cast
from urllib.parse import quote, urljoin

from wan_worker.errors import FetchFailed, UrlBlocked

MAX_URL_CHARS: Final = 8192
MAX_REDIRECTS: Final = 5
MAX_TRIES: Final = 3
BACKOFF_SECONDS: Final = 0.25
"""Before the second try; doubled before each further one."""
RESOLVE_SECONDS: Final = 5.0
CONNECT_SECONDS: Final = 5.0
"""For one address, so that a dead IPv6 route leaves time for IPv4."""
POLL_SECONDS: Final = 0.5
"""How long a stalled read may keep a cancelled job."""
CHUNK_BYTES: Final = 64 * 1024
REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
RETRYABLE: Final = frozenset({408, 425, 429})
"""And every 5xx."""


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
class _Target:
    """A URL, taken apart once. ``ip`` is set when the host is an address already."""

    scheme: str
    host: str
    ip: str | None
    port: int
    path: str

    @property
    def authority(self) -> str:
        """The Host header: without a default port, which would break presigned URLs."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = 443 if self.scheme == "https" else 80
        return host if self.port == default else f"{host}:{self.port}"


@dataclass(frozen=True)
class _Call:
    """What all tries and hops of one call share."""

    policy: Policy
    field: str | None
    seconds: float
    ends: float
    canceled: Callable[[], None]

    def left(self) -> float:
        """Seconds until the deadline; raises when it has passed or the job is cancelled."""
        self.canceled()
        left = self.ends - self.policy.clock()
        if left <= 0:
            raise self.failed(f"took longer than {self.seconds:g} seconds", retryable=True)
        return left

    def failed(self, what: str, *, retryable: bool) -> FetchFailed:
        return FetchFailed(_about(self.field, what), field=self.field, retryable=retryable)


def _call(policy: Policy, field: str | None, seconds: float, canceled: Callable[[], None]) -> _Call:
    return _Call(policy, field, seconds, policy.clock() + seconds, canceled)


def check(url: str, policy: Policy, *, field: str | None, https_only: bool = False) -> None:
    """Would this URL be dialled at all? For URLs that are used later, or by another client.

    Args:
        https_only: refuse plain http, unless private addresses are allowed too.

    Raises:
        UrlBlocked: it is malformed, or its host is not public or can't be resolved.
    """
    target = _parse(url, policy, field)
    if policy.allow_private:
        return
    if https_only and target.scheme != "https":
        raise _blocked(field, "must be an https URL")
    _addresses(target, _call(policy, field, RESOLVE_SECONDS, _never))


def fetch(
    url: str,
    policy: Policy,
    *,
    max_bytes: int,
    seconds: float,
    field: str | None,
    canceled: Callable[[], None] = _never,
) -> bytes:
    """The body behind a URL, within a size and a total time.

    Args:
        canceled: called between waits; raises to give up.

    Raises:
        UrlBlocked: the URL, or one that it redirects to, may not be dialled.
        FetchFailed: the server did not deliver; ``retryable`` says whether it may later.
    """
    target = _parse(url, policy, field)
    call = _call(policy, field, seconds, canceled)
    for attempt in range(MAX_TRIES - 1):
        try:
            return _follow(target, call, max_bytes)
        except FetchFailed as failure:
            pause = BACKOFF_SECONDS * 2**attempt
            if not failure.retryable or pause >= call.ends - policy.clock():
                raise
        policy.sleep(pause)
    return _follow(target, call, max_bytes)


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
    call = _call(policy, field, seconds, _never)
    with _exchange("POST", _parse(url, policy, field), call, headers, body) as response:
        return Reply(response.status, _retry_after(response.headers.get("Retry-After")))


# Which addresses are public?

SPECIAL_V4: Final = tuple(
    (ipaddress.IPv4Network(network), why)
    for network, why in (
        ("0.0.0.0/8", "this network, RFC 791"),
        ("10.0.0.0/8", "private use, RFC 1918"),
        ("100.64.0.0/10", "shared by carriers, RFC 6598; 100.100.100.200 is Alibaba's metadata"),
        ("127.0.0.0/8", "loopback, RFC 1122"),
        ("168.63.129.16/32", "Azure's platform services"),
        ("169.254.0.0/16", "link-local, RFC 3927; 169.254.169.254 and .170.2 are metadata"),
        ("172.16.0.0/12", "private use, RFC 1918"),
        ("192.0.0.0/24", "protocol assignments, RFC 6890; 192.0.0.192 is Oracle's metadata"),
        ("192.0.2.0/24", "documentation, RFC 5737"),
        ("192.31.196.0/24", "AS112, RFC 7535"),
        ("192.52.193.0/24", "multicast relays, RFC 7450"),
        ("192.88.99.0/24", "6to4 relays, RFC 7526"),
        ("192.168.0.0/16", "private use, RFC 1918"),
        ("192.175.48.0/24", "AS112, RFC 7534"),
        ("198.18.0.0/15", "benchmarks, RFC 2544"),
        ("198.51.100.0/24", "documentation, RFC 5737"),
        ("203.0.113.0/24", "documentation, RFC 5737"),
        ("224.0.0.0/4", "multicast, RFC 5771"),
        ("240.0.0.0/4", "reserved, RFC 1112; the last is broadcast, RFC 919"),
    )
)

GLOBAL_UNICAST_V6: Final = ipaddress.IPv6Network("2000::/3")
"""All that IANA gives out (RFC 4291 §2.4). What is outside and known: ::, ::1 and IPv4-compatible
(RFC 4291), IPv4-mapped ::ffff:0:0/96 (RFC 4291), NAT64 64:ff9b::/96 (RFC 6052) and 64:ff9b:1::/48
(RFC 8215), discard-only 100::/64 (RFC 6666), dummy 100:0:0:1::/64 (RFC 9780), SRv6 SIDs 5f00::/16
(RFC 9602), unique local fc00::/7 (RFC 4193; fd00:ec2::254 is Amazon's metadata), link-local
fe80::/10 (RFC 4291), site-local fec0::/10 (RFC 3879), multicast ff00::/8 (RFC 4291)."""

SPECIAL_V6: Final = tuple(
    (ipaddress.IPv6Network(network), why)
    for network, why in (
        ("2001::/23", "protocol assignments, RFC 2928: Teredo 4380, benchmarks 5180, ORCHID 7343"),
        ("2001:db8::/32", "documentation, RFC 3849"),
        ("2002::/16", "6to4, an IPv4 address inside, RFC 3056"),
        ("2620:4f:8000::/48", "AS112, RFC 7534"),
        ("3ffe::/16", "6bone, given back, RFC 3701"),
        ("3fff::/20", "documentation, RFC 9637"),
    )
)

ISATAP: Final = frozenset({0x0000_5EFE, 0x0200_5EFE})
"""The upper half of an interface id with an IPv4 address below it, under any prefix (RFC 5214)."""


def is_public(ip: str) -> bool:
    """Whether an address is one that the public internet routes to a single ordinary host."""
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network, _ in SPECIAL_V4)
    if address.scope_id is not None or address not in GLOBAL_UNICAST_V6:
        return False
    if (int(address) >> 32) & 0xFFFF_FFFF in ISATAP:
        return False
    return not any(address in network for network, _ in SPECIAL_V6)


# What does a URL mean, and where does it lead?

URL: Final = re.compile(
    r"(?P<scheme>https?)://"
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)"
    r"(?::(?P<port>[0-9]{1,5}))?"
    # '//a#@b' and '//a?@b' are refused: parsers disagree on which of the two is the host.
    r"(?P<path>/.*|\?[^@]*)?",
    re.IGNORECASE | re.ASCII,  # without ASCII, IGNORECASE takes 'ſ' for an s
)
SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
LABEL: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
NUMBER: Final = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]*")
PRINTABLE: Final = "".join(map(chr, range(0x21, 0x7F)))


def _about(field: str | None, rule: str) -> str:
    return f"{field or 'URL'}: {rule}"


def _blocked(field: str | None, rule: str) -> UrlBlocked:
    return UrlBlocked(_about(field, rule), field=field)


def _parse(url: str, policy: Policy, field: str | None) -> _Target:
    """What this URL means, or a refusal where two parsers might read it in two ways."""
    if len(url) > MAX_URL_CHARS:
        raise _blocked(field, f"is longer than {MAX_URL_CHARS} characters")
    if any(char <= " " or char == "\x7f" or char.isspace() for char in url):
        raise _blocked(field, "holds a space or a control character; percent-encode it")
    if "\\" in url or any("\ud800" <= char <= "\udfff" for char in url):
        raise _blocked(field, "holds a backslash or a lone surrogate; percent-encode it")
    match = URL.fullmatch(url)
    if match is None:
        raise _blocked(
            field,
            "must be http(s)://host/path with a plain host: no user name, no escapes,"
            " international names as xn--…",
        )
    scheme = match["scheme"].lower()
    port = int(match["port"] or (443 if scheme == "https" else 80))
    if not (1 <= port <= 65535 if policy.allow_private else port in (80, 443)):
        raise _blocked(field, "must use port 80 or 443")
    host, ip = _host(match["host"], field)
    path = "/" + (match["path"] or "").partition("#")[0].removeprefix("/")
    return _Target(scheme, host, ip, port, quote(path, safe=PRINTABLE))


def _host(text: str, field: str | None) -> tuple[str, str | None]:
    """A host name, or an address in its one canonical spelling."""
    labels = text.split(".")
    try:
        if text.startswith("["):
            ip = str(ipaddress.IPv6Address(text[1:-1]))
        # What ends in a number is an address to every URL parser and to the C library, in octal,
        # hexadecimal and short forms too: only four decimal parts are read by all in one way.
        elif NUMBER.fullmatch(labels[-1]):
            ip = str(ipaddress.IPv4Address(text))
        else:
            if len(text) > 253 or not all(LABEL.fullmatch(label) for label in labels):
                raise _blocked(field, "has a malformed host name")
            return text.lower(), None
    except ValueError:
        raise _blocked(field, "has a malformed or unusually written IP address") from None
    return ip, ip


def _addresses(target: _Target, call: _Call) -> tuple[str, ...]:
    """The addresses that may be dialled for this target: all of its host's, all of them public."""
    policy = call.policy
    if not policy.allow_private and _proxied(target, policy.proxies()):
        raise _blocked(
            call.field,
            "this worker's environment sends such requests through a proxy, where the address can't"
            " be checked; list the host in NO_PROXY or set RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS",
        )
    found = (target.ip,) if target.ip else _resolve(target.host, call)
    if policy.allow_private:
        if not found:
            raise call.failed("its host name can't be resolved", retryable=True)
    elif not found or not all(map(is_public, found)):
        # One message for both, so that nobody can map a private network by asking.
        raise _blocked(call.field, "its host can't be reached at a public address")
    return found


def _proxied(target: _Target, proxies: Mapping[str, str]) -> bool:
    if not (proxies.get(target.scheme) or proxies.get("all")):
        return False
    bypassed: Callable[..., bool] = urllib.request.proxy_bypass_environment  # type: ignore[attr-defined]
    return not bypassed(target.host, dict(proxies))


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


def _follow(target: _Target, call: _Call, max_bytes: int) -> bytes:
    """GET, through a few redirects."""
    headers = {"Accept": "*/*", "Accept-Encoding": "identity"}
    for _ in range(MAX_REDIRECTS + 1):
        with _exchange("GET", target, call, headers) as response:
            if response.status not in REDIRECTS:
                return _body(response, call, max_bytes)
            target = _next(target, response.headers.get("Location"), call)
    raise _blocked(call.field, f"redirects more than {MAX_REDIRECTS} times")


def _next(target: _Target, location: str | None, call: _Call) -> _Target:
    if not location:
        raise call.failed("the server redirects to nowhere", retryable=False)
    # http.client reads headers as Latin-1; servers that send raw UTF-8 here mean UTF-8.
    location = location.encode("latin-1", "replace").decode("utf-8", "replace")
    if any(char <= " " or char == "\\" for char in location):
        # urljoin would drop some of these and so make up another URL.
        raise _blocked(call.field, "redirects to a malformed URL")
    if not SCHEME.match(location):  # for urljoin, 'http:///x' is a path on this same host
        base = f"{target.scheme}://{target.authority}{target.path}"
        try:
            location = urljoin(base, location)
        except ValueError:
            raise _blocked(call.field, "redirects to a malformed URL") from None
    following = _parse(location, call.policy, call.field)
    if target.scheme == "https" and following.scheme == "http":
        raise _blocked(call.field, "redirects from https to http")
    return following


@contextlib.contextmanager
def _exchange(
    method: str,
    target: _Target,
    call: _Call,
    headers: Mapping[str, str],
    body: bytes | None = None,
) -> Iterator[http.client.HTTPResponse]:
    """One request on one connection that we opened ourselves, and every fault on it translated."""
    with contextlib.ExitStack() as stack:
        try:
            sock = stack.enter_context(_connect(target, call))
            if target.scheme == "https":
                sock.settimeout(min(call.left(), CONNECT_SECONDS))  # for the handshake as a whole
                sock = stack.enter_context(
                    call.policy.tls().wrap_socket(sock, server_hostname=target.host)
                )
            connection = http.client.HTTPConnection(target.host, target.port)
            connection.auto_open = 0  # it must never dial by itself
            connection.sock = cast(socket.socket, _Wire(sock, call.left))
            fixed = {"Host": target.authority, "User-Agent": "wan-worker", "Connection": "close"}
            connection.request(method, target.path, body, {**headers, **fixed})
            yield stack.enter_context(connection.getresponse())
        except ssl.SSLError:
            raise call.failed("the TLS connection failed", retryable=False) from None
        except (OSError, http.client.HTTPException):
            raise call.failed(
                "the server could not be reached or broke off", retryable=True
            ) from None


def _connect(target: _Target, call: _Call) -> socket.socket:
    """A connection to the first of the checked addresses that answers."""
    problem = OSError()
    for ip in _addresses(target, call):
        try:
            return call.policy.dial(ip, target.port, min(call.left(), CONNECT_SECONDS))
        except OSError as error:
            problem = error
    raise problem


class _Wire:
    """A socket as http.client wants it, on which every wait ends at the deadline."""

    def __init__(self, sock: socket.socket, left: Callable[[], float]) -> None:
        self._sock = sock
        self._left = left

    def sendall(self, data: bytes) -> None:
        self._sock.settimeout(self._left())
        self._sock.sendall(data)

    def makefile(self, _mode: str) -> BufferedReader:
        return BufferedReader(_Incoming(self._sock, self._left), CHUNK_BYTES)

    def close(self) -> None:
        """http.client closes its side when the headers are in; the body still comes over it."""


class _Incoming(RawIOBase):
    """Bytes from the socket. Asks before each wait whether there is time left."""

    def __init__(self, sock: socket.socket, left: Callable[[], float]) -> None:
        self._sock = sock
        self._left = left

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while True:
            self._sock.settimeout(min(self._left(), POLL_SECONDS))
            try:
                return self._sock.recv_into(buffer)
            except TimeoutError:
                continue


def _body(response: http.client.HTTPResponse, call: _Call, max_bytes: int) -> bytes:
    if response.status != 200:
        retryable = response.status in RETRYABLE or response.status >= 500
        raise call.failed(f"the server answered {response.status}", retryable=retryable)
    too_large = call.failed(f"is larger than {max_bytes} bytes", retryable=False)
    if response.length is not None and response.length > max_bytes:
        raise too_large
    body = bytearray()
    try:
        for part in _decoded(response, call):
            body += part
            if len(body) > max_bytes:
                raise too_large
    except zlib.error:
        raise call.failed("its compressed content is damaged", retryable=False) from None
    if response.length:  # what http.client still waits for
        raise call.failed("the server broke off before the end", retryable=True)
    return bytes(body)


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
