"""The HTTP API on real sockets: a job from its submission to its file."""

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psutil
import pytest

from tests.builders.pictures import picture
from tests.builders.requests import LONG
from tests.conftest import QUICK
from tests.integration.http_api import GENERATION, HttpApi
from tests.integration.s3 import S3Server
from wan_worker.queue.ledger import FILE, Ledger


@pytest.fixture(scope="module")
def api(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpApi]:
    with HttpApi(tmp_path_factory.mktemp("api"), models_dir, env={"QUEUE_LIMIT": "3"}) as server:
        server.wait_ready()
        yield server


@pytest.fixture(scope="module")
def done(api: HttpApi) -> dict[str, Any]:
    """A job that has completed."""
    return api.wait(api.submit(QUICK))


def test_a_job_goes_from_its_submission_to_its_file(api: HttpApi, done: dict[str, Any]) -> None:
    assert done["status"] == "completed"
    assert done["submitted_at"] <= done["started_at"] <= done["ended_at"]
    assert done["error"] is None
    assert done["request"] == QUICK
    (asset,) = done["result"]["assets"]
    assert asset["url"] == f"{GENERATION}/{done['task_id']}/assets/0"
    file = api.get(asset["url"])
    assert (file.status, file.headers["content-type"]) == (200, "video/mp4")
    assert hashlib.sha256(file.body).hexdigest() == asset["sha256"]


def test_the_answer_is_the_one_that_runpod_gets(done: dict[str, Any], response_errors: Any) -> None:
    assert response_errors(done["result"]) == []


def test_a_file_is_given_by_range(api: HttpApi, done: dict[str, Any]) -> None:
    url = done["result"]["assets"][0]["url"]
    whole = api.get(url).body
    part = api.get(url, Range="bytes=10-19")
    assert (part.status, part.body) == (206, whole[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(whole)}"
    for wrong, status in ((f"bytes={len(whole)}-", 416), ("bytes=9-1", 400), ("lines=1-2", 400)):
        refused = api.get(url, Range=wrong)
        assert (refused.status, refused.error["code"]) == (status, "INVALID_REQUEST")
        assert refused.headers.get("content-range") == (
            f"bytes */{len(whole)}" if status == 416 else None
        )


def test_a_files_head_is_told_without_it(api: HttpApi, done: dict[str, Any]) -> None:
    (asset,) = done["result"]["assets"]
    head = api.call("HEAD", asset["url"])
    assert (head.status, head.body) == (200, b"")
    assert int(head.headers["content-length"]) == asset["bytes"]
    assert head.headers["accept-ranges"] == "bytes"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "submit", "POST"),
        ("DELETE", "submit", "POST"),
        ("GET", "plan", "POST"),
        ("GET", "enhanced/submit", "POST"),
        ("POST", "x", "DELETE, GET"),
        ("DELETE", "x/assets/0", "GET, HEAD"),
        ("POST", "/api/v1/models/download/progress", "GET"),
    ],
)
def test_a_route_that_is_called_by_another_method_says_which_it_takes(
    api: HttpApi, method: str, path: str, allowed: str
) -> None:
    whole = path if path.startswith("/") else f"{GENERATION}/{path}"
    refused = api.call(method, whole)
    assert (refused.status, refused.error["code"]) == (405, "METHOD_NOT_ALLOWED")
    assert refused.headers["allow"] == allowed


@pytest.mark.parametrize(
    ("method", "path", "body", "field"),
    [
        ("GET", "/api/v1/wan-models/recommend?priority=x", None, "/query/priority"),
        ("GET", f"{GENERATION}?limit=0", None, "/query/limit"),
        ("GET", f"{GENERATION}/x/assets/y", None, "/path/index"),
        ("POST", "/api/v1/models/download", {"model": 5}, "/model"),
        ("POST", "/api/v1/performance/optimize", {"modell": "x"}, "/modell"),
    ],
)
def test_what_is_wrong_is_pointed_at_wherever_it_stands(
    api: HttpApi, method: str, path: str, body: Any, field: str
) -> None:
    refused = api.call(method, path, body)
    assert (refused.status, refused.error["field"]) == (422, field)


