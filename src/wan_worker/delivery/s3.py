"""Put files into a bucket and remove them, with boto3: S3 and all stores that speak its protocol.

The operator's client is kept. A client for a store that a caller named is made for the job, and
connects through the address guard (caller_store).
Promises: an upload that failed is never reported (a HEAD compares the size); a presigned URL is
never logged; credentials are revealed to boto3 only.
Not covered: choosing the keys (storage), and the hidden parts of an upload whose worker was killed
(a bucket's lifecycle rules remove them better).
"""

import logging
import re
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any, BinaryIO, Final

from wan_worker.delivery import caller_store
from wan_worker.errors import StorageFailed, WorkerError
from wan_worker.inputs.dialing import Policy
from wan_worker.media.artifact import Artifact
from wan_worker.settings import Bucket
from wan_worker.timing.progress import Control

log = logging.getLogger(__name__)

PART_BYTES: Final = 16 * 1024**2
"""Multipart threshold and part size."""

ENDPOINT: Final = "/s3Config/endpointUrl"
CALLER_SECONDS: Final = 600.0
"""The limit for one file to a store that the caller named."""

_PERMANENT: Final = frozenset({
    "400", "401", "403", "404", "AccessDenied", "AllAccessDisabled", "AuthorizationHeaderMalformed",
    "InvalidAccessKeyId", "InvalidBucketName", "NoSuchBucket", "PermanentRedirect",
    "SignatureDoesNotMatch",
})  # fmt: skip


@dataclass(frozen=True)
class S3:
    """A bucket. If it has a ``public_url``, that replaces presigned URLs."""

    bucket: Bucket
    url_expiry_seconds: int
    policy: Policy | None = None
    """Where this worker may connect, for a caller's store. None for the operator's bucket."""


def put(artifact: Artifact, key: str, to: S3, control: Control) -> str:
    """Upload a file and check that all of it has arrived.

    Args:
        key: the object's full key.

    Returns:
        The object's URL: a presigned or a public one.

    Raises:
        StorageFailed: the bucket refused it, or could not be reached after the SDK's retries.
        Canceled, DeadlineExceeded: the job should stop; the object is removed.
    """
    bucket_name = to.bucket.name
    with _storage_errors():
        s3_client = client(to)
        try:
            _upload(s3_client, artifact, bucket_name, key, control)
            stored = s3_client.head_object(Bucket=bucket_name, Key=key)["ContentLength"]
            if stored != artifact.bytes:
                raise StorageFailed(f"The bucket holds {stored} of {artifact.bytes} bytes")
            control.check()
        except WorkerError:
            # The file is incomplete, or nobody waits for it.
            _delete(s3_client, bucket_name, key)
            raise
        return _address(s3_client, key, to)


def address(key: str, to: S3) -> str:
    """A new URL of an object. It needs no request.

    Args:
        key: the object's full key.
    """
    return _address(client(to), key, to)


def _address(s3_client: Any, key: str, to: S3) -> str:
    if to.bucket.public_url is not None:
        return f"{to.bucket.public_url}/{key}"
    url: str = s3_client.generate_presigned_url(
        "get_object",
        Params={"Bucket": to.bucket.name, "Key": key},
        ExpiresIn=to.url_expiry_seconds,
    )
    return url


def put_text(body: bytes, key: str, to: S3) -> None:
    """Write a small JSON object.

    Raises:
        StorageFailed: as in ``put``.
    """
    with _storage_errors():
        client(to).put_object(
            Bucket=to.bucket.name, Key=key, Body=body, ContentType="application/json"
        )


def remove(key: str, to: S3) -> None:
    """Remove an object. A failure is only logged."""
    _delete(client(to), to.bucket.name, key)


