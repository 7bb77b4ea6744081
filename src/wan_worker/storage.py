"""Artifacts -> an S3 bucket, a local folder, or the response itself.

Three destinations, chosen before anything is generated: the job's own ``s3Config`` or the
operator's bucket; a folder on a laptop; the response where base64 was asked for or where RunPod
has been given no bucket. Objects are ``{prefix}/{job_id}/{index}.{ext}``; the job's
``manifest.json`` is written last, so its presence means that all else is there.

Promises: an upload is never reported that did not happen (a HEAD compares the size); the same job
again writes the same key; a presigned URL is never logged; credentials are revealed to boto3 only.
Not covered: deleting old assets, and the unseen parts of an upload whose worker was killed (a
bucket's lifecycle rules do both better).
"""

import base64
import hashlib
import json
import logging
import re
import shutil
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Final

from wan_worker import caller_store, net
from wan_worker.artifact import Artifact
from wan_worker.errors import (
    DiskFull,
    OutputTooLarge,
    StorageFailed,
    WorkerError,
)
from wan_worker.faults import is_disk_full
from wan_worker.outputs import Output
from wan_worker.progress import Control
from wan_worker.settings import Bucket

log = logging.getLogger(__name__)

INLINE_BYTES: Final = 7 * 1000**2
"""Largest file in a response: base64 makes it 9.3 MB, and RunPod refuses results over 10 MB."""

_SMALLER: Final = {
    "gif": "; mp4 or webm are far smaller",
    "png": "; jpeg or webp are far smaller",
}

PART_BYTES: Final = 16 * 1024**2
"""Multipart threshold and part size."""

MANIFEST: Final = "manifest.json"

ENDPOINT: Final = "/s3Config/endpointUrl"
CALLER_SECONDS: Final = 600.0
"""For one file to a store that the caller named."""

_PERMANENT: Final = frozenset({
    "400", "401", "403", "404", "AccessDenied", "AllAccessDisabled", "AuthorizationHeaderMalformed",
    "InvalidAccessKeyId", "InvalidBucketName", "NoSuchBucket", "PermanentRedirect",
    "SignatureDoesNotMatch",
})  # fmt: skip


@dataclass(frozen=True)
class S3:
    """A bucket. ``public_url`` replaces presigned URLs where objects are public."""

    bucket: Bucket
    url_expiry_seconds: int
    policy: net.Policy | None = None
    """Where this worker may connect, for a store that the caller named; None for the operator's."""


@dataclass(frozen=True)
class Folder:
    """A folder of this machine: assets become file URLs."""

    root: Path


@dataclass(frozen=True)
class Inline:
    """The response itself."""

    asked: bool
    """False: nobody asked, but there is no bucket."""


Destination = S3 | Folder | Inline


@dataclass(frozen=True)
class StoredAsset:
    """An artifact and where it went: ``url`` and ``key``, or ``data`` (base64)."""

    artifact: Artifact
    output: Output
    url: str | None = None
    key: str | None = None
    data: str | None = None

    def public(self) -> dict[str, Any]:
        """The asset as the response states it."""
        place = {"data": self.data} if self.data else {"url": self.url, "key": self.key}
        return place | self.facts()

    def facts(self) -> dict[str, Any]:
        """What is true of the file wherever it is."""
        return {
            "content_type": self.artifact.content_type,
            "bytes": self.artifact.bytes,
            "sha256": self.artifact.sha256,
            "width": self.artifact.width,
            "height": self.artifact.height,
            "num_frames": self.artifact.num_frames,
            "fps": self.artifact.fps,
            "duration": self.artifact.duration,
            "seed": self.output.seed,
            "prompt": self.output.prompt,
        }


def choose(
    *,
    job_bucket: Bucket | None,
    bucket: Bucket | None,
    url_expiry_seconds: int,
    output_dir: Path,
    response_format: str,
    on_platform: bool,
    policy: net.Policy,
) -> Destination:
    """Where this job's assets go."""
    if response_format == "base64":
        return Inline(asked=True)
    if job_bucket is not None:
        return S3(job_bucket, url_expiry_seconds, policy)
    if bucket is not None:
        return S3(bucket, url_expiry_seconds)
    return Inline(asked=False) if on_platform else Folder(output_dir)


