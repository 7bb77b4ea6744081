"""Promises of callback: a notice is signed, bounded, and never changes a job's outcome."""

import base64
import json
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from wan_worker.delivery import callback
from wan_worker.errors import FetchFailed
from wan_worker.inputs import net
from wan_worker.inputs.dialing import Policy
from wan_worker.settings import Secret

URL = "https://app.example/hook?token=hush"
KEY = Secret("whsec_" + base64.b64encode(b"k" * 24).decode())
OLD_KEY = Secret("whsec_" + base64.b64encode(b"o" * 24).decode())
BODY = callback.completed("job-1", ["wan/job-1/0.mp4"], ["https://cdn/0.mp4"], {"frame_num": 81})


@dataclass
class Receiver:
    """Stands for net.post and the clock: plays its answers, and never sleeps."""

    answers: list[net.Reply | Exception]
    posts: list[tuple[bytes, dict[str, str], float]] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    time: float = 100.0

    def post(
        self, url: str, body: bytes, headers: Mapping[str, str], policy: Policy,
        *, seconds: float, field: str | None,
    ) -> net.Reply:  # fmt: skip
        self.posts.append((body, dict(headers), seconds))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.time += seconds

    @property
    def policy(self) -> Policy:
        return Policy(clock=lambda: self.time, sleep=self.sleep, dial=no_dial)


def no_dial(ip: str, port: int, seconds: float) -> socket.socket:
    pytest.fail(f"dialled {ip}:{port}")


def status(code: int, retry_after: float | None = None) -> net.Reply:
    return net.Reply(code, retry_after)


def sent(
    monkeypatch: pytest.MonkeyPatch, *answers: net.Reply | Exception, **options: Any
) -> tuple[str | None, Receiver]:
    receiver = Receiver(list(answers))
    monkeypatch.setattr(net, "post", receiver.post)
    arguments = {"body": BODY, "secrets": [KEY], "seconds": 60.0} | options
    warning = callback.send(URL, policy=receiver.policy, **arguments)
    if warning is not None:
        assert "hush" not in warning
    return warning, receiver


# What is said


def test_success_is_told_as_the_contract_has_it() -> None:
    assert callback.completed(
        "j", ["a/0.png"], ["https://x/a/0.png"], {"wan_task": "t2v-1.3B"}
    ) == {
        "job_id": "j",
        "status": "completed",
        "assets": ["a/0.png"],
        "asset_urls": ["https://x/a/0.png"],
        "metadata": {"wan_task": "t2v-1.3B"},
    }


def test_failure_is_told_as_the_contract_has_it() -> None:
    assert callback.failed(
        "j", "Went wrong", error_type="OUT_OF_MEMORY", job_type="video_fast", wan_task="t2v-1.3B",
        timestamp=1234567890,
    ) == {
        "job_id": "j",
        "status": "failed",
        "error_message": "Went wrong",
        "metadata": {
            "error_type": "OUT_OF_MEMORY",
            "job_type": "video_fast",
            "wan_task": "t2v-1.3B",
            "timestamp": 1234567890,
        },
    }  # fmt: skip


# How it is signed


def test_signature_is_what_a_receiver_verifies() -> None:
    data = b'{"job_id":"j"}'
    signed = callback.headers(data, "msg_1", int(time.time()), [KEY])
    assert Webhook(KEY.reveal()).verify(data, signed) == {"job_id": "j"}
    with pytest.raises(WebhookVerificationError):
        Webhook(KEY.reveal()).verify(data + b" ", signed)
    with pytest.raises(WebhookVerificationError):
        Webhook(KEY.reveal()).verify(data, signed | {"webhook-id": "msg_2"})
    with pytest.raises(WebhookVerificationError):
        Webhook(OLD_KEY.reveal()).verify(data, signed)


def test_both_keys_verify_while_they_are_rotated() -> None:
    signed = callback.headers(b"{}", "msg_1", int(time.time()), [KEY, OLD_KEY])
    assert len(signed["webhook-signature"].split(" ")) == 2
    for key in (KEY, OLD_KEY):
        Webhook(key.reveal()).verify(b"{}", signed)


def test_plain_text_secret_signs_with_its_own_bytes() -> None:
    signed = callback.headers(b"{}", "msg_1", int(time.time()), [Secret("schlüssel-0123456789")])
    Webhook("schlüssel-0123456789".encode()).verify(b"{}", signed)


def test_unpadded_secret_signs_like_the_padded_one() -> None:
    padded = Secret("whsec_" + base64.b64encode(b"k" * 25).decode())
    assert callback.signing_key(Secret(padded.reveal().rstrip("="))) == b"k" * 25


def test_secret_that_is_not_base64_is_named_but_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="whsec_") as problem:
        callback.signing_key(Secret("whsec_not/base64!hush"))
    assert "hush" not in str(problem.value)
    warning, receiver = sent(monkeypatch, secrets=[Secret("whsec_not/base64!hush")])
    assert warning is not None
    assert receiver.posts == []


def test_without_a_secret_there_is_no_signature() -> None:
    assert "webhook-signature" not in callback.headers(b"{}", "msg_1", 1, [])


@pytest.mark.parametrize("job_id", ["job\r\nX-Injected: 1", "ü\u2028", "a" * 10_000, "\ud800", ""])
def test_no_job_id_can_write_itself_into_a_header(
    monkeypatch: pytest.MonkeyPatch, job_id: str
) -> None:
    body = callback.completed(job_id, [], [], {})
    warning, receiver = sent(monkeypatch, status(200), body=body)
    assert warning is None
    _, headers, _ = receiver.posts[0]
    for value in headers.values():
        assert value.isascii()
        assert value.isprintable()
        assert len(value) < 200


