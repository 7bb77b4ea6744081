"""Stopped anywhere: cancels, SIGTERM and SIGKILL in every stage, and two jobs at once.

Through RunPod's production loop, with a real S3 server behind a proxy that can hold a request, so
that a job is in the stage that the test wants it in.
"""

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.builders.answers import output_of
from tests.builders.files import download
from tests.builders.pictures import picture
from tests.builders.requests import MANY_STEPS, SLOW
from tests.builders.uploads import PART_BYTES, unfinished, visible
from tests.conftest import QUICK
from tests.integration.conftest import Production
from tests.integration.faulty import Asked, FaultyProxy
from tests.integration.platform import Platform
from tests.integration.s3 import S3Server
from tests.integration.worker import REPOSITORY, Worker

DECODES = SLOW | {"num_frames": 17, "num_inference_steps": 1}
"""Takes seconds to decode and encode."""


@pytest.fixture(scope="module")
def proxy(s3: S3Server) -> Iterator[FaultyProxy]:
    with FaultyProxy(s3.endpoint_url) as proxy:
        yield proxy


def environment(models_dir: Path, s3: S3Server, proxy: FaultyProxy) -> dict[str, str]:
    return s3.env() | {
        "BUCKET_ENDPOINT_URL": proxy.url,
        "MODELS_DIR": str(models_dir),
        "RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS": "true",
    }


@pytest.fixture(scope="module")
def shared(
    models_dir: Path, s3: S3Server, proxy: FaultyProxy, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Production]:
    """A worker that takes two jobs at a time, its bucket behind the proxy."""
    env = environment(models_dir, s3, proxy) | {"WORKER_CONCURRENCY": "2"}
    with (
        Platform() as platform,
        Worker(platform, tmp_path_factory.mktemp("worker"), env=env) as worker,
    ):
        yield Production(platform, worker, s3)


@pytest.fixture
def two(shared: Production, proxy: FaultyProxy) -> Iterator[Production]:
    proxy.behave()
    yield shared
    proxy.behave()


def reach(platform: Platform, job_id: str, stage: str) -> None:
    """Wait until the platform has heard that the job is in a stage."""
    platform.wait_until(
        lambda: any(event.payload["stage"] == stage for event in platform.progress(job_id)),
        120, f"{stage} of {job_id}",
    )  # fmt: skip


def held(platform: Platform, proxy: FaultyProxy, what: str) -> None:
    """Wait until the proxy holds the request that it was told to hold."""
    platform.wait_until(proxy.holding.is_set, 120, what)


def is_over(production: Production, job_id: str, stage: str) -> None:
    """Wait until the cancelled job has ended; see that it has left nothing anywhere."""
    said = f"job {job_id}: CANCELED in stage {stage}"
    production.platform.wait_until(lambda: said in production.worker.log(), 120, said)
    assert production.platform.results(job_id) == []
    assert visible(production.s3, job_id) == []
    assert unfinished(production.s3) == []


def upload_of(job_id: str) -> Any:
    return lambda asked: asked.method == "PUT" and asked.path.endswith(f"/{job_id}/0.mp4")


def is_picture(asked: Asked) -> bool:
    return asked.path.endswith("/pictures/a.png")


# --- Cancels ---


def test_a_job_cancelled_behind_another_leaves_that_one_alone(two: Production) -> None:
    first = two.platform.submit(MANY_STEPS)
    reach(two.platform, first, "denoise")
    second = two.platform.submit(QUICK)
    reach(two.platform, second, "queue")
    two.platform.cancel(second)
    is_over(two, second, "queue")
    assert output_of(two.platform.wait(first))["status"] == "completed"


def test_a_job_cancelled_while_it_fetches_leaves_nothing(
    two: Production, proxy: FaultyProxy
) -> None:
    proxy.hold(is_picture)
    job_id = two.platform.submit(QUICK | {"image_url": f"{proxy.url}/pictures/a.png"})
    held(two.platform, proxy, "the picture")
    two.platform.cancel(job_id)
    is_over(two, job_id, "fetch")
    proxy.release()
    output_of(two.run(QUICK))


@pytest.mark.parametrize(
    ("stage", "request_", "cancels"),
    [("denoise", SLOW, 2), ("decode_encode", DECODES, 1)],
    ids=["denoising, twice", "decoding"],
)
def test_a_job_cancelled_while_it_computes_leaves_nothing(
    two: Production, stage: str, request_: dict[str, Any], cancels: int
) -> None:
    job_id = two.platform.submit(request_)
    reach(two.platform, job_id, stage)
    for _ in range(cancels):
        two.platform.cancel(job_id)
    is_over(two, job_id, stage)
    output_of(two.run(QUICK))
    assert list(two.worker.tmp.glob("wan-job-*")) == []


