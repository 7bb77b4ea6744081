"""Promises of net: what is never dialled, and what a hostile server can't do."""

import gzip
import socket
import ssl
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.builders.network import GUARDED, PUBLIC, names, no_sleep
from wan_worker.errors import Canceled, FetchFailed, UrlBlocked
from wan_worker.inputs import addresses, dialing, exchange, net
from wan_worker.inputs.dialing import Policy

FIELD = "/input/image_url"
PUBLIC_V6 = "2606:2800:21f:cb07:6820:80da:af6b:8b2c"

Answer = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class Site:
    """A loopback server. ``answers`` maps a path to what the server does; ``seen`` is its log."""

    port: int
    answers: dict[str, Answer] = field(default_factory=dict)
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture
def site() -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.seen.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
            with suppress(OSError):  # the client has heard enough
                site.answers[self.path](self)
            self.close_connection = True

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        site = Site(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield site
        server.shutdown()
        thread.join()


def reply(status: int, body: bytes = b"", **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in ({"Content-Length": str(len(body))} | named).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def sent(raw: bytes) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(raw)

    return answer


def drip(start: bytes) -> Answer:
    """Sends ``start`` and then a byte at a time, for longer than any test waits."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(start)
        for _ in range(200):
            handler.wfile.write(b"x")
            time.sleep(0.02)

    return answer


def in_turn(*answers: Answer) -> Answer:
    left = list(answers)
    return lambda handler: left.pop(0)(handler)


LOCAL = Policy(allow_private=True, sleep=no_sleep)
"""For loopback servers."""


def internet(site: Site, dialled: list[str], **hosts: str) -> Policy:
    """The guarded policy, with every public address leading to one loopback server."""

    def dial(ip: str, port: int, seconds: float) -> socket.socket:
        assert addresses.is_public(ip), ip
        dialled.append(f"{ip}:{port}")
        return socket.create_connection(("127.0.0.1", site.port), seconds)

    return replace(GUARDED, resolve=names(**hosts), dial=dial)


def get(url: str, policy: Policy = LOCAL, **options: Any) -> bytes:
    return net.fetch(url, policy, **{"max_bytes": 1000, "seconds": 5, "field": FIELD} | options)


def refused(url: str, policy: Policy = GUARDED) -> str:
    """Refused by check and by fetch, in the same words."""
    with pytest.raises(UrlBlocked) as checked:
        net.check(url, policy, field=FIELD)
    with pytest.raises(UrlBlocked) as fetched:
        get(url, policy)
    assert checked.value.field == FIELD
    assert checked.value.field == FIELD
    assert checked.value.message == fetched.value.message
    return checked.value.message


# URLs


@pytest.mark.parametrize(
    "url",
    [
        "http://user@example.com/", "http://example.com:22/", "http://example.com/a b",
        "http://2130706433/", "file:///etc/passwd", "", "http://127.0.0.1/", "http://[::1]/",
        "http://[::ffff:127.0.0.1]/", "http://[64:ff9b::a9fe:a9fe]/", "http://[2002:7f00:1::]/",
        "http://169.254.169.254/latest/meta-data/", "https://10.0.0.1/",
    ],
)  # fmt: skip
def test_url_is_refused_before_anything_is_asked_or_dialled(url: str) -> None:
    refused(url)


# Names


@pytest.mark.parametrize(
    "answers",
    [
        pytest.param("10.0.0.7", id="private"),
        pytest.param(f"{PUBLIC} 10.0.0.7", id="public and private"),
        pytest.param(f"10.0.0.7 {PUBLIC}", id="private and public"),
        pytest.param(f"{PUBLIC} ::1", id="public and IPv6 loopback"),
        pytest.param("fe80::1%eth0", id="scoped"),
        pytest.param("not-an-address", id="junk"),
        pytest.param("", id="none"),
    ],
)
def test_name_with_any_private_answer_is_refused(answers: str) -> None:
    message = refused(
        "http://inside.example/", replace(GUARDED, resolve=names(inside_example=answers))
    )
    assert "10.0.0.7" not in message


def test_internal_and_missing_names_get_the_same_answer() -> None:
    policy = replace(GUARDED, resolve=names(inside_example="10.0.0.7"))
    inside = refused("http://inside.example/", policy)
    assert inside == refused("http://missing.example/", policy)
    assert inside == refused("http://10.0.0.7/", policy)


def test_resolver_that_hangs_does_not_outlive_the_deadline() -> None:
    release = threading.Event()

    def hang(_host: str) -> tuple[str, ...]:
        release.wait(10)
        return (PUBLIC,)

    started = time.monotonic()
    try:
        with pytest.raises(UrlBlocked):
            get("http://example.com/", replace(GUARDED, resolve=hang), seconds=0.1)
        assert time.monotonic() - started < 2
    finally:
        release.set()


def test_checked_address_is_dialled_and_the_name_kept(site: Site) -> None:
    site.answers["/a?b=1"] = reply(200, b"pixels")
    dialled: list[str] = []
    policy = internet(site, dialled, example_com=PUBLIC)
    assert get("http://example.com/a?b=1", policy) == b"pixels"
    assert dialled == [f"{PUBLIC}:80"]
    (_, headers) = site.seen[0]
    assert headers["host"] == "example.com"
    assert headers["accept-encoding"] == "identity"
    assert not headers.keys() & {"cookie", "authorization", "referer"}


def test_name_that_turns_private_between_tries_is_refused(site: Site) -> None:
    site.answers["/"] = reply(503)
    dialled: list[str] = []
    answers = iter([(PUBLIC,), ("127.0.0.1",)])
    policy = replace(internet(site, dialled), resolve=lambda _host: next(answers))
    with pytest.raises(UrlBlocked):
        get("http://rebind.example/", policy)
    assert dialled == [f"{PUBLIC}:80"]


def test_next_address_is_tried_when_one_is_dead(site: Site) -> None:
    site.answers["/"] = reply(200, b"ok")
    dialled: list[str] = []
    whole = internet(site, dialled, example_com=f"{PUBLIC_V6} {PUBLIC}")

    def dial(ip: str, port: int, seconds: float) -> socket.socket:
        if ":" in ip:
            raise OSError("Network is unreachable")
        return whole.dial(ip, port, seconds)

    assert get("http://example.com/", replace(whole, dial=dial)) == b"ok"


# Redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1/", "//169.254.169.254/x", "http://inside.example/", "file:///etc/passwd",
        "ftp://example.com/", "http://a@example.com/", "http://example.com:8080/", "http://[::1]/",
        "http://2130706433/", "http://exam\tple.com/", "/a\\b", "http://[", "http:///x",
    ],
)  # fmt: skip
def test_redirect_to_private_address_is_refused(site: Site, status: int, location: str) -> None:
    site.answers["/"] = reply(status, Location=location)
    dialled: list[str] = []
    policy = internet(site, dialled, example_com=PUBLIC, inside_example="10.0.0.7")
    with pytest.raises(UrlBlocked):
        get("http://example.com/", policy)
    assert dialled == [f"{PUBLIC}:80"]


def test_redirect_is_followed_to_another_public_host(site: Site) -> None:
    site.answers["/"] = reply(302, Location="http://cdn.example/猫".encode().decode("latin-1"))
    site.answers["/%E7%8C%AB"] = reply(307, Location="last?x#y")
    site.answers["/last?x"] = reply(200, b"ok")
    dialled: list[str] = []
    policy = internet(site, dialled, example_com=PUBLIC, cdn_example="8.8.8.8")
    assert get("http://example.com/", policy) == b"ok"
    assert dialled == [f"{PUBLIC}:80", "8.8.8.8:80", "8.8.8.8:80"]
    assert [headers["host"] for _, headers in site.seen] == [
        "example.com", "cdn.example", "cdn.example",
    ]  # fmt: skip


def test_redirect_carries_nothing_from_host_to_host(site: Site) -> None:
    site.answers["/a?token=hush"] = reply(
        302, Location="http://cdn.example/b", Set_Cookie="session=hush; Domain=example.com"
    )
    site.answers["/b"] = reply(200, b"ok")
    policy = internet(site, [], example_com=PUBLIC, cdn_example="8.8.8.8")
    assert get("http://example.com/a?token=hush", policy) == b"ok"
    (_, first), (_, second) = site.seen
    assert set(second) == set(first)
    assert set(second) == {"host", "user-agent", "accept", "accept-encoding", "connection"}
    assert "hush" not in str(second)


def test_redirect_loop_ends_after_five(site: Site) -> None:
    site.answers["/"] = reply(302, Location="/")
    with pytest.raises(UrlBlocked, match="more than 5"):
        get(site.url + "/")
    assert len(site.seen) == 6


def test_redirect_to_nowhere_is_a_permanent_failure(site: Site) -> None:
    site.answers["/"] = reply(302)
    with pytest.raises(FetchFailed) as failure:
        get(site.url + "/")
    assert not failure.value.retryable


# Proxies


@pytest.mark.parametrize(
    ("proxies", "allowed"),
    [
        ({"http": "http://proxy:3128"}, False),
        ({"all": "socks5://proxy:1080"}, False),
        ({"https": "http://proxy:3128"}, True),
        ({"http": "http://proxy:3128", "no": "example.com"}, True),
        ({"http": "http://proxy:3128", "no": "other.example"}, False),
    ],
)
def test_proxy_in_the_environment_is_refused_and_never_used(
    site: Site, proxies: dict[str, str], allowed: bool
) -> None:
    site.answers["/"] = reply(200, b"ok")
    policy = replace(internet(site, [], example_com=PUBLIC), proxies=lambda: proxies)
    if allowed:
        assert get("http://example.com/", policy) == b"ok"
    else:
        assert "proxy:" not in refused("http://example.com/", policy)


# Bodies


def test_false_content_length_over_the_cap_is_refused_unread(site: Site) -> None:
    site.answers["/"] = reply(200, b"x", Content_Length="999999999999")
    with pytest.raises(FetchFailed, match="larger than 1000") as failure:
        get(site.url + "/")
    assert not failure.value.retryable


def test_body_without_length_stops_at_the_cap(site: Site) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(10_000):
            handler.wfile.write(b"x" * 10_000)

    site.answers["/"] = answer
    with pytest.raises(FetchFailed, match="larger than 1000"):
        get(site.url + "/")


def test_body_of_exactly_the_cap_is_whole(site: Site) -> None:
    site.answers["/"] = reply(200, b"x" * 1000)
    assert get(site.url + "/") == b"x" * 1000


def test_chunked_body_is_joined(site: Site) -> None:
    site.answers["/"] = sent(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    )
    assert get(site.url + "/") == b"abcde"


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", id="short body"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc", id="short chunk"
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + gzip.compress(b"a")[:15],
            id="short gzip",
        ),
        pytest.param(b"", id="nothing"),
        pytest.param(b"SSH-2.0-OpenSSH_9.6\r\n", id="not HTTP"),
        pytest.param(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n", id="too many headers"),
    ],
)  # fmt: skip
def test_broken_answer_is_tried_three_times(site: Site, raw: bytes) -> None:
    site.answers["/"] = sent(raw)
    with pytest.raises(FetchFailed) as failure:
        get(site.url + "/")
    assert failure.value.retryable
    assert len(site.seen) == 3


@pytest.mark.parametrize("size", [b"-1", b"-5", b"-0x1", b" -1"])
def test_chunk_of_negative_size_does_not_read_without_end(site: Site, size: bytes) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + size)
        handler.wfile.write(b"\r\n")
        for _ in range(2_000):
            handler.wfile.write(piece)

    piece = b"x" * 10_000
    site.answers["/"] = answer
    tracemalloc.start()
    try:
        with pytest.raises(FetchFailed) as failure:
            get(site.url + "/")
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
    assert failure.value.retryable
    assert len(site.seen) == 3


@pytest.mark.parametrize("size", [0, 1, 65_536, 200_000])
def test_gzip_body_is_unpacked(site: Site, size: int) -> None:
    site.answers["/"] = reply(200, gzip.compress(b"x" * size), Content_Encoding="gzip")
    assert get(site.url + "/", max_bytes=200_000) == b"x" * size


def test_gzip_bomb_stops_at_the_cap_without_filling_memory(site: Site) -> None:
    site.answers["/"] = reply(200, gzip.compress(bytes(20_000_000)), Content_Encoding="gzip")
    tracemalloc.start()
    try:
        with pytest.raises(FetchFailed, match="larger than 30000"):
            get(site.url + "/", max_bytes=30_000)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        pytest.param("br", b"x", id="brotli"),
        pytest.param("gzip, gzip", b"x", id="twice"),
        pytest.param("gzip", b"not gzip at all", id="not gzip"),
        pytest.param("gzip", zlib.compress(b"x"), id="zlib"),
        pytest.param("gzip", gzip.compress(b"x") + b"tail", id="gzip and more"),
    ],
)
def test_encoding_that_was_not_asked_for_is_a_permanent_failure(
    site: Site, encoding: str, body: bytes
) -> None:
    site.answers["/"] = reply(200, body, Content_Encoding=encoding)
    with pytest.raises(FetchFailed) as failure:
        get(site.url + "/")
    assert not failure.value.retryable
    assert len(site.seen) == 1


# Time and tries


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(b"", id="status line"),
        pytest.param(b"HTTP/1.1 200 OK\r\nA: ", id="header"),
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\n", id="body"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;", id="chunk size"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" * 50, id="interim answers"),
    ],
)
def test_slow_drip_ends_at_the_deadline(site: Site, start: bytes) -> None:
    site.answers["/"] = drip(start)
    started = time.monotonic()
    with pytest.raises(FetchFailed, match=r"longer than 0\.2 seconds") as failure:
        get(site.url + "/", seconds=0.2)
    assert failure.value.retryable
    assert time.monotonic() - started < 1.5


def test_server_that_says_nothing_ends_at_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        for scheme in ("http", "https"):
            started = time.monotonic()
            with pytest.raises(FetchFailed) as failure:
                get(url.replace("http", scheme), seconds=0.2)
            assert failure.value.retryable
            assert time.monotonic() - started < 1.5


def test_cancel_interrupts_a_stalled_download(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "POLL_SECONDS", 0.05)
    release = threading.Event()

    def stall(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        release.wait(10)

    def canceled() -> None:
        if site.seen:
            raise Canceled("stop")

    site.answers["/"] = stall
    started = time.monotonic()
    try:
        with pytest.raises(Canceled):
            get(site.url + "/", canceled=canceled)
        assert time.monotonic() - started < 2
        assert len(site.seen) == 1
    finally:
        release.set()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 204, 206, 304])
def test_client_error_is_permanent_and_asked_once(site: Site, status: int) -> None:
    site.answers["/secret?sig=1"] = reply(status)
    with pytest.raises(FetchFailed, match=str(status)) as failure:
        get(site.url + "/secret?sig=1")
    assert not failure.value.retryable
    assert failure.value.field == FIELD
    assert "secret" not in failure.value.message
    assert len(site.seen) == 1


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_passing_error_is_retryable_and_asked_three_times(site: Site, status: int) -> None:
    site.answers["/"] = reply(status)
    with pytest.raises(FetchFailed, match=str(status)) as failure:
        get(site.url + "/")
    assert failure.value.retryable
    assert len(site.seen) == 3


def test_second_try_delivers(site: Site) -> None:
    site.answers["/"] = in_turn(reply(503), reply(200, b"ok"))
    assert get(site.url + "/") == b"ok"


def test_pause_that_would_pass_the_deadline_is_not_begun(site: Site) -> None:
    site.answers["/"] = reply(503)
    with pytest.raises(FetchFailed, match="503"):
        get(site.url + "/", replace(LOCAL, clock=lambda: 0.0), seconds=net.PAUSES[0])
    assert len(site.seen) == 1


def test_closed_port_is_retryable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(FetchFailed) as failure:
        get(f"http://127.0.0.1:{port}/")
    assert failure.value.retryable


# The escape hatch


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/", "http://[::1]:65535/", "http://minio:9000/"]
)
def test_private_url_passes_when_the_operator_allows_it(url: str) -> None:
    net.check(url, replace(GUARDED, allow_private=True), field=FIELD, https_only=True)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "http://a@b/", "http://127.1/"])
def test_escape_hatch_does_not_loosen_the_parser(url: str) -> None:
    refused(url, replace(GUARDED, allow_private=True))


def test_unknown_name_is_a_retryable_failure_when_private_is_allowed() -> None:
    with pytest.raises(FetchFailed) as failure:
        get("http://missing.example/", replace(GUARDED, allow_private=True, resolve=names()))
    assert failure.value.retryable


def test_https_only_refuses_plain_http() -> None:
    policy = replace(GUARDED, resolve=names(s3_example=PUBLIC))
    net.check("https://s3.example", policy, field=None, https_only=True)
    with pytest.raises(UrlBlocked, match="https") as blocked:
        net.check("http://s3.example", policy, field=None, https_only=True)
    assert blocked.value.field is None


# TLS


@dataclass
class TlsSite:
    port: int
    trust: ssl.SSLContext
    location: str = ""
    pause: float = 0
    names: list[str | None] = field(default_factory=list)


@pytest.fixture
def tls_site(certificate: Path) -> Iterator[TlsSite]:
    """Answers every connection with a body, or with a redirect where a location is set."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.sni_callback = lambda _sock, name, _context: site.names.append(name)

    def serve() -> None:
        while True:
            try:
                sock, _ = server.accept()
            except OSError:
                return
            try:
                with sock, context.wrap_socket(sock, server_side=True) as secure:
                    secure.settimeout(5)
                    secure.recv(65_536)
                    status = (
                        f"302 Found\r\nLocation: {site.location}" if site.location else "200 OK"
                    )
                    secure.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\no".encode())
                    time.sleep(site.pause)
                    secure.sendall(b"k")
            except OSError:
                continue

    with socket.create_server(("127.0.0.1", 0)) as server:
        site = TlsSite(server.getsockname()[1], ssl.create_default_context(cafile=certificate))
        thread = threading.Thread(target=serve)
        thread.start()
        yield site
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def secure_internet(site: TlsSite, dialled: list[str]) -> Policy:
    plain = Site(site.port)
    policy = internet(plain, dialled, secure_example=PUBLIC, other_example=PUBLIC)
    return replace(policy, tls=lambda: site.trust)


def test_tls_keeps_the_name_while_the_address_is_dialled(tls_site: TlsSite) -> None:
    dialled: list[str] = []
    assert get("https://secure.example/", secure_internet(tls_site, dialled)) == b"ok"
    assert dialled == [f"{PUBLIC}:443"]
    assert tls_site.names == ["secure.example"]


def test_pause_in_a_tls_stream_is_waited_out(
    tls_site: TlsSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "POLL_SECONDS", 0.02)
    tls_site.pause = 0.2
    assert get("https://secure.example/", secure_internet(tls_site, [])) == b"ok"


def test_certificate_of_another_name_is_a_permanent_failure(tls_site: TlsSite) -> None:
    dialled: list[str] = []
    with pytest.raises(FetchFailed, match="TLS") as failure:
        get("https://other.example/", secure_internet(tls_site, dialled))
    assert not failure.value.retryable
    assert len(dialled) == 1


def test_certificate_that_nobody_vouches_for_is_a_permanent_failure(tls_site: TlsSite) -> None:
    policy = replace(secure_internet(tls_site, []), tls=ssl.create_default_context)
    with pytest.raises(FetchFailed, match="TLS") as failure:
        get("https://secure.example/", policy)
    assert not failure.value.retryable


def test_redirect_from_https_to_http_is_refused(tls_site: TlsSite) -> None:
    tls_site.location = "http://secure.example/"
    dialled: list[str] = []
    with pytest.raises(UrlBlocked, match="https to http"):
        get("https://secure.example/", secure_internet(tls_site, dialled))
    assert len(dialled) == 1


def test_system_trust_checks_names_and_certificates() -> None:
    context = dialing.system_tls()
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED


# post


def test_post_sends_body_and_headers_and_reports_the_status(site: Site) -> None:
    bodies: list[bytes] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        bodies.append(handler.rfile.read(int(handler.headers["Content-Length"])))
        reply(503, b"x" * 100, Retry_After="7")(handler)

    site.answers["/hook"] = answer
    assert net.post(site.url + "/hook", b"{}", {"webhook-id": "1"}, LOCAL, seconds=5) == net.Reply(
        503, 7.0
    )
    assert bodies == [b"{}"]
    assert site.seen[0][1]["webhook-id"] == "1"


def test_post_never_follows_a_redirect(site: Site) -> None:
    site.answers["/hook"] = reply(307, Location="/elsewhere")
    assert net.post(site.url + "/hook", b"{}", {}, LOCAL, seconds=5).status == 307
    assert len(site.seen) == 1


def test_post_does_not_wait_for_a_body(site: Site) -> None:
    site.answers["/hook"] = drip(b"HTTP/1.1 200 OK\r\n\r\n")
    started = time.monotonic()
    assert net.post(site.url + "/hook", b"{}", {}, LOCAL, seconds=5).status == 200
    assert time.monotonic() - started < 1


def test_post_to_private_address_is_refused() -> None:
    policy = replace(GUARDED, resolve=names(hook_example="10.0.0.7"))
    for url in ("http://hook.example/", "http://127.0.0.1/"):
        with pytest.raises(UrlBlocked):
            net.post(url, b"{}", {}, policy, seconds=5)


@pytest.mark.parametrize(
    "text", ["-1", "nan", "1e9", "soon", "", "9" * 20, "Wed, 21 Oct 2026 07:28:00 GMT"]
)
def test_retry_after_that_is_no_number_of_seconds_is_ignored(text: str) -> None:
    assert net._retry_after(text) is None


def test_a_body_goes_into_a_file_with_progress(site: Site, tmp_path: Path) -> None:
    body = bytes(range(256)) * 1000
    site.answers["/"] = reply(200, body)
    seen: list[tuple[int, int | None]] = []
    with (tmp_path / "body").open("x+b") as file:
        net.fetch_into(
            file,
            site.url + "/",
            LOCAL,
            max_bytes=10**6,
            seconds=5,
            field=None,
            progress=lambda done, total: seen.append((done, total)),
        )
    assert (tmp_path / "body").read_bytes() == body
    assert seen[-1] == (len(body), len(body))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_a_broken_try_leaves_nothing_in_the_file(site: Site, tmp_path: Path) -> None:
    site.answers["/"] = in_turn(
        sent(b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n" + b"x" * 60), reply(200, b"whole")
    )
    with (tmp_path / "body").open("x+b") as file:
        net.fetch_into(file, site.url + "/", LOCAL, max_bytes=100, seconds=5, field=None)
    assert (tmp_path / "body").read_bytes() == b"whole"
