"""A store that the caller names is dialled like any other stranger's URL, when the upload comes."""

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import botocore.httpsession
import pytest

from tests.builders.network import GUARDED, PUBLIC, names
from tests.integration.conftest import s3  # noqa: F401 (a fixture)
from tests.integration.s3 import S3Server
from wan_worker.delivery import caller_store, storage
from wan_worker.delivery import s3 as buckets
from wan_worker.errors import StorageFailed, UrlBlocked
from wan_worker.inputs import addresses, net
from wan_worker.inputs.dialing import Policy
from wan_worker.media.artifact import Artifact
from wan_worker.request.outputs import Output
from wan_worker.settings import Bucket, Secret
from wan_worker.timing.progress import Control


def policy_to(port: int, dialled: list[str], **hosts: str) -> Policy:
    """The guarded policy, with every public address leading to one loopback port."""

    def dial(ip: str, asked: int, seconds: float) -> socket.socket:
        assert addresses.is_public(ip), ip
        dialled.append(f"{ip}:{asked}")
        return socket.create_connection(("127.0.0.1", port), seconds)

    return replace(GUARDED, resolve=names(**hosts), dial=dial)


def store(policy: Policy, endpoint: str = "http://s3.example", name: str = "box") -> storage.S3:
    bucket = Bucket(endpoint, Secret("test-access-key"), Secret("test-secret-key"), name)
    return buckets.S3(bucket, 60, policy)


def put(to: storage.S3, folder: Path) -> storage.StoredAsset:
    path = folder / "0.mp4"
    path.write_bytes(b"v" * 5000)
    made = Artifact(path, "video/mp4", "mp4", 5000, "0" * 64, 64, 48, 5, 16, 5 / 16)
    return storage.put(made, 0, Output("a cat", 1), "job", to, Control())


