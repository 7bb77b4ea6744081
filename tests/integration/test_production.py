"""handler.py as RunPod runs it: the SDK's production loop, an S3 server that checks signatures."""

import hashlib
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook

from tests.builders.answers import output_of
from tests.builders.files import download, read
from tests.builders.pictures import picture
from tests.builders.requests import MANY_STEPS, SLOW
from tests.conftest import QUICK, Answer
from tests.integration.conftest import Production
from tests.integration.platform import Platform
from tests.integration.worker import Worker


def test_five_mixed_jobs_in_a_row(
    production: Production, response_errors: Callable[[Answer], list[str]], tmp_path: Path
) -> None:
    requests = [
        QUICK,
        QUICK | {"image_url": picture(), "num_frames": 9},
        QUICK | {"mode": "image", "num_frames": 1, "output_format": "webp"},
        QUICK | {"size": "54x36", "num_frames": 7, "solver": "dpm++"},
        QUICK | {"size": "48*64", "sample_solver": "euler", "sample_shift": 5},
    ]
    ids = [production.platform.submit(request) for request in requests]
    for request, job_id in zip(requests, ids, strict=True):
        output = output_of(production.platform.wait(job_id))
        assert response_errors(output) == []
        asset = output["assets"][0]
        assert asset["key"].startswith(f"assets/wan/{job_id}/0.")
        data = download(asset["url"])
        assert hashlib.sha256(data).hexdigest() == asset["sha256"]
        if request["mode"] == "video":
            path = tmp_path / f"{job_id}.mp4"
            path.write_bytes(data)
            wanted = (asset["num_frames"], asset["height"], asset["width"], 3)
            assert read(path).frames.shape == wanted
            assert asset["num_frames"] == request["num_frames"]


def test_stored_objects_carry_their_hash_and_the_manifest_comes_with_them(
    production: Production,
) -> None:
    output = output_of(production.run(QUICK, job_id="recorded"))
    key = output["assets"][0]["key"]
    client = production.s3.client()
    head = client.head_object(Bucket=production.s3.bucket, Key=key)
    stored = {name.lower(): value for name, value in head["Metadata"].items()}
    assert stored["sha256"] == output["assets"][0]["sha256"]
    assert head["ContentType"] == "video/mp4"
    body = client.get_object(Bucket=production.s3.bucket, Key="assets/wan/recorded/manifest.json")[
        "Body"
    ]
    with body:
        manifest = json.loads(body.read())
    assert manifest["assets"][0]["key"] == key
    assert "X-Amz-Signature" not in json.dumps(manifest)


def test_a_bad_job_gets_a_json_string_with_code_field_and_message(production: Production) -> None:
    result = production.run(QUICK | {"stepz": 3})
    error = json.loads(result["error"])
    assert (error["code"], error["field"]) == ("INVALID_REQUEST", "/input/stepz")
    assert "steps" in error["message"]
    assert error["retryable"] is False


def test_progress_is_numbered_and_nothing_lands_after_the_result(production: Production) -> None:
    job_id = production.platform.submit(MANY_STEPS)
    production.platform.wait(job_id)
    time.sleep(1.5)  # an update that were late would land now
    events = production.platform.events(job_id)
    assert [event.kind for event in events].count("final") == 1
    assert events[-1].kind == "final"
    updates = [event.payload for event in events[:-1]]
    numbers = [update["number"] for update in updates]
    assert len(updates) >= 2
    assert numbers == sorted(set(numbers))
    steps = [update for update in updates if update["stage"] == "denoise" and "step" in update]
    assert steps
    assert steps[-1]["message"] == f"denoise: step {steps[-1]['step']} of 100"
    assert steps[-1]["seconds_left"] >= 0