def probe(bucket: Bucket) -> float:
    """Write a small object and remove it.

    Returns:
        How many seconds the store's clock is ahead of ours.

    Raises:
        StorageFailed: it can't be written; not retryable if another try would fail too.
    """
    from botocore.exceptions import ClientError

    key = full_key(bucket, f"worker-check-{uuid.uuid4().hex}")
    with _storage_errors():
        s3_client = client(S3(bucket, url_expiry_seconds=0))
        answer = s3_client.put_object(Bucket=bucket.name, Key=key, Body=b"a worker looked\n")
        our_time = time.time()
        with suppress(ClientError):  # credentials that may only write are enough for jobs
            s3_client.delete_object(Bucket=bucket.name, Key=key)
    store_date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    return parsedate_to_datetime(store_date).timestamp() - our_time if store_date else 0.0


def _upload(client: Any, artifact: Artifact, bucket: str, key: str, control: Control) -> None:
    """Send a file, in parts if it is large. A job that should stop does so during the transfer.

    boto3 aborts an upload in parts if it fails for any reason.
    """
    from boto3.s3.transfer import TransferConfig

    with artifact.path.open("rb") as body:
        try:
            client.upload_fileobj(
                _StoppableFile(body, control),
                bucket,
                key,
                ExtraArgs={
                    "ContentType": artifact.content_type,
                    "Metadata": {"sha256": artifact.sha256},
                },
                Callback=lambda _: control.check(),  # for parts, which are read ahead
                Config=TransferConfig(
                    multipart_threshold=PART_BYTES,
                    multipart_chunksize=PART_BYTES,
                    use_threads=artifact.bytes >= PART_BYTES,  # threads do not help one part
                ),
            )
        except Exception:
            control.check()  # the SDK wraps an error raised during the transfer in its own
            raise


class _StoppableFile:
    """A file whose reads raise when the job should stop."""

    def __init__(self, file: BinaryIO, control: Control) -> None:
        self._file = file
        self._control = control

    def read(self, size: int = -1) -> bytes:
        self._control.check()
        return self._file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _delete(client: Any, bucket: str, key: str) -> None:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        client.delete_object(Bucket=bucket, Key=key)
    except (BotoCoreError, ClientError, OSError) as problem:
        log.warning("%s could not be removed: %s", key, type(problem).__name__)


def full_key(bucket: Bucket, key: str) -> str:
    """The key within the operator's prefix."""
    return f"{bucket.prefix}/{key}" if bucket.prefix else key


def client(to: S3) -> Any:
    """The operator's client is kept between jobs: a new one takes as long as a small upload."""
    if to.policy is None:
        return _operator_client(to.bucket)
    caller_client = _new_client(to.bucket)
    caller_store.guard(caller_client, to.policy, field=ENDPOINT, seconds=CALLER_SECONDS)
    return caller_client


@lru_cache(maxsize=1)
def _operator_client(bucket: Bucket) -> Any:
    return _new_client(bucket)


@lru_cache(maxsize=1)
def _session() -> Any:
    """The session for all clients. Parsing S3's description takes 0.1 s. No credentials in it."""
    import boto3

    return boto3.session.Session()


_session_lock: Final = threading.Lock()
"""Only one thread at a time may use a session; clients have no such limit."""


def _new_client(bucket: Bucket) -> Any:
    from botocore.config import Config

    host = re.sub(r"^https?://", "", bucket.endpoint_url)
    with _session_lock:
        return _session().client(
            "s3",
            endpoint_url=bucket.endpoint_url,
            aws_access_key_id=bucket.access_key_id.reveal(),
            aws_secret_access_key=bucket.secret_access_key.reveal(),
            region_name=bucket.region,
            config=Config(
                signature_version="s3v4",
                # AWS expects the bucket's name in the host; most others expect it in the path.
                s3={"addressing_style": "virtual" if ".amazonaws.com" in host else "path"},
                # Not "standard": its clients have a budget of retries. This client is kept, so one
                # bad hour would use the budget up. A finished video is worth every try.
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
    """Turn boto3's errors into StorageFailed, with the store's code but no key or URL."""
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