def test_a_job_says_how_far_it_is(api: HttpApi) -> None:
    task_id = api.submit(LONG)

    def steps() -> set[int]:
        progress = api.look(task_id)["progress"] or {}
        if progress.get("stage") == "denoise" and "step" in progress:
            seen.add(progress["step"])
        return seen if len(seen) > 2 else set()

    seen: set[int] = set()
    api.until(steps)
    assert api.look(task_id)["cancel_requested"] is False
    told = api.call("DELETE", f"{GENERATION}/{task_id}")
    assert (told.status, told.json["cancel_requested"]) == (202, True)
    ended = api.wait(task_id)
    assert ended["cancel_requested"] is False
    assert (ended["status"], ended["error"]["code"]) == ("canceled", "CANCELED")
    assert ended["progress"] is None


def test_the_queue_is_bounded_keeps_its_order_and_lets_go_of_who_waits(api: HttpApi) -> None:
    running = api.submit(LONG)
    api.wait(running, "running")
    early = api.get(f"{GENERATION}/{running}/assets/0")
    assert (early.status, early.error["retryable"]) == (409, True)
    assert "not finished yet" in early.error["message"]
    waiting = [api.submit(QUICK) for _ in range(3)]
    assert [api.look(task_id)["position"] for task_id in waiting] == [0, 1, 2]
    refused = api.call("POST", f"{GENERATION}/submit", QUICK)
    assert (refused.status, refused.error["code"]) == (429, "QUEUE_FULL")
    assert int(refused.headers["retry-after"]) > 0
    assert refused.error["retryable"] is True
    assert api.call("POST", f"{GENERATION}/{waiting[0]}/cancel").status == 202
    assert api.look(waiting[0])["status"] == "canceled"
    assert api.look(waiting[1])["position"] == 0
    assert api.call("POST", f"{GENERATION}/{running}/cancel").status == 202
    ended = [api.wait(task_id) for task_id in waiting[1:]]
    assert [job["status"] for job in ended] == ["completed", "completed"]
    assert ended[0]["started_at"] < ended[0]["ended_at"] <= ended[1]["started_at"]


def test_a_job_that_has_ended_is_not_cancelled(api: HttpApi, done: dict[str, Any]) -> None:
    refused = api.call("POST", f"{GENERATION}/{done['task_id']}/cancel")
    assert (refused.status, refused.error["code"]) == (409, "CONFLICT")


def test_a_bad_request_is_refused_before_it_waits(api: HttpApi) -> None:
    before = api.get("/health").json["queue"]
    refused = api.call("POST", f"{GENERATION}/submit", QUICK | {"size": 5, "stepps": 1})
    assert refused.status == 422
    assert refused.error["code"] == "INVALID_REQUEST"
    assert refused.error["field"] == "/size"
    assert "; /stepps: Unknown field" in refused.error["message"]
    assert api.get("/health").json["queue"] == before


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"", 400), (b"{", 400), (b"[" * 100_000, 400), (b"\xff", 400), (b"[]", 422), (b"1", 422)],
)
def test_a_body_that_is_no_request_is_refused(api: HttpApi, body: bytes, status: int) -> None:
    headers = {"Content-Type": "application/json"}
    refused = api.call("POST", f"{GENERATION}/submit", body, headers)
    assert (refused.status, refused.error["code"]) == (status, "INVALID_REQUEST")


@pytest.mark.parametrize("path", ["submit", "enhanced/submit", "plan"])
@pytest.mark.parametrize(
    ("body", "field", "said"),
    [
        ({"mode": "info", "report": "health"}, "/mode", f"POST the request to {GENERATION}/plan"),
        ({"input": QUICK}, "/input", "Send what is inside input as the body itself"),
        (QUICK | {"s3Config": {}}, "/s3Config", "on RunPod only"),
    ],
)
def test_what_only_runpod_takes_is_refused_with_what_to_send_here(
    api: HttpApi, path: str, body: dict[str, Any], field: str, said: str
) -> None:
    refused = api.call("POST", f"{GENERATION}/{path}", body)
    assert (refused.status, refused.error["field"]) == (422, field)
    assert said in refused.error["message"]