def test_a_job_cancelled_while_denoising_posts_nothing_and_the_next_succeeds(
    production: Production,
) -> None:
    platform = production.platform
    job_id = platform.submit(SLOW)
    platform.wait_until(
        lambda: any(e.payload.get("stage") == "denoise" for e in platform.events(job_id)),
        30, "the job to denoise",
    )  # fmt: skip
    platform.cancel(job_id)
    follower = platform.submit(QUICK)
    output_of(platform.wait(follower))
    log = production.worker.log()
    assert f"job {job_id}: CANCELED in stage denoise" in log
    assert platform.results(job_id) == []
    prefix = f"assets/wan/{job_id}/"
    listed = production.s3.client().list_objects_v2(Bucket=production.s3.bucket, Prefix=prefix)
    assert "Contents" not in listed


def test_a_second_job_reuses_what_the_first_loaded(production: Production) -> None:
    production.run(QUICK)
    again = output_of(production.run(QUICK))
    assert (
        again["metadata"]["timings"]["load"] < 0.25
    )  # seconds; a first load takes many times that


def test_no_presigned_url_and_no_key_reaches_the_log(production: Production) -> None:
    url = output_of(production.run(QUICK))["assets"][0]["url"]
    log = production.worker.log()
    assert "X-Amz-Signature" in url
    assert "X-Amz-Signature" not in log
    assert production.s3.secret_key not in log