# How it is sent


def test_delivered_notice_leaves_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    warning, receiver = sent(monkeypatch, status(204))
    assert warning is None
    (data, headers, _) = receiver.posts[0]
    assert json.loads(data) == BODY
    Webhook(KEY.reveal()).verify(data, headers)
    assert headers["Content-Type"] == "application/json"


def test_all_tries_carry_the_same_id_and_verify(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([time.time(), time.time() + 30])
    warning, receiver = sent(monkeypatch, status(500), status(200), now=lambda: next(times))
    assert warning is None
    (first, second) = (headers for _, headers, _ in receiver.posts)
    assert first["webhook-id"] == second["webhook-id"]
    assert first["webhook-timestamp"] != second["webhook-timestamp"]
    for data, headers, _ in receiver.posts:
        Webhook(KEY.reveal()).verify(data, headers)


def test_success_and_failure_of_one_job_have_different_ids() -> None:
    other = {"job_id": "job-1", "status": "failed"}
    assert callback.message_id(BODY) != callback.message_id(other)
    assert callback.message_id(BODY) != callback.message_id(BODY | {"job_id": "job-2"})
    assert callback.message_id(BODY) == callback.message_id(dict(BODY))


@pytest.mark.parametrize("code", [301, 302, 307, 400, 401, 403, 404, 410, 422])
def test_final_answer_stops_at_once(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    warning, receiver = sent(monkeypatch, status(code, 1.0))
    assert warning is not None
    assert str(code) in warning
    assert len(receiver.posts) == 1


@pytest.mark.parametrize("code", [408, 425, 429, 500, 503])
def test_passing_answer_is_tried_four_times(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    warning, receiver = sent(monkeypatch, *[status(code)] * 4)
    assert warning is not None
    assert "4 tries" in warning
    assert receiver.pauses == [0.5, 1.0, 2.0]


@pytest.mark.parametrize(
    ("asked", "waited"), [(0.0, 0.5), (3.0, 3.0), (10.0, 10.0), (86_400.0, 10.0)]
)
def test_retry_after_is_obeyed_up_to_a_cap(
    monkeypatch: pytest.MonkeyPatch, asked: float, waited: float
) -> None:
    warning, receiver = sent(monkeypatch, status(503, asked), status(200))
    assert warning is None
    assert receiver.pauses == [waited]


def test_receiver_that_is_down_costs_no_more_than_the_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    warning, receiver = sent(monkeypatch, *[status(503, 10.0)] * 4, seconds=15.0)
    assert warning is not None
    assert len(receiver.posts) == 2
    assert receiver.time <= 115.0
    assert [seconds for _, _, seconds in receiver.posts] == [10.0, 5.0]


def test_unreachable_receiver_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    warning, _ = sent(monkeypatch, FetchFailed("reset", retryable=True), status(200))
    assert warning is None


def test_tls_failure_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    warning, receiver = sent(monkeypatch, FetchFailed("the TLS connection failed", retryable=False))
    assert warning == "The callback was not delivered in 1 try: the TLS connection failed"
    assert len(receiver.posts) == 1


@pytest.mark.parametrize("problem", [RuntimeError("hush"), ValueError("hush"), OSError("hush")])
def test_no_exception_reaches_the_job(monkeypatch: pytest.MonkeyPatch, problem: Exception) -> None:
    warning, _ = sent(monkeypatch, problem)
    assert warning is not None


@pytest.mark.parametrize("value", [float("nan"), object(), b"bytes"])
def test_body_that_is_not_json_is_a_warning(monkeypatch: pytest.MonkeyPatch, value: Any) -> None:
    warning, receiver = sent(monkeypatch, body=BODY | {"metadata": {"x": value}})
    assert warning is not None
    assert receiver.posts == []


def test_interrupt_passes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> net.Reply:
        raise KeyboardInterrupt

    monkeypatch.setattr(net, "post", interrupt)
    with pytest.raises(KeyboardInterrupt):
        callback.send(URL, BODY, [KEY], Policy(dial=no_dial), seconds=1)


def test_notice_arrives_over_a_real_connection() -> None:
    codes = [503, 200]
    heard: list[tuple[bytes, dict[str, str]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append((self.rfile.read(int(self.headers["Content-Length"])), dict(self.headers)))
            self.send_response(codes.pop(0))
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=lambda: [server.handle_request() for _ in range(2)])
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}/hook"
        policy = Policy(allow_private=True, sleep=lambda _seconds: None)
        assert callback.send(url, BODY, [KEY], policy, seconds=5) is None
        thread.join()
    for data, headers in heard:
        assert Webhook(KEY.reveal()).verify(data, headers) == BODY
    assert heard[0][1]["webhook-id"] == heard[1][1]["webhook-id"]


@pytest.mark.parametrize("answers", [("10.0.0.7",), ("127.0.0.1", "8.8.8.8"), ()])
def test_target_that_has_become_private_is_not_dialled(answers: tuple[str, ...]) -> None:
    policy = Policy(resolve=lambda _host: answers, dial=no_dial, proxies=dict)
    warning = callback.send(URL, BODY, [KEY], policy, seconds=5)
    assert warning is not None
    assert "public address" in warning
    assert "10.0.0.7" not in warning