@contextmanager
def answering(
    first: bytes, then: bytes = b"", pause: float = 0.0, tls: ssl.SSLContext | None = None
) -> Iterator[int]:
    """A server that reads a request, sends ``first``, and ``then`` until nobody listens."""
    over = threading.Event()

    def serve() -> None:
        while True:
            try:
                sock, _ = server.accept()
            except OSError:
                return
            with ExitStack() as stack, suppress(OSError):
                sock = stack.enter_context(sock)
                if tls is not None:
                    sock = stack.enter_context(tls.wrap_socket(sock, server_side=True))
                sock.recv(65_536)
                sock.sendall(first)
                while then and not over.wait(pause):
                    sock.sendall(then)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        over.set()
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_an_upload_goes_to_the_checked_address_and_is_signed_for_the_name(
    s3: S3Server,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # which boto3 would take
    dialled: list[str] = []
    to = store(policy_to(int(s3.endpoint_url.rpartition(":")[2]), dialled, s3_example=PUBLIC))
    to = replace(to, bucket=replace(to.bucket, name=s3.bucket))
    stored = put(to, tmp_path)
    storage.put_manifest({"a": 1}, "job", to)
    assert set(dialled) == {f"{PUBLIC}:80"}
    assert stored.url is not None
    assert stored.url.startswith(f"http://s3.example/{s3.bucket}/job/0.mp4?")
    assert (s3.root / s3.bucket / "job" / "0.mp4").read_bytes() == b"v" * 5000
    assert json.loads((s3.root / s3.bucket / "job" / "manifest.json").read_text()) == {"a": 1}


@pytest.mark.parametrize(
    "wrong",
    [{"access_key_id": Secret("nobody")}, {"secret_access_key": Secret("no")}, {"name": "none"}],
    ids=["unknown key", "wrong secret", "no bucket"],
)
def test_a_refusal_is_heard_at_once(
    s3: S3Server,  # noqa: F811
    tmp_path: Path,
    wrong: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The store answers before it has read the body; who waits for more waits for nothing.
    monkeypatch.setattr(caller_store, "READ_SECONDS", 5)
    port = int(s3.endpoint_url.rpartition(":")[2])
    to = store(policy_to(port, [], s3_example=PUBLIC), name=s3.bucket)
    with pytest.raises(StorageFailed, match="answered") as failure:
        put(replace(to, bucket=replace(to.bucket, **wrong)), tmp_path)
    assert not failure.value.retryable


@pytest.mark.parametrize("answers", ["10.0.0.7", f"{PUBLIC} 127.0.0.1", "::ffff:169.254.169.254"])
def test_an_endpoint_that_has_become_private_is_not_dialled(answers: str, tmp_path: Path) -> None:
    turns = iter([(PUBLIC,), tuple(answers.split())])
    policy = replace(GUARDED, resolve=lambda _host: next(turns))
    to = store(policy, "https://s3.example")
    net.check("https://s3.example", policy, field=buckets.ENDPOINT, https_only=True)
    with pytest.raises(UrlBlocked) as blocked:
        put(to, tmp_path)
    assert blocked.value.field == buckets.ENDPOINT
    assert "10.0.0.7" not in blocked.value.message


def test_a_bucket_name_before_the_host_leads_nowhere_private(tmp_path: Path) -> None:
    hosts = {"x_amazonaws_com_evil_example": PUBLIC, "inner_x_amazonaws_com_evil_example": "::1"}
    policy = replace(GUARDED, resolve=names(**hosts))
    endpoint = "https://x.amazonaws.com.evil.example"
    net.check(endpoint, policy, field=buckets.ENDPOINT, https_only=True)
    with pytest.raises(UrlBlocked):
        put(store(policy, endpoint, "inner"), tmp_path)


def test_a_proxy_of_the_environment_is_refused(tmp_path: Path) -> None:
    policy = replace(GUARDED, resolve=names(s3_example=PUBLIC))
    proxied = replace(policy, proxies=lambda: {"https": "http://proxy.internal:3128"})
    with pytest.raises(UrlBlocked, match="proxy") as blocked:
        put(store(proxied, "https://s3.example"), tmp_path)
    assert "proxy.internal" not in blocked.value.message


def test_tls_is_checked_for_the_name_and_never_given_up(
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str | None] = []
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    tls.sni_callback = lambda _sock, name, _context: asked.append(name)
    dialled: list[str] = []
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", tls=tls) as port:
        policy = policy_to(port, dialled, secure_example=PUBLIC, other_example=PUBLIC)
        to = store(policy, "https://secure.example")
        with monkeypatch.context() as patch:
            patch.setattr(botocore.httpsession, "get_cert_path", lambda _verify: str(certificate))
            storage.put_manifest({"a": 1}, "job", to)
            assert asked == ["secure.example"]
            assert dialled == [f"{PUBLIC}:443"]
            monkeypatch.setattr("time.sleep", lambda _seconds: None)  # between the SDK's tries
            with pytest.raises(StorageFailed):  # the certificate is for another name
                storage.put_manifest({"a": 1}, "job", store(policy, "https://other.example"))
        with pytest.raises(StorageFailed):  # nobody vouches for it
            storage.put_manifest({"a": 1}, "job", to)
    assert set(dialled) == {f"{PUBLIC}:443"}


@pytest.mark.parametrize(
    "first",
    [b"", b"HTTP/1.1 200 OK\r\nA: ", b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"],
    ids=["status line", "header", "body", "interim answer"],
)
def test_a_store_that_drips_is_left_at_the_deadline(
    first: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "CALLER_SECONDS", 0.5)
    with answering(first, b"x", pause=0.02) as port, pytest.raises(StorageFailed) as failure:
        put(store(policy_to(port, [], s3_example=PUBLIC)), tmp_path)
    assert failure.value.retryable


def test_a_store_that_answers_without_end_does_not_fill_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[int] = []
    real = caller_store._LimitedSocket.recv_into

    def counting(sock: caller_store._LimitedSocket, buffer: memoryview) -> int:
        received.append(size := real(sock, buffer))
        return size

    monkeypatch.setattr(caller_store._LimitedSocket, "recv_into", counting)
    monkeypatch.setattr(buckets, "CALLER_SECONDS", 2.0)
    endless = answering(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65_536)
    with endless as port, pytest.raises(StorageFailed):
        put(store(policy_to(port, [], s3_example=PUBLIC)), tmp_path)
    tries = 5
    assert sum(received) < tries * (caller_store.MAX_ANSWER_BYTES + 1024**2)


def test_the_operators_own_bucket_may_be_private(s3: S3Server, tmp_path: Path) -> None:  # noqa: F811
    bucket = Bucket(s3.endpoint_url, Secret(s3.access_key), Secret(s3.secret_key), s3.bucket)
    to = storage.choose(
        job_bucket=None, bucket=bucket, url_expiry_seconds=60, output_dir=tmp_path,
        response_format="url", on_platform=True, policy=GUARDED,
    )  # fmt: skip
    assert isinstance(to, storage.S3)
    assert put(to, tmp_path).key == "job/0.mp4"