@dataclass
class Receiver:
    """A callback receiver that keeps what it is sent."""

    url: str = ""
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    state = Receiver()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            state.requests.append((dict(self.headers), body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}/hook"
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_callback_of_a_finished_job_is_signed_and_complete(
    production: Production, receiver: Receiver
) -> None:
    result = production.run(
        QUICK | {"job_type": "video_fast", "callback_url": receiver.url}, job_id="called"
    )
    output = output_of(result)
    assert output["warnings"] == []
    [(headers, body)] = receiver.requests
    webhook = Webhook("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    assert webhook.verify(body, {name.lower(): value for name, value in headers.items()})
    notice = json.loads(body)
    assert notice["job_id"] == "called"
    assert notice["status"] == "completed"
    assert notice["assets"] == [output["assets"][0]["key"]]
    assert notice["asset_urls"] == [output["assets"][0]["url"]]
    assert notice["metadata"]["job_type"] == "video_fast"
    assert notice["metadata"]["frame_num"] == 5
    assert notice["metadata"]["wan_task"] == "t2v-1.3B"
    assert notice["metadata"]["content_type"] == "video"
    assert notice["metadata"]["generation_time"] > 0


def test_the_callback_of_a_failed_job_says_why(production: Production, receiver: Receiver) -> None:
    bad = QUICK | {"image_url": "data:image/png;base64,AAAA", "callback_url": receiver.url}
    result = production.run(bad, job_id="failed-call")
    assert "error" in result
    [(_, body)] = receiver.requests
    notice = json.loads(body)
    assert notice["status"] == "failed"
    assert notice["error_message"]
    assert notice["metadata"]["error_type"] == "IMAGE_REJECTED"
    assert notice["metadata"]["wan_task"] == "i2v-14B"
    assert set(notice["metadata"]) == {"error_type", "job_type", "wan_task", "timestamp"}


def test_a_callback_that_fails_is_a_warning_and_no_more(
    production: Production, tmp_path: Path
) -> None:
    output = output_of(production.run(QUICK | {"callback_url": "http://127.0.0.1:9/hook"}))
    assert [warning["code"] for warning in output["warnings"]] == ["CALLBACK_FAILED"]


def test_the_jobs_own_bucket_wins(
    production: Production, tmp_path_factory: pytest.TempPathFactory
) -> None:
    s3 = production.s3
    client = s3.client()
    client.create_bucket(Bucket="callers-own")
    config = {
        "accessId": s3.access_key,
        "accessSecret": s3.secret_key,
        "bucketName": "callers-own",
        "endpointUrl": s3.endpoint_url,
    }
    output = output_of(production.run(QUICK, job_id="own-bucket", s3Config=config))
    asset = output["assets"][0]
    assert asset["key"] == "own-bucket/0.mp4"
    assert hashlib.sha256(download(asset["url"])).hexdigest() == asset["sha256"]
    names = {item["Key"] for item in client.list_objects_v2(Bucket="callers-own")["Contents"]}
    assert names == {"own-bucket/0.mp4", "own-bucket/manifest.json"}


def test_wrong_keys_are_a_storage_failure_that_names_no_key(production: Production) -> None:
    config = {
        "accessId": production.s3.access_key,
        "accessSecret": "CANARY-not-the-secret",
        "bucketName": production.s3.bucket,
        "endpointUrl": production.s3.endpoint_url,
    }
    result = production.run(QUICK, s3Config=config)
    error = json.loads(result["error"])
    assert (error["code"], error["retryable"]) == ("STORAGE_FAILED", False)
    assert "CANARY" not in json.dumps(result) + production.worker.log()
    output_of(production.run(QUICK))


def test_sigterm_lets_the_running_job_finish(models_dir: Path, tmp_path: Path) -> None:
    with (
        Platform() as platform,
        Worker(platform, tmp_path, env={"MODELS_DIR": str(models_dir)}) as worker,
    ):
        job_id = platform.submit(MANY_STEPS)
        platform.wait_until(lambda: bool(platform.events(job_id)), 30, "the job to begin")
        worker.terminate()
        output = output_of(platform.wait(job_id))
        assert output["assets"][0]["data"]  # no bucket on the platform: inline
        assert worker.stop() == 0
        assert [path.name for path in worker.tmp.glob("wan-job-*")] == []


def test_a_worker_takes_its_first_job_without_having_imported_torch(
    models_dir: Path, tmp_path: Path
) -> None:
    # A stand-in torch that ends the process shows that nothing imports it before a valid job.
    trap = tmp_path / "trap"
    trap.mkdir()
    for name in ("torch", "diffusers", "transformers"):
        (trap / f"{name}.py").write_text("import os; print('TRAPPED', flush=True); os._exit(9)\n")
    env = {"MODELS_DIR": str(models_dir), "PYTHONPATH": str(trap)}
    with Platform() as platform, Worker(platform, tmp_path / "w", env=env) as worker:
        for bad in (
            {"prompt": "no mode"},
            QUICK | {"size": "1920x1080"},
            QUICK | {"model": "wan2.1-i2v-14b-480p"},
            QUICK | {"image_url": "file:///etc/passwd"},
        ):
            result = platform.wait(platform.submit(bad))
            assert json.loads(result["error"])["field"]
        assert worker.alive()
        assert "TRAPPED" not in worker.log()


def test_a_half_configured_bucket_stops_the_worker_at_start(tmp_path: Path) -> None:
    env = {"BUCKET_NAME": "assets", "URL_EXPIRY_SECONDS": "soon"}
    with (
        Platform() as platform,
        pytest.raises(AssertionError) as caught,
        Worker(platform, tmp_path, env=env),
    ):
        pass
    assert "CONFIG_INVALID" in str(caught.value)
    assert "BUCKET_ENDPOINT_URL" in str(caught.value)
    assert "URL_EXPIRY_SECONDS" in str(caught.value)


def test_a_worker_that_is_not_fit_ends_before_its_first_job_and_says_why(tmp_path: Path) -> None:
    env = {"MODELS_DIR": str(tmp_path / "none")}
    with (
        Platform() as platform,
        pytest.raises(AssertionError) as caught,
        Worker(platform, tmp_path, env=env),
    ):
        pass
    assert "no model in" in str(caught.value)
    assert "download_weights.py --models" in str(caught.value)


def test_what_a_killed_worker_left_is_gone_when_the_next_one_starts(
    models_dir: Path, tmp_path: Path
) -> None:
    env = {"MODELS_DIR": str(models_dir)}
    with Platform() as platform:
        with Worker(platform, tmp_path, env=env) as worker:
            job_id = platform.submit(SLOW)
            platform.wait_until(
                lambda: any(e.payload.get("stage") == "denoise" for e in platform.events(job_id)),
                30, "the job to denoise",
            )  # fmt: skip
            worker.kill()
            assert len(list(worker.tmp.glob("wan-job-*"))) == 1
        with Worker(platform, tmp_path, env=env) as worker:
            assert list(worker.tmp.glob("wan-job-*")) == []
            output_of(platform.wait(platform.submit(QUICK)))
