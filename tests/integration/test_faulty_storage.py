"""A bucket on a bad day: resets, overload, uploads that break off, stores that refuse headers.

A real S3 server behind a proxy that breaks what it is told to. The SDK's pauses between its tries
are taken out; their number is not.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.builders.uploads import OUTPUT, PART_BYTES, artifact, unfinished, visible
from tests.conftest import QUICK, Answer, error_of
from tests.integration.faulty import Asked, Deaf, Fault, FaultyProxy, Refuse, Reset
from tests.integration.s3 import S3Server
from wan_worker import job as jobs
from wan_worker.delivery import s3 as buckets
from wan_worker.delivery import storage
from wan_worker.errors import Canceled, StorageFailed
from wan_worker.settings import Bucket, Secret
from wan_worker.timing.progress import Control

TRIES = 6
"""For each request: the first and five more."""

SLOW_DOWN = Refuse(503, "SlowDown")


pytestmark = pytest.mark.usefixtures("no_retry_pauses")


@pytest.fixture(scope="module")
def shared_proxy(s3: S3Server) -> Iterator[FaultyProxy]:
    with FaultyProxy(s3.endpoint_url) as proxy:
        yield proxy


@pytest.fixture
def proxy(shared_proxy: FaultyProxy) -> FaultyProxy:
    shared_proxy.behave()
    return shared_proxy


@pytest.fixture
def bucket(s3: S3Server, proxy: FaultyProxy) -> Bucket:
    return Bucket(proxy.url, Secret(s3.access_key), Secret(s3.secret_key), s3.bucket)


@pytest.fixture
def here(worker: jobs.Worker, bucket: Bucket) -> jobs.Worker:
    """A worker whose bucket is behind the proxy."""
    return replace(worker, settings=replace(worker.settings, bucket=bucket))


def serve(here: jobs.Worker, job_id: str) -> Answer:
    return jobs.run({"id": job_id, "input": QUICK}, here, Control())


def times(
    count: int, fault: Fault, which: Callable[[Asked], bool]
) -> Callable[[Asked], Fault | None]:
    """The fault, for the first so many requests of a kind."""
    left = count

    def decide(asked: Asked) -> Fault | None:
        nonlocal left
        if not which(asked) or left <= 0:
            return None
        left -= 1
        return fault

    return decide


def is_video(asked: Asked) -> bool:
    return asked.method == "PUT" and asked.path.endswith("/0.mp4")


def is_manifest(asked: Asked) -> bool:
    return asked.method == "PUT" and asked.path.endswith("/manifest.json")


def is_kept(here: jobs.Worker, job_id: str, answer: Answer) -> None:
    """The finished video and its manifest are in OUTPUT_DIR, and the error says so."""
    folder = here.settings.output_dir / job_id
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["status"] == "failed"
    digest = hashlib.sha256((folder / "0.mp4").read_bytes()).hexdigest()
    assert manifest["assets"][0]["sha256"] == digest
    assert "OUTPUT_DIR" in error_of(answer)["message"]


@pytest.mark.parametrize(
    ("fault", "which"),
    [
        (SLOW_DOWN, is_video),
        (Refuse(500, "InternalError"), is_video),
        (Reset(), is_video),
        (Reset(after=1000), is_video),
        (Deaf(), is_video),
        (SLOW_DOWN, is_manifest),
        (Reset(), is_manifest),
        (SLOW_DOWN, lambda asked: asked.method == "HEAD"),
    ],
    ids=[
        "overload", "failing", "reset before the bytes", "reset amid the bytes",
        "reset after the bytes", "overload at the manifest", "reset at the manifest",
        "overload at the check",
    ],
)  # fmt: skip
def test_a_bucket_that_recovers_within_the_tries_costs_nothing(
    here: jobs.Worker,
    proxy: FaultyProxy,
    s3: S3Server,
    fault: Fault,
    which: Callable[[Asked], bool],
    request: pytest.FixtureRequest,
) -> None:
    job_id = hashlib.sha256(request.node.name.encode()).hexdigest()[:12]
    proxy.fault = times(TRIES - 1, fault, which)
    answer = serve(here, job_id)
    assert answer.get("status") == "completed", answer
    assert len([asked for asked in proxy.seen if which(asked)]) == TRIES
    assert visible(s3, job_id) == ["0.mp4", "manifest.json"]
    stored = (s3.root / s3.bucket / job_id / "0.mp4").read_bytes()
    assert hashlib.sha256(stored).hexdigest() == answer["assets"][0]["sha256"]


@pytest.mark.parametrize(
    ("fault", "which"),
    [
        (SLOW_DOWN, is_video),
        (Reset(), is_video),
        (Reset(after=1000), is_video),
        (SLOW_DOWN, is_manifest),
        (Reset(), is_manifest),
    ],
    ids=[
        "overload", "reset before the bytes", "reset amid the bytes", "overload at the manifest",
        "reset at the manifest",
    ],
)  # fmt: skip
def test_a_bucket_that_does_not_recover_is_worth_another_try_and_the_file_is_kept(
    here: jobs.Worker,
    proxy: FaultyProxy,
    s3: S3Server,
    fault: Fault,
    which: Callable[[Asked], bool],
    request: pytest.FixtureRequest,
) -> None:
    job_id = hashlib.sha256(request.node.name.encode()).hexdigest()[:12]
    proxy.fault = lambda asked: fault if which(asked) else None
    answer = serve(here, job_id)
    error = error_of(answer)
    assert (error["code"], error["retryable"], error["stage"]) == ("STORAGE_FAILED", True, "upload")
    assert len([asked for asked in proxy.seen if which(asked)]) == TRIES
    is_kept(here, job_id, answer)
    # Whole or not at all, and no manifest that would say that all is there.
    assert visible(s3, job_id) == ([] if which is is_video else ["0.mp4"])
    proxy.behave()
    assert serve(here, job_id)["status"] == "completed"
    assert visible(s3, job_id) == ["0.mp4", "manifest.json"]


def test_a_bad_hour_does_not_use_up_the_tries_of_the_next(
    bucket: Bucket, proxy: FaultyProxy, s3: S3Server, tmp_path: Path
) -> None:
    made = artifact(tmp_path / "0.mp4", 5000)
    proxy.fault = lambda asked: Reset() if is_video(asked) else None
    for _ in range(30):
        with pytest.raises(StorageFailed):
            storage.put(made, 0, OUTPUT, "bad", buckets.S3(bucket, 60), Control())
    assert len(proxy.seen) == 30 * TRIES
    proxy.fault = times(TRIES - 1, Reset(), is_video)
    storage.put(made, 0, OUTPUT, "better", buckets.S3(bucket, 60), Control())
    assert visible(s3, "better") == ["0.mp4"]


def test_a_bucket_that_vanishes_before_the_manifest_is_permanent_and_the_file_is_kept(
    here: jobs.Worker, proxy: FaultyProxy
) -> None:
    gone = Refuse(404, "NoSuchBucket")
    proxy.fault = lambda asked: gone if is_manifest(asked) else None
    answer = serve(here, "vanished")
    error = error_of(answer)
    assert (error["code"], error["retryable"]) == ("STORAGE_FAILED", False)
    assert "NoSuchBucket" in error["message"]
    assert len([asked for asked in proxy.seen if is_manifest(asked)]) == 1
    is_kept(here, "vanished", answer)
    proxy.behave()
    assert serve(here, "after-vanished")["status"] == "completed"


def test_a_file_that_the_bucket_cut_short_is_not_reported_and_does_not_stay(
    here: jobs.Worker, proxy: FaultyProxy, s3: S3Server
) -> None:
    def cut(asked: Asked) -> None:
        if asked.method == "HEAD":
            s3.client().put_object(Bucket=s3.bucket, Key="cut/0.mp4", Body=b"a hundred bytes")

    proxy.fault = cut
    answer = serve(here, "cut")
    assert error_of(answer)["code"] == "STORAGE_FAILED"
    assert visible(s3, "cut") == []
    is_kept(here, "cut", answer)


def wants_checksums(asked: Asked) -> bool:
    return (
        any(
            name.startswith(("x-amz-checksum", "x-amz-sdk-checksum", "x-amz-trailer"))
            for name in asked.headers
        )
        or "aws-chunked" in asked.headers.get("content-encoding", "")
        or asked.headers.get("x-amz-content-sha256", "").startswith("STREAMING-")
    )


def test_a_store_that_refuses_checksum_headers_takes_files_whole_and_in_parts(
    here: jobs.Worker,
    bucket: Bucket,
    proxy: FaultyProxy,
    s3: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refused = Refuse(400, "InvalidArgument")
    proxy.fault = lambda asked: refused if wants_checksums(asked) else None
    assert serve(here, "unchecked")["status"] == "completed"
    monkeypatch.setattr(buckets, "PART_BYTES", PART_BYTES)
    large = artifact(tmp_path / "large.mp4", PART_BYTES * 2 + 5)
    storage.put(large, 0, OUTPUT, "unchecked-parts", buckets.S3(bucket, 60), Control())
    assert any(asked.is_part for asked in proxy.seen)
    head = s3.client().head_object(Bucket=s3.bucket, Key="unchecked-parts/0.mp4")
    assert head["ContentLength"] == large.bytes


def test_the_store_that_refuses_checksums_would_refuse_the_sdks_own_way(
    proxy: FaultyProxy, s3: S3Server
) -> None:
    # Else the test before this one would prove nothing.
    import boto3
    from botocore.config import Config
    from botocore.exceptions import ClientError

    proxy.fault = lambda asked: Refuse(400, "InvalidArgument") if wants_checksums(asked) else None
    client = boto3.client(
        "s3",
        endpoint_url=proxy.url,
        aws_access_key_id=s3.access_key,
        aws_secret_access_key=s3.secret_key,
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}, proxies={}),
    )
    with pytest.raises(ClientError, match="InvalidArgument"):
        client.put_object(Bucket=s3.bucket, Key="checked", Body=b"x")
    client.close()


# --- Uploads in parts ---


@pytest.mark.parametrize(
    ("fault", "retryable"),
    [
        (SLOW_DOWN, True),
        (Reset(after=1000), True),
        (Refuse(403, "AccessDenied"), False),
    ],
    ids=["overload", "reset", "refusal"],
)
def test_the_parts_of_an_upload_that_breaks_off_are_removed(
    bucket: Bucket,
    proxy: FaultyProxy,
    s3: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    retryable: bool,
) -> None:
    monkeypatch.setattr(buckets, "PART_BYTES", PART_BYTES)
    proxy.fault = lambda asked: fault if asked.query.get("partNumber") == ["2"] else None
    large = artifact(tmp_path / "large.mp4", PART_BYTES * 3)
    with pytest.raises(StorageFailed) as caught:
        storage.put(large, 0, OUTPUT, "broken", buckets.S3(bucket, 60), Control())
    assert caught.value.retryable is retryable
    assert len([asked for asked in proxy.seen if asked.is_part]) >= 2
    assert [asked for asked in proxy.seen if asked.is_abort] != []
    assert unfinished(s3) == []
    assert visible(s3, "broken") == []


def test_a_part_that_is_reset_is_sent_again(
    bucket: Bucket,
    proxy: FaultyProxy,
    s3: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(buckets, "PART_BYTES", PART_BYTES)
    second = Reset(after=PART_BYTES // 2)
    proxy.fault = times(2, second, lambda asked: asked.query.get("partNumber") == ["2"])
    large = artifact(tmp_path / "large.mp4", PART_BYTES * 2 + 5)
    large.path.write_bytes(bytes(range(256)) * (large.bytes // 256) + b"12345")
    storage.put(large, 0, OUTPUT, "mended", buckets.S3(bucket, 60), Control())
    stored = (s3.root / s3.bucket / "mended" / "0.mp4").read_bytes()
    assert stored == large.path.read_bytes()
    assert unfinished(s3) == []


# --- A job that should stop ---


class Stops(Control):
    """A job that is cancelled, or late, from the time at which a request has come."""

    def __init__(self, proxy: FaultyProxy, which: Callable[[Asked], bool], end: str) -> None:
        self._late = 0.0
        super().__init__(100, clock=lambda: self._late)
        self._began = lambda: any(which(asked) for asked in proxy.seen)
        self._end = end

    def check(self) -> None:
        if self._end and self._began():
            if self._end == "cancel":
                self.cancel()
            else:
                self._late = 101.0
                self._end = ""
        super().check()


@pytest.mark.parametrize(
    "which",
    [is_video, lambda asked: asked.method == "HEAD"],
    ids=["amid the bytes", "after the bytes"],
)
def test_a_job_cancelled_amid_its_upload_leaves_nothing_and_stops_trying(
    here: jobs.Worker, proxy: FaultyProxy, s3: S3Server, which: Callable[[Asked], bool]
) -> None:
    proxy.fault = lambda asked: SLOW_DOWN if is_video(asked) and which is is_video else None
    answer = jobs.run({"id": "stopped", "input": QUICK}, here, Stops(proxy, which, "cancel"))
    error = error_of(answer)
    assert (error["code"], error["stage"]) == ("CANCELED", "upload")
    assert len([asked for asked in proxy.seen if is_video(asked)]) == 1
    assert visible(s3, "stopped") == []
    assert not (here.settings.output_dir / "stopped").exists()


def test_a_job_that_is_late_amid_its_upload_says_so_and_saves_what_it_made(
    here: jobs.Worker, proxy: FaultyProxy, s3: S3Server
) -> None:
    proxy.fault = times(1, SLOW_DOWN, is_video)
    answer = jobs.run({"id": "late", "input": QUICK}, here, Stops(proxy, is_video, "deadline"))
    error = error_of(answer)
    assert (error["code"], error["stage"]) == ("DEADLINE", "upload")
    assert "late/manifest.json" in error["message"]
    assert visible(s3, "late") == ["0.mp4", "manifest.json"]


def test_a_cancel_amid_an_upload_in_parts_removes_the_parts(
    bucket: Bucket,
    proxy: FaultyProxy,
    s3: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(buckets, "PART_BYTES", PART_BYTES)
    large = artifact(tmp_path / "large.mp4", PART_BYTES * 12)
    control = Stops(proxy, lambda asked: asked.is_part, "cancel")
    with pytest.raises(Canceled):
        storage.put(large, 0, OUTPUT, "stopped-parts", buckets.S3(bucket, 60), control)
    assert len([asked for asked in proxy.seen if asked.is_part]) < 12
    assert [asked for asked in proxy.seen if asked.is_abort] != []
    assert unfinished(s3) == []
    assert visible(s3, "stopped-parts") == []


def test_a_store_that_fails_to_remove_a_cancelled_file_does_not_change_the_outcome(
    here: jobs.Worker, proxy: FaultyProxy
) -> None:
    proxy.fault = lambda asked: Refuse(500, "InternalError") if asked.method == "DELETE" else None
    control = Stops(proxy, lambda asked: asked.method == "HEAD", "cancel")
    answer = jobs.run({"id": "stays", "input": QUICK}, here, control)
    assert error_of(answer)["code"] == "CANCELED"
    assert not (here.settings.output_dir / "stays").exists()
