"""Strangers at the HTTP API: without a key, with a wrong one, and from a web page of somebody else.

Requests are refused before anything is read of them; what is let through is a job of a second.
"""

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import QUICK
from tests.integration.http_api import COMMAND, GENERATION, HttpApi, Reply
from tests.integration.worker import REPOSITORY

KEY = "Sesame-open-0123456789"
ADMIN = "Sesame-admin-0123456789"
FRIEND = "https://friend.example.com"
SUBMIT = f"{GENERATION}/submit"
MOST = 4096

OPEN = ["/health", "/v2/health", "/ping", "/openapi.json", "/docs"]
CLOSED = [GENERATION, f"{GENERATION}/x", "/api/v1/models/status", "/api/v1/models/health"]


@pytest.fixture(scope="module")
def local(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpApi]:
    """As ``make api`` starts it."""
    env = {"API_MAX_BODY_BYTES": str(MOST)}
    with HttpApi(tmp_path_factory.mktemp("local"), models_dir, env=env) as server:
        server.wait_ready()
        yield server


@pytest.fixture(scope="module")
def keyed(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpApi]:
    """One that other machines reach."""
    env = {"API_HOST": "0.0.0.0", "API_KEY": KEY, "API_ADMIN_KEY": ADMIN,
           "API_CORS_ORIGINS": FRIEND}  # fmt: skip
    with HttpApi(tmp_path_factory.mktemp("keyed"), models_dir, env=env) as server:
        server.wait_ready()
        yield server


def submit(server: HttpApi, **headers: str) -> Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return server.call("POST", SUBMIT, QUICK, {"Content-Type": "application/json"} | named)


