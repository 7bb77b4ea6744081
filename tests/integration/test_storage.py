"""Delivery to a real S3 server, without the rest of a job."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.builders.uploads import OUTPUT, artifact
from tests.integration.s3 import S3Server
from wan_worker.delivery import s3 as buckets
from wan_worker.delivery import storage
from wan_worker.errors import Canceled, StorageFailed
from wan_worker.inputs.dialing import Policy
from wan_worker.settings import Bucket, Secret
from wan_worker.timing.progress import Control

pytestmark = pytest.mark.usefixtures("no_retry_pauses")


@pytest.fixture
def bucket(s3: S3Server) -> Bucket:
    return Bucket(s3.endpoint_url, Secret(s3.access_key), Secret(s3.secret_key), s3.bucket)


def names(s3: S3Server, job_id: str) -> list[str]:
    listed = s3.client().list_objects_v2(Bucket=s3.bucket, Prefix=f"{job_id}/")
    return [item["Key"] for item in listed.get("Contents", [])]


class CanceledAfter(Control):
    """Cancelled at the given check."""

    def __init__(self, checks: int) -> None:
        super().__init__()
        self._left = checks

    def check(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise Canceled("cancelled")


def test_large_files_go_in_parts(s3: S3Server, bucket: Bucket, tmp_path: Path) -> None:
    made = artifact(tmp_path / "0.mp4", buckets.PART_BYTES * 2 + 5)
    stored = storage.put(made, 0, OUTPUT, "large", buckets.S3(bucket, 60), Control())
    head = s3.client().head_object(Bucket=s3.bucket, Key="large/0.mp4")
    assert head["ContentLength"] == made.bytes
    assert stored.key == "large/0.mp4"


@pytest.mark.parametrize("checks", [0, 1], ids=["before the upload", "during the upload"])
def test_a_job_cancelled_at_the_upload_leaves_nothing(
    s3: S3Server, bucket: Bucket, tmp_path: Path, checks: int
) -> None:
    made = artifact(tmp_path / "0.mp4", 5000)
    with pytest.raises(Canceled):
        storage.put(made, 0, OUTPUT, f"gone{checks}", buckets.S3(bucket, 60), CanceledAfter(checks))
    assert names(s3, f"gone{checks}") == []


def test_the_same_job_again_writes_the_same_key(
    s3: S3Server, bucket: Bucket, tmp_path: Path
) -> None:
    made = artifact(tmp_path / "0.mp4", 5000)
    for _ in range(2):
        storage.put(made, 0, OUTPUT, "again", buckets.S3(bucket, 60), Control())
    assert names(s3, "again") == ["again/0.mp4"]


def test_the_operators_client_is_kept_from_job_to_job_and_a_callers_is_not(bucket: Bucket) -> None:
    assert buckets.client(buckets.S3(bucket, 60)) is buckets.client(buckets.S3(bucket, 60))
    other = replace(bucket, secret_access_key=Secret("another"))
    assert buckets.client(buckets.S3(other, 60)) is not buckets.client(buckets.S3(bucket, 60))
    callers = buckets.S3(bucket, 60, Policy())
    assert buckets.client(callers) is not buckets.client(callers)
    assert buckets.client(callers) is not buckets.client(buckets.S3(bucket, 60))


def test_a_public_bucket_gives_plain_urls(s3: S3Server, bucket: Bucket, tmp_path: Path) -> None:
    public = replace(bucket, prefix="clips", public_url="https://cdn.example.com/wan")
    made = artifact(tmp_path / "0.mp4", 5000)
    stored = storage.put(made, 0, OUTPUT, "public", buckets.S3(public, 60), Control())
    assert stored.url == "https://cdn.example.com/wan/clips/public/0.mp4"


@pytest.mark.parametrize(
    ("change", "retryable"),
    [
        (lambda b: {"name": "no-such-bucket"}, False),
        (lambda b: {"access_key_id": Secret("nobody")}, False),
        (lambda b: {"secret_access_key": Secret("wrong")}, False),
        (lambda b: {"endpoint_url": "http://127.0.0.1:9"}, True),
    ],
    ids=["no bucket", "unknown key", "wrong secret", "nobody there"],
)
def test_a_refusal_is_permanent_and_an_outage_is_not(
    bucket: Bucket, tmp_path: Path, change: Callable[[Bucket], dict[str, object]], retryable: bool
) -> None:
    wrong = replace(bucket, **change(bucket))  # type: ignore[arg-type]
    with pytest.raises(StorageFailed) as caught:
        made = artifact(tmp_path / "0.mp4", 5000)
        storage.put(made, 0, OUTPUT, "x", buckets.S3(wrong, 60), Control())
    assert caught.value.retryable is retryable
    assert "x/0.mp4" not in caught.value.message


def test_the_probe_writes_and_removes_and_tells_the_time(s3: S3Server, bucket: Bucket) -> None:
    before = s3.client().list_objects_v2(Bucket=s3.bucket).get("KeyCount")
    assert abs(buckets.probe(bucket)) < 60
    assert s3.client().list_objects_v2(Bucket=s3.bucket).get("KeyCount") == before


@pytest.mark.parametrize(
    ("change", "retryable"),
    [
        ({"secret_access_key": Secret("CANARY")}, False),
        ({"endpoint_url": "http://127.0.0.1:9"}, True),
    ],
    ids=["wrong keys", "out of reach"],
)
def test_the_probe_says_what_is_wrong_without_the_keys(
    bucket: Bucket, change: dict[str, Any], retryable: bool
) -> None:
    with pytest.raises(StorageFailed) as caught:
        buckets.probe(replace(bucket, **change))
    assert caught.value.retryable is retryable
    assert "CANARY" not in caught.value.message