def check_fits(artifacts: Sequence[Artifact], to: Destination) -> None:
    """See that all of a job's files together fit into a response, if that is where they go.

    Raises:
        OutputTooLarge: they do not.
    """
    size = sum(artifact.bytes for artifact in artifacts)
    if not isinstance(to, Inline) or size <= INLINE_BYTES:
        return
    way_out = (
        "leave response_format out to get a URL"
        if to.asked
        else "set BUCKET_ENDPOINT_URL, BUCKET_ACCESS_KEY_ID, BUCKET_SECRET_ACCESS_KEY and "
        "BUCKET_NAME on the endpoint, or send s3Config with the job"
    )
    what = "The file has" if len(artifacts) == 1 else f"The {len(artifacts)} files have"
    raise OutputTooLarge(
        f"{what} {size / 1e6:.1f} MB; a response holds {INLINE_BYTES / 1e6:.0f} MB. "
        f"To get {'it' if len(artifacts) == 1 else 'them'}, {way_out}"
        f"{_SMALLER.get(artifacts[0].extension, '')}"
    )


def put(
    artifact: Artifact, index: int, output: Output, job_id: str, to: Destination, control: Control
) -> StoredAsset:
    """Deliver one artifact, whose size ``check_fits`` has passed.

    Raises:
        StorageFailed: the bucket refused it, or could not be reached after the SDK's retries.
        Canceled, DeadlineExceeded: the job should stop; what was sent of this file is taken back.
    """
    control.check()
    key = f"{job_folder(job_id)}/{index}.{artifact.extension}"
    if isinstance(to, Inline):
        data = base64.b64encode(artifact.path.read_bytes()).decode("ascii")
        return StoredAsset(artifact, output, data=data)
    if isinstance(to, Folder):
        target = to.root.resolve() / key
        _write_local(target, artifact.path)
        return StoredAsset(artifact, output, url=target.as_uri(), key=key)
    return _put_s3(artifact, output, key, to, control)


def put_manifest(manifest: Mapping[str, Any], job_id: str, to: Destination) -> None:
    """Write the job's durable record, after everything that it names. No URLs: they expire."""
    body = json.dumps(manifest, ensure_ascii=False, indent=2, allow_nan=False).encode()
    key = f"{job_folder(job_id)}/{MANIFEST}"
    if isinstance(to, Folder):
        _write_local(to.root.resolve() / key, body)
    elif isinstance(to, S3):
        with _storage_errors():
            _client(to).put_object(
                Bucket=to.bucket.name,
                Key=_full_key(to.bucket, key),
                Body=body,
                ContentType="application/json",
            )


def remove(asset: StoredAsset, to: Destination) -> None:
    """Take back a file that was delivered, for a job that was cancelled."""
    if isinstance(to, Folder) and asset.key is not None:
        (to.root.resolve() / asset.key).unlink(missing_ok=True)
    elif isinstance(to, S3) and asset.key is not None:
        _take_back(_client(to), to.bucket.name, asset.key)


def probe(bucket: Bucket) -> float:
    """Write a small object and remove it.

    Returns:
        Seconds by which the store's clock is ahead of ours.

    Raises:
        StorageFailed: it can't be written; not retryable where another try would end the same.
    """
    from botocore.exceptions import ClientError

    key = _full_key(bucket, f"worker-check-{uuid.uuid4().hex}")
    with _storage_errors():
        client = _client(S3(bucket, url_expiry_seconds=0))
        answer = client.put_object(Bucket=bucket.name, Key=key, Body=b"a worker looked\n")
        ours = time.time()
        with suppress(ClientError):  # keys that may only write are enough for jobs
            client.delete_object(Bucket=bucket.name, Key=key)
    dated = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    return parsedate_to_datetime(dated).timestamp() - ours if dated else 0.0