def test_a_job_cancelled_while_it_uploads_leaves_nothing_and_holds_nobody_up(
    two: Production, proxy: FaultyProxy
) -> None:
    proxy.hold(upload_of("uploads"), after=100)
    two.platform.submit(QUICK, job_id="uploads")
    held(two.platform, proxy, "the upload")
    two.platform.cancel("uploads")
    # While the store still has it.
    assert output_of(two.run(QUICK))["status"] == "completed"
    proxy.release()
    is_over(two, "uploads", "upload")
    output_of(two.run(QUICK))
    assert list(two.worker.tmp.glob("wan-job-*")) == []


# --- Two at once ---


def test_two_jobs_at_once_have_the_bytes_that_they_have_alone(
    two: Production, proxy: FaultyProxy
) -> None:
    requests = {
        "long": QUICK | {"size": "128x96", "num_frames": 9, "num_inference_steps": 10},
        "short": QUICK | {"image_url": picture(), "seed": 9},
    }
    alone = {
        name: output_of(two.run(request))["assets"][0]["sha256"]
        for name, request in requests.items()
    }
    for first, second in (("long", "short"), ("short", "long")):
        # The first can't end before the second has begun.
        proxy.hold(upload_of(f"first-{first}"))
        two.platform.submit(requests[first], job_id=f"first-{first}")
        other = two.platform.submit(requests[second])
        held(two.platform, proxy, "the upload")
        assert output_of(two.platform.wait(other))["assets"][0]["sha256"] == alone[second]
        proxy.release()
        asset = output_of(two.platform.wait(f"first-{first}"))["assets"][0]
        assert asset["sha256"] == alone[first]
        assert hashlib.sha256(download(asset["url"])).hexdigest() == alone[first]
    assert list(two.worker.tmp.glob("wan-job-*")) == []


# --- Signals ---


def test_sigterm_lets_an_upload_finish(
    models_dir: Path, s3: S3Server, proxy: FaultyProxy, tmp_path: Path
) -> None:
    env = environment(models_dir, s3, proxy)
    with Platform() as platform, Worker(platform, tmp_path, env=env) as worker:
        proxy.hold(upload_of("ends"), after=100)
        platform.submit(QUICK, job_id="ends")
        held(platform, proxy, "the upload")
        worker.terminate()
        proxy.release()
        asset = output_of(platform.wait("ends"))["assets"][0]
        assert hashlib.sha256(download(asset["url"])).hexdigest() == asset["sha256"]
        assert visible(s3, "ends") == ["0.mp4", "manifest.json"]
        assert worker.stop() == 0
        assert list(worker.tmp.glob("wan-job-*")) == []


def test_a_worker_killed_in_an_upload_leaves_nothing_to_see_and_its_successor_sweeps(
    models_dir: Path, s3: S3Server, proxy: FaultyProxy, tmp_path: Path
) -> None:
    env = environment(models_dir, s3, proxy)
    with Platform() as platform:
        with Worker(platform, tmp_path, env=env) as worker:
            proxy.hold(upload_of("killed"), after=100)
            platform.submit(QUICK, job_id="killed")
            held(platform, proxy, "the upload")
            worker.kill()
            proxy.drop()
            assert len(list(worker.tmp.glob("wan-job-*"))) == 1
        assert visible(s3, "killed") == []
        assert platform.results("killed") == []
        proxy.behave()
        with Worker(platform, tmp_path, env=env) as worker:
            assert list(worker.tmp.glob("wan-job-*")) == []
            # The platform hands the job out again: the same key, whole this time.
            platform.submit(QUICK, job_id="killed")
            output_of(platform.wait("killed"))
            assert visible(s3, "killed") == ["0.mp4", "manifest.json"]


UPLOAD_IN_PARTS = """
import sys
from pathlib import Path
from tests.builders.uploads import OUTPUT, PART_BYTES, artifact
from wan_worker.delivery import s3 as buckets
from wan_worker.delivery import storage
from wan_worker.timing.progress import Control
from wan_worker.settings import Bucket, Secret
url, key, secret, name, folder = sys.argv[1:]
buckets.PART_BYTES = PART_BYTES
bucket = Bucket(url, Secret(key), Secret(secret), name)
large = artifact(Path(folder) / "large.mp4", PART_BYTES * 3)
storage.put(large, 0, OUTPUT, "killed-parts", buckets.S3(bucket, 60), Control())
"""


def test_a_worker_killed_in_an_upload_in_parts_leaves_nothing_to_see(
    s3: S3Server, proxy: FaultyProxy, tmp_path: Path
) -> None:
    proxy.behave()
    proxy.hold(lambda asked: asked.query.get("partNumber") == ["3"], after=PART_BYTES // 2)
    path = f"{REPOSITORY / 'src'}{os.pathsep}{REPOSITORY}"
    arguments = (proxy.url, s3.access_key, s3.secret_key, s3.bucket, str(tmp_path))
    child = subprocess.Popen(
        [sys.executable, "-c", UPLOAD_IN_PARTS, *arguments],
        env={"PYTHONPATH": path, "PATH": os.environ["PATH"]},
    )
    try:
        assert proxy.holding.wait(60)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    proxy.drop()
    assert len([asked for asked in proxy.seen if asked.is_part]) == 3
    assert visible(s3, "killed-parts") == []
