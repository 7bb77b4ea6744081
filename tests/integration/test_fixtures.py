"""The fixtures prove themselves first: a test double that lies makes every other test worthless.

The SDK and the S3 server are the real ones; only the handler is a stub.
"""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from botocore.exceptions import ClientError

from tests.integration.api_server import ApiServer
from tests.integration.platform import Platform
from tests.integration.s3 import S3Server
from tests.integration.worker import Child, Worker

STUB = """
import asyncio
import runpod

async def handler(job):
    work = job["input"]
    for step in range(work.get("steps", 0)):
        runpod.serverless.progress_update(job, {"step": step})
        await asyncio.sleep(0.3)
    if work.get("hang"):
        print("hanging", job["id"])
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            print("cancelled", job["id"])
            raise
    await asyncio.sleep(work.get("sleep", 0))
    return {"job": job}

runpod.serverless.start({"handler": handler, "concurrency_modifier": lambda _: CONCURRENCY})
"""


def stub(folder: Path, concurrency: int) -> list[str]:
    """The command that runs a handler which does what its input says."""
    script = folder / "stub.py"
    script.write_text(STUB.replace("CONCURRENCY", str(concurrency)))
    return [sys.executable, str(script)]


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with Platform() as platform:
        yield platform


@pytest.fixture(scope="module")
def worker(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """Two jobs at a time, so that both the single and the batch route are polled."""
    home = tmp_path_factory.mktemp("worker")
    with Worker(platform, home, command=stub(home, concurrency=2)) as worker:
        yield worker


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with S3Server(tmp_path_factory.mktemp("s3")) as s3:
        yield s3


def test_a_job_round_trips_with_everything_beside_its_input(
    platform: Platform, worker: Worker
) -> None:
    job = platform.submit({"sleep": 0}, job_id="round/trip 1", policy={"ttl": 1})

    result = platform.wait(job, timeout=10)

    expected = {"id": "round/trip 1", "input": {"sleep": 0}, "policy": {"ttl": 1}}
    assert result == {"output": {"job": expected}}
    assert platform.results(job) == [result]
    assert platform.first_take_at is not None
    taken_at = platform.taken_at(job)
    assert taken_at is not None
    assert platform.first_take_at <= taken_at <= platform.events(job)[0].at


def test_jobs_run_side_by_side_where_the_worker_asks_for_a_batch(
    platform: Platform, worker: Worker
) -> None:
    jobs = [platform.submit({"hang": True}) for _ in range(2)]

    platform.wait_until(
        lambda: all(f"hanging {job}" in worker.log() for job in jobs), 10, "both jobs to run"
    )

    for job in jobs:
        platform.cancel(job)
    platform.wait_until(
        lambda: all(f"cancelled {job}" in worker.log() for job in jobs), 10, "both to end"
    )


def test_a_cancelled_job_is_cancelled_in_the_handler_and_posts_nothing(
    platform: Platform, worker: Worker
) -> None:
    cancelled = platform.submit({"hang": True})
    platform.wait_until(lambda: platform.taken_at(cancelled), 10, "the job to be taken")

    platform.cancel(cancelled)

    platform.wait_until(lambda: f"cancelled {cancelled}" in worker.log(), 10, "the cancel")
    platform.wait(platform.submit({}), timeout=10)
    assert platform.events(cancelled) == []


def test_a_job_cancelled_in_the_queue_is_never_taken() -> None:
    with Platform(hold=0.1) as platform:
        job = platform.submit({})
        platform.cancel(job)

        assert platform.take("w1", 1, lambda: False) == []
        assert platform.taken_at(job) is None


def test_progress_and_result_are_told_apart_and_ordered(platform: Platform, worker: Worker) -> None:
    job = platform.submit({"steps": 3, "sleep": 0.5})

    result = platform.wait(job, timeout=10)

    events = platform.events(job)
    assert [event.kind for event in events] == ["progress"] * 3 + ["final"]
    assert events == sorted(events, key=lambda event: (event.index, event.at))
    assert sorted(event.payload["step"] for event in platform.progress(job)) == [0, 1, 2]
    assert events[-1].payload is result


def test_what_lands_after_the_result_is_seen() -> None:
    """Posted by hand: the SDK does it too, but not every time."""
    with Platform() as platform:
        url = urlsplit(platform.env()["RUNPOD_WEBHOOK_POST_OUTPUT"].replace("$ID", "late"))
        posts = [
            ('{"output": {"status": "IN_PROGRESS"}}', 200),
            ('{"status": "IN_PROGRESS", "output": 1}', 200),
            ('{"output": NaN}', 400),
        ]
        for body, status in posts:
            with closing(HTTPConnection(url.netloc, timeout=5)) as connection:
                connection.request("POST", f"{url.path}?{url.query}", body)
                assert connection.getresponse().status == status

        assert [event.kind for event in platform.events("late")] == ["final", "progress"]


def test_sigterm_ends_the_worker_after_its_job_and_leaves_nothing_running(tmp_path: Path) -> None:
    with (
        Platform(hold=0.2) as platform,
        Worker(platform, tmp_path, command=stub(tmp_path, concurrency=1)) as worker,
    ):
        job = platform.submit({"sleep": 1})
        platform.wait_until(lambda: platform.taken_at(job), 10, "the job to be taken")
        family = [psutil.Process(worker.pid), *psutil.Process(worker.pid).children(recursive=True)]
        assert len(family) == 2, "the worker and the process that pings for it"
        time.sleep(0.3)

        status = worker.stop(timeout=10)

        assert status == 0, worker.log()
        assert len(platform.results(job)) == 1
        assert not worker.alive()
        assert not any(process.is_running() for process in family)
        with pytest.raises(AssertionError, match=r"No worker is left.*\n(.*\n)*.*Finished"):
            platform.wait(platform.submit({}), timeout=10)


def test_kill_takes_the_whole_family(tmp_path: Path) -> None:
    script = "import subprocess, time; subprocess.Popen(['sleep', '60']); time.sleep(60)"
    with Child(
        [sys.executable, "-c", script], tmp_path, name="family", ready=lambda: True
    ) as child:
        parent = psutil.Process(child.pid)
        while not (family := parent.children()):
            time.sleep(0.05)

        assert child.kill() == -signal.SIGKILL

        assert psutil.wait_procs(family, timeout=5)[1] == []


def test_a_dead_workers_open_poll_swallows_no_job() -> None:
    with Platform(hold=5) as platform:
        take = urlsplit(platform.env()["RUNPOD_WEBHOOK_GET_JOB"].replace("$ID", "dead"))
        with closing(HTTPConnection(take.netloc, timeout=5)) as connection:
            connection.request("GET", f"{take.path}?{take.query}")
            platform.wait_until(lambda: platform.seen("dead"), 5, "the poll")

        job = platform.submit({})
        time.sleep(0.2)

        assert platform.take("w2", 1, lambda: False) == [{"id": job, "input": {}}]


def test_a_worker_that_fails_to_start_shows_its_log(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no such model')"]
    with (
        Platform() as platform,
        pytest.raises(AssertionError, match="no such model"),
        Worker(platform, tmp_path, command=command),
    ):
        pass


def test_nothing_of_the_callers_environment_reaches_a_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUCKET_NAME", "the-developers-own")
    command = [sys.executable, "-c", "import os; print(*sorted(os.environ))"]
    with (
        Platform() as platform,
        pytest.raises(AssertionError, match="ended too early") as ended,
        Worker(platform, tmp_path, command=command, env={"MODELS_DIR": "tiny"}),
    ):
        pass

    assert "MODELS_DIR" in str(ended.value)
    assert "BUCKET_NAME" not in str(ended.value)


def test_the_local_server_answers(tmp_path: Path) -> None:
    with ApiServer(tmp_path, command=stub(tmp_path, concurrency=1)) as api:
        status, answer = api.post("/runsync", {"input": {"sleep": 0}})

        assert status == 200
        assert answer["output"]["job"]["input"] == {"sleep": 0}
        assert api.post("/run", {})[0] == 422


def test_s3_stores_what_the_right_keys_upload_and_presigned_urls_read_it(s3: S3Server) -> None:
    client = s3.client()
    client.put_object(Bucket=s3.bucket, Key="job/0.mp4", Body=b"film")

    url = urlsplit(
        client.generate_presigned_url(
            "get_object", Params={"Bucket": s3.bucket, "Key": "job/0.mp4"}, ExpiresIn=60
        )
    )

    assert (s3.root / s3.bucket / "job/0.mp4").read_bytes() == b"film"
    assert get(url.netloc, f"{url.path}?{url.query}") == (200, b"film")
    assert get(url.netloc, f"{url.path}?{url.query[:-1]}")[0] == 403
    assert get(url.netloc, url.path)[0] == 400, "no anonymous reading"


@pytest.mark.parametrize("wrong", [{"access_key": "other"}, {"secret_key": "other"}])
def test_s3_refuses_wrong_keys(s3: S3Server, wrong: dict[str, str]) -> None:
    with pytest.raises(ClientError) as refused:
        s3.client(**wrong).put_object(Bucket=s3.bucket, Key="refused.mp4", Body=b"film")

    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403
    assert not (s3.root / s3.bucket / "refused.mp4").exists()


def get(netloc: str, path: str) -> tuple[int, bytes]:
    """GET with no credentials: what an app does with an asset's URL."""
    with closing(HTTPConnection(netloc, timeout=5)) as connection:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