def raw(server: HttpApi, request: bytes) -> bytes:
    """What the server answers to these bytes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(request)
        connection.settimeout(30)
        answer = b""
        while b"\r\n\r\n" not in answer and (part := connection.recv(65536)):
            answer += part
        return answer


# --- Keys ---


@pytest.mark.parametrize("path", CLOSED)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-API-Key": ""},
        {"X-API-Key": KEY.swapcase()},
        {"X-API-Key": KEY[:-1]},
        {"X-API-Key": KEY + "x"},
        {"X-API-Key": "schlüssel"},
        {"Authorization": KEY},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": "Bearer"},
        {"Authorization": f"Bearer {KEY.lower()}"},
        {"Cookie": f"key={KEY}"},
    ],
)
def test_who_does_not_have_the_key_gets_nothing(
    keyed: HttpApi, path: str, headers: dict[str, str]
) -> None:
    sent = {name: value.encode("utf-8") for name, value in headers.items()}
    refused = keyed.call("GET", path, headers=sent)  # type: ignore[arg-type]
    assert (refused.status, refused.error["code"]) == (401, "UNAUTHORIZED")
    assert refused.headers["www-authenticate"] == "Bearer"
    assert KEY not in refused.body.decode()


def test_the_key_is_not_taken_from_the_address(keyed: HttpApi) -> None:
    for query in (f"?key={KEY}", f"?api_key={KEY}", f"?token={KEY}"):
        assert keyed.get(GENERATION + query).status == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer {KEY}"},
        {"X-API-Key": KEY},
        {"Authorization": "Bearer of-the-platform", "X-API-Key": KEY},
        {"X-API-Key": ADMIN},
    ],
)
def test_who_has_the_key_is_served(keyed: HttpApi, headers: dict[str, str]) -> None:
    assert keyed.call("GET", GENERATION, headers=headers).status == 200


def test_a_key_given_twice_is_refused(keyed: HttpApi) -> None:
    request = f"GET {GENERATION} HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nX-API-Key: y\r\n\r\n"
    assert raw(keyed, request.encode()).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("path", OPEN)
def test_what_tells_nothing_needs_no_key(keyed: HttpApi, path: str) -> None:
    assert keyed.get(path).status == 200


@pytest.mark.parametrize(
    "path", ["//health", "/health/", "/ping/../api/v1/generation", "/%2e/health", "/HEALTH"]
)
def test_no_other_spelling_of_an_open_path_opens_anything(keyed: HttpApi, path: str) -> None:
    assert keyed.get(path).status == 401


def test_the_key_is_in_no_log(keyed: HttpApi) -> None:
    keyed.get(GENERATION, Authorization=f"Bearer {KEY}")
    keyed.get(f"{GENERATION}?key={KEY}")
    assert KEY not in keyed.log()
    assert ADMIN not in keyed.log()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_an_address_for_others_without_a_key_does_not_start(tmp_path: Path, host: str) -> None:
    done = subprocess.run(
        COMMAND,
        cwd=REPOSITORY,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": "src", "API_HOST": host,
             "STATE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "API_KEY: must be set" in done.stderr


# --- Pages of others ---


@pytest.mark.parametrize("host", ["evil.example.com", "evil.example.com:8000", "127.0.0.1.nip.io",
                                  "localhost.evil.example.com", "10.0.0.1", "", "[", "[::1",
                                  "[::ffff:1.2.3.4]", "127.0.0.1@evil.example.com"])  # fmt: skip
def test_a_name_that_was_made_to_point_here_is_refused(local: HttpApi, host: str) -> None:
    refused = local.get("/health", Host=host)
    assert (refused.status, refused.error["code"]) == (403, "FORBIDDEN")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "LOCALHOST", "[::1]"])
def test_this_machines_own_names_are_served(local: HttpApi, host: str) -> None:
    assert local.get("/health", Host=f"{host}:{local.port}").status == 200


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example.com",
        "null",
        "http://localhost:1",
        "http://127.0.0.1",
        "file://",
        "",
        "http://[",
        "//",
        "http://[::1",
    ],
)
def test_a_page_of_another_origin_can_not_submit(local: HttpApi, origin: str) -> None:
    before = local.get(GENERATION).json
    refused = submit(local, Origin=origin)
    assert (refused.status, refused.error["code"]) == (403, "FORBIDDEN")
    assert local.get(GENERATION).json == before


def test_a_page_of_the_servers_own_can(local: HttpApi) -> None:
    assert submit(local, Origin=f"http://127.0.0.1:{local.port}").status == 202


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "",
             "text/plain; application/json", "application/json-seq"]
)  # fmt: skip
def test_a_body_that_a_page_could_send_unasked_is_refused(local: HttpApi, kind: str) -> None:
    refused = submit(local, Content_Type=kind)
    assert (refused.status, refused.error["code"]) == (415, "UNSUPPORTED_MEDIA_TYPE")


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8"])
def test_json_is_taken_however_it_is_written(local: HttpApi, kind: str) -> None:
    assert submit(local, Content_Type=kind).status == 202


def test_no_page_may_read_unless_the_operator_names_it(local: HttpApi, keyed: HttpApi) -> None:
    asking = {"Access-Control-Request-Method": "POST",
              "Access-Control-Request-Headers": "content-type,x-api-key"}  # fmt: skip
    allowed = keyed.call("OPTIONS", SUBMIT, headers={"Origin": FRIEND} | asking)
    assert (allowed.status, allowed.headers["access-control-allow-origin"]) == (200, FRIEND)
    sent = submit(keyed, Origin=FRIEND, X_API_Key=KEY)
    assert (sent.status, sent.headers["access-control-allow-origin"]) == (202, FRIEND)
    assert "access-control-allow-credentials" not in sent.headers
    assert submit(keyed, Origin=FRIEND).status == 401
    stranger = {"Origin": "https://evil.example.com"}
    for server in (local, keyed):
        refused = server.call("OPTIONS", SUBMIT, headers=stranger | asking)
        assert refused.status >= 400
        assert "access-control-allow-origin" not in refused.headers
        read = server.call("GET", "/health", headers=stranger)
        assert "access-control-allow-origin" not in read.headers


# --- Bodies ---


def test_a_body_that_is_too_large_is_refused_unread(local: HttpApi) -> None:
    request = (f"POST {SUBMIT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
               f"Content-Length: {MOST + 1}\r\n\r\n")  # fmt: skip
    answer = raw(local, request.encode())  # which comes before a byte of it is sent
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in answer.lower()
    fits = json.dumps(QUICK | {"prompt": "x" * (MOST - 200)}).encode()
    assert len(fits) <= MOST
    sent = local.call("POST", SUBMIT, fits, {"Content-Type": "application/json"})
    assert sent.status == 202


def test_a_body_that_states_no_size_is_cut_off(local: HttpApi) -> None:
    chunk = b"%x\r\n%s\r\n" % (1024, b"a" * 1024)
    request = (f"POST {SUBMIT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
               "Transfer-Encoding: chunked\r\n\r\n").encode()  # fmt: skip
    answer = raw(local, request + chunk * 5)  # and more to come
    assert answer.startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("length", ["-1", "99999999999999999999999999", "1e3", "abc", "\xb2"])
def test_a_size_that_is_none_is_refused(local: HttpApi, length: str) -> None:
    request = (f"POST {SUBMIT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
               f"Content-Length: {length}\r\n\r\n{{}}")  # fmt: skip
    status = int(raw(local, request.encode("latin-1")).split(b" ", 2)[1])
    assert status in (400, 413)
    assert local.get("/health").status == 200


def test_a_stranger_is_refused_before_the_body_is_read(keyed: HttpApi) -> None:
    request = (f"POST {SUBMIT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
               "Content-Length: 1000000\r\n\r\n")  # fmt: skip
    assert raw(keyed, request.encode()).startswith(b"HTTP/1.1 401")


# --- Ids and paths ---

IDS = [
    "x",
    "0" * 5_000,
    "' OR '1'='1",
    "x'; DROP TABLE jobs; --",
    "%00",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "..%5c..%5c",
    "%",
    "_%25",
    "\u202e",
]


@pytest.mark.parametrize("task_id", IDS)
@pytest.mark.parametrize(
    ("method", "rest"),
    [("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/assets/0")],
)
def test_an_id_of_no_job_is_not_found(local: HttpApi, task_id: str, method: str, rest: str) -> None:
    path = f"{GENERATION}/{quoted(task_id)}{rest}"
    refused = local.call(method, path)
    assert (refused.status, refused.error["code"]) in (
        (404, "NOT_FOUND"),
        (405, "METHOD_NOT_ALLOWED"),
    )


def quoted(text: str) -> str:
    """Percent-encoded where a request line could not hold it, and else as it is."""
    return "".join(c if "!" <= c <= "~" else "".join(f"%{b:02x}" for b in c.encode()) for c in text)


@pytest.mark.parametrize(
    "index", ["-1", "1", "99999999999999999999", "0x0", "..", "0/../0", "%2e%2e%2f", "0%00", "a"]
)
def test_an_index_of_no_file_gives_none(local: HttpApi, index: str) -> None:
    task_id = submit(local).json["task_id"]
    refused = local.get(f"{GENERATION}/{task_id}/assets/{index}")
    assert refused.status in (404, 405, 409, 422)
    assert set(refused.error) >= {"code", "message"}


def test_the_ledger_is_whole_after_all_that(local: HttpApi) -> None:
    jobs: list[dict[str, Any]] = local.get(GENERATION).json["jobs"]
    assert len(jobs) > 3
    assert {job["status"] for job in jobs} <= {"queued", "running", "completed"}