def test_a_request_that_does_not_say_what_to_make_makes_a_video(api: HttpApi) -> None:
    request = {name: value for name, value in QUICK.items() if name != "mode"}
    assert api.call("POST", f"{GENERATION}/plan", request).json["mode"] == "video"
    mode = api.get("/openapi.json").json["components"]["schemas"]["GenerationRequest"]
    assert "without one it is video" in mode["properties"]["mode"]["description"]


def test_a_job_that_fails_says_why(api: HttpApi) -> None:
    job = api.wait(api.submit(QUICK | {"image_url": "https://[2001:db8::1]/a.png"}))
    assert (job["status"], job["result"]) == ("failed", None)
    assert job["error"]["code"] == "URL_BLOCKED"
    assert job["error"]["field"] == "/image_url"
    assert "/input" not in job["error"]["message"]


@pytest.mark.parametrize("path", ["submit", "enhanced/submit"])
@pytest.mark.parametrize(
    ("wrong", "status", "code", "field"),
    [
        ({"model": "wan2.1-t2v-14b"}, 409, "MODEL_UNAVAILABLE", "/model"),
        ({"model": "wan2.1-i2v-14b-480p"}, 422, "INVALID_REQUEST", "/image_url"),
        ({"loras": [{"source": "nobody"}]}, 422, "INVALID_REQUEST", "/loras/0/source"),
        ({"callback_url": "http://127.0.0.1/"}, 422, "URL_BLOCKED", "/callback_url"),
        ({"image_url": "file:///etc/passwd"}, 422, "URL_BLOCKED", "/image_url"),
        ({"image_url": "cat.png"}, 422, "URL_BLOCKED", "/image_url"),
        (
            {"size": "1920x1080", "num_frames": 961, "steps": 100, "num_outputs": 4},
            422,
            "UNSUPPORTED",
            "/size",
        ),
    ],
    ids=["not-installed", "no-picture", "no-lora", "callback", "file", "name", "too-much"],
)
def test_what_its_plan_refuses_is_refused_before_it_waits(
    api: HttpApi, path: str, wrong: dict[str, Any], status: int, code: str, field: str
) -> None:
    newest = api.get(f"{GENERATION}?limit=1").json
    request = {k: v for k, v in QUICK.items() if k not in ("num_inference_steps",)} | wrong
    refused = api.call("POST", f"{GENERATION}/{path}", request)
    assert (refused.status, refused.error["code"]) == (status, code)
    assert refused.error["field"] == field
    assert "/input" not in refused.error["message"]
    assert api.get(f"{GENERATION}?limit=1").json == newest


def test_a_picture_is_not_kept_in_the_history(api: HttpApi) -> None:
    task_id = api.submit(QUICK | {"image_url": picture()})
    job = api.wait(task_id)
    assert job["status"] == "completed", job["error"]
    assert job["request"]["image_url"].startswith("(data, ")
    with Ledger(api.state_dir / FILE) as ledger:
        assert ledger.request(task_id) is None


def test_the_history_is_told_newest_first_and_page_by_page(
    api: HttpApi, done: dict[str, Any]
) -> None:
    ids, before = [], ""
    while before is not None:
        page = api.get(f"{GENERATION}?limit=2{before}").json
        ids += [job["task_id"] for job in page["jobs"]]
        before = page["before"] and f"&before={page['before']}"
    assert len(ids) == len(set(ids)) > 2
    assert ids[-1] == done["task_id"] or done["task_id"] in ids
    failed = api.get(f"{GENERATION}?status=failed").json["jobs"]
    assert {job["status"] for job in failed} <= {"failed"}


def test_a_list_of_jobs_does_not_carry_their_files(api: HttpApi) -> None:
    job = api.wait(api.submit(QUICK | {"response_format": "base64"}))
    (asset,) = job["result"]["assets"]
    file = base64.b64decode(asset["data"])
    newest = api.get(f"{GENERATION}?limit=1").json["jobs"][0]
    (listed,) = newest["result"]["assets"]
    assert newest["task_id"] == job["task_id"]
    url = listed["url"]
    assert listed == {name: value for name, value in asset.items() if name != "data"} | {"url": url}
    given = api.get(url)
    assert (given.status, given.headers["content-type"]) == (200, "video/mp4")
    assert given.body == file
    assert hashlib.sha256(file).hexdigest() == asset["sha256"]
    described = api.get("/openapi.json").json["paths"][GENERATION]["get"]["description"]
    assert "left out of lists" in described