def job_folder(job_id: str) -> str:
    """The job's id as one path segment; ids that could be anything else are hashed."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}", job_id, re.ASCII):
        return job_id
    return hashlib.sha256(job_id.encode("utf-8", "backslashreplace")).hexdigest()[:32]


def _write_local(target: Path, body: bytes | Path) -> None:
    """Bytes, or a copy of a file, that appear under their name whole or not at all."""
    partial = target.with_name(target.name + ".partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(body, Path):
            shutil.copyfile(body, partial)
        else:
            partial.write_bytes(body)
        partial.replace(target)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        if is_disk_full(error):
            raise DiskFull("OUTPUT_DIR is full or read-only") from error
        raise StorageFailed(
            f"OUTPUT_DIR can't be written ({type(error).__name__})", retryable=False
        ) from error


def _put_s3(artifact: Artifact, output: Output, key: str, to: S3, control: Control) -> StoredAsset:
    full_key = _full_key(to.bucket, key)
    with _storage_errors():
        client = _client(to)
        try:
            _upload(client, artifact, to.bucket.name, full_key, control)
            stored = client.head_object(Bucket=to.bucket.name, Key=full_key)["ContentLength"]
            if stored != artifact.bytes:
                raise StorageFailed(f"The bucket holds {stored} of {artifact.bytes} bytes")
            control.check()
        except WorkerError:
            # Half a file, or one that nobody waits for.
            _take_back(client, to.bucket.name, full_key)
            raise
        if to.bucket.public_url is not None:
            url = f"{to.bucket.public_url}/{full_key}"
        else:
            url = client.generate_presigned_url(
                "get_object",
                Params={"Bucket": to.bucket.name, "Key": full_key},
                ExpiresIn=to.url_expiry_seconds,
            )
    return StoredAsset(artifact, output, url=url, key=full_key)


def _upload(client: Any, artifact: Artifact, bucket: str, key: str, control: Control) -> None:
    """Send a file, in parts if it is large; a job that should stop does so amid the bytes.

    boto3 aborts an upload in parts that fails, whatever it fails of.
    """
    from boto3.s3.transfer import TransferConfig

    with artifact.path.open("rb") as body:
        try:
            client.upload_fileobj(
                _Watched(body, control),
                bucket,
                key,
                ExtraArgs={
                    "ContentType": artifact.content_type,
                    "Metadata": {"sha256": artifact.sha256},
                },
                Callback=lambda _: control.check(),  # of parts, which are read ahead
                Config=TransferConfig(
                    multipart_threshold=PART_BYTES,
                    multipart_chunksize=PART_BYTES,
                    use_threads=artifact.bytes >= PART_BYTES,  # one part gains nothing from them
                ),
            )
        except Exception:
            control.check()  # raised amid the bytes, the SDK wraps it in an error of its own
            raise


class _Watched:
    """A file that can't be read on when the job should stop."""

    def __init__(self, file: BinaryIO, control: Control) -> None:
        self._file = file
        self._control = control

    def read(self, size: int = -1) -> bytes:
        self._control.check()
        return self._file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _take_back(client: Any, bucket: str, key: str) -> None:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        client.delete_object(Bucket=bucket, Key=key)
    except (BotoCoreError, ClientError, OSError) as problem:
        log.warning("%s could not be removed: %s", key, type(problem).__name__)


def _full_key(bucket: Bucket, key: str) -> str:
    return f"{bucket.prefix}/{key}" if bucket.prefix else key


def _client(to: S3) -> Any:
    """The operator's is kept from job to job: making one takes as long as a small upload."""
    if to.policy is None:
        return _operators(to.bucket)
    client = _made(to.bucket)
    caller_store.guard(client, to.policy, field=ENDPOINT, seconds=CALLER_SECONDS)
    return client


@lru_cache(maxsize=1)
def _operators(bucket: Bucket) -> Any:
    return _made(bucket)


@lru_cache(maxsize=1)
def _session() -> Any:
    """What clients are made from: S3's description, which takes 0.1 s to parse. No credentials."""
    import boto3

    return boto3.session.Session()


_making: Final = threading.Lock()
"""Sessions, unlike clients, are for one thread at a time."""


def _made(bucket: Bucket) -> Any:
    from botocore.config import Config

    host = re.sub(r"^https?://", "", bucket.endpoint_url)
    with _making:
        return _session().client(
            "s3",
            endpoint_url=bucket.endpoint_url,
            aws_access_key_id=bucket.access_key_id.reveal(),
            aws_secret_access_key=bucket.secret_access_key.reveal(),
            region_name=bucket.region,
            config=Config(
                signature_version="s3v4",
                # AWS names buckets in the host; most others want them in the path.
                s3={"addressing_style": "virtual" if ".amazonaws.com" in host else "path"},
                # Not "standard": its clients have a budget of retries, which one bad hour uses up,
                # and this client is kept. A finished video is worth every try.
                retries={"mode": "legacy", "max_attempts": 5},
                connect_timeout=10,
                read_timeout=60,
                # R2, GCS and older stores refuse the checksum headers that boto3 adds by default.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )


@contextmanager
def _storage_errors() -> Iterator[None]:
    """Turn what boto3 raises into StorageFailed, with the store's code and no key or URL."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", "unknown"))
        permanent = code in _PERMANENT
        advice = "check the bucket's name, keys and policy" if permanent else "try again"
        raise StorageFailed(
            f"The bucket answered {code[:60]}; {advice}", retryable=not permanent
        ) from error
    except (BotoCoreError, OSError, ValueError) as error:
        raise StorageFailed(
            f"The bucket could not be reached ({type(error).__name__}); try again"
        ) from error