def test_an_optimized_job_takes_over_steps_where_its_model_can(api: HttpApi) -> None:
    request = {"model_type": "T2V-1.3B", "prompt": "a red circle", "size": "64x48",
               "num_frames": 5, "steps": 10, "enable_optimization": True}  # fmt: skip
    path = f"{GENERATION}/enhanced/submit"
    job = api.wait(api.call("POST", path, request).json["task_id"])
    assert job["result"]["metadata"]["plan"]["acceleration"]["mode"] == "cached"
    plain = api.call("POST", path, request | {"enable_optimization": False}).json["task_id"]
    assert api.wait(plain)["result"]["metadata"]["plan"]["acceleration"]["mode"] == "exact"


def test_the_server_says_that_it_is_well(api: HttpApi) -> None:
    for path in ("/health", "/v2/health"):
        health = api.get(path)
        assert (health.status, health.json["status"]) == (200, "ok")
    assert api.get("/ping").status == 200


def test_the_models_are_told_under_all_their_names(api: HttpApi) -> None:
    models = api.get("/api/v1/models/status").json["models"]
    assert {m["id"] for m in models if m["status"] == "installed"} == {
        "wan2.1-t2v-1.3b",
        "wan2.1-i2v-14b-480p",
    }
    for name in ("wan2.2-t2v-a14b", "T2V-A14B", "t2v-A14B", "t2v-a14b", "WAN2.2-T2V-A14B"):
        assert api.get(f"/api/v1/models/status/{name}").json["id"] == "wan2.2-t2v-a14b"
        assert api.get(f"/api/v1/wan-models/capabilities/{name}").json["id"] == "wan2.2-t2v-a14b"
    unknown = api.get("/api/v1/models/status/sora")
    assert (unknown.status, unknown.error["code"]) == (404, "NOT_FOUND")
    assert api.get("/api/v1/models/health").json["ready"] is True


def test_the_server_never_imports_torch_which_its_engine_does(
    api: HttpApi, done: dict[str, Any]
) -> None:
    def libraries(process: psutil.Process) -> set[str]:
        return {Path(mapped.path).name for mapped in process.memory_maps()}

    assert any("torch" in name for name in libraries(api.engine()))
    assert not any("torch" in name for name in libraries(psutil.Process(api.pid)))


def test_a_request_can_be_planned_without_being_made(api: HttpApi) -> None:
    told = api.call("POST", f"{GENERATION}/plan", QUICK).json
    assert told["model"] == "wan2.1-t2v-1.3b"
    assert told["delivered"] == {"width": 64, "height": 48, "num_frames": 5, "fps": 16}
    assert told["estimate"]["seconds"] > 0
    refused = api.call("POST", f"{GENERATION}/plan", QUICK | {"size": "wide"})
    assert (refused.status, refused.error["field"]) == (422, "/size")
    assert "request" not in refused.error["message"]


def test_a_file_in_a_bucket_is_pointed_at_however_old_its_answer_is(
    models_dir: Path, tmp_path: Path
) -> None:
    env = {"BUCKET_PREFIX": "a/b"}
    with (
        S3Server(tmp_path / "s3") as s3,
        HttpApi(tmp_path, models_dir, env=s3.env() | env) as server,
    ):
        job = server.wait(server.submit(QUICK))
        (asset,) = job["result"]["assets"]
        assert asset["url"].startswith(s3.endpoint_url)
        path = f"{GENERATION}/{job['task_id']}/assets/0"

        def signed_later() -> str | None:
            pointed = server.get(path)
            assert pointed.status == 307
            where = pointed.headers["location"]
            return where if where != asset["url"] else None

        where = server.until(signed_later)
        with urlopen(where, timeout=30) as reply:
            assert hashlib.sha256(reply.read()).hexdigest() == asset["sha256"]
