"""How does a file get into a bucket, and how is it taken back?

S3 and everything that speaks it, by boto3. The operator's client is kept; one to a store that a
caller named is made for the job and goes through the address guard (caller_store).
Promises: an upload is never reported that did not happen (a HEAD compares the size); a presigned
URL is never logged; credentials are revealed to boto3 only.
Not covered: which keys (storage), and the unseen parts of an upload whose worker was killed (a
bucket's lifecycle rules do that better).
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
    policy: Policy | None = None
    """Where this worker may connect, for a store that the caller named; None for the operator's."""


def put(artifact: Artifact, key: str, to: S3, control: Control) -> str:
    """Send a file and see that all of it is there.

    Args:
        key: the object's, whole.

    Returns:
        Where it can be fetched: a presigned URL, or the public one.

    Raises:
        StorageFailed: the bucket refused it, or could not be reached after the SDK's retries.
        Canceled, DeadlineExceeded: the job should stop; what was sent is taken back.
    """
    name = to.bucket.name
    with _storage_errors():
        made = client(to)
        try:
            _upload(made, artifact, name, key, control)
            stored = made.head_object(Bucket=name, Key=key)["ContentLength"]
            if stored != artifact.bytes:
                raise StorageFailed(f"The bucket holds {stored} of {artifact.bytes} bytes")
            control.check()
        except WorkerError:
            # Half a file, or one that nobody waits for.
            _take_back(made, name, key)
            raise
        return _address(made, key, to)


def address(key: str, to: S3) -> str:
    """Where an object can be fetched from now on; asks nobody.

    Args:
        key: the object's, whole.
    """
    return _address(client(to), key, to)


def _address(made: Any, key: str, to: S3) -> str:
    if to.bucket.public_url is not None:
        return f"{to.bucket.public_url}/{key}"
    url: str = made.generate_presigned_url(
        "get_object",
        Params={"Bucket": to.bucket.name, "Key": key},
        ExpiresIn=to.url_expiry_seconds,
    )
    return url


def put_text(body: bytes, key: str, to: S3) -> None:
    """Write a small JSON object.

    Raises:
        StorageFailed: as ``put``.
    """
    with _storage_errors():
        client(to).put_object(
            Bucket=to.bucket.name, Key=key, Body=body, ContentType="application/json"
        )


def remove(key: str, to: S3) -> None:
    """Take an object back; what goes wrong is logged and no more."""
    _take_back(client(to), to.bucket.name, key)


def probe(bucket: Bucket) -> float:
    """Write a small object and remove it.

    Returns:
        Seconds by which the store's clock is ahead of ours.

    Raises:
        StorageFailed: it can't be written; not retryable where another try would end the same.
    """
    from botocore.exceptions import ClientError

    key = full_key(bucket, f"worker-check-{uuid.uuid4().hex}")
    with _storage_errors():
        made = client(S3(bucket, url_expiry_seconds=0))
        answer = made.put_object(Bucket=bucket.name, Key=key, Body=b"a worker looked\n")
        ours = time.time()
        with suppress(ClientError):  # keys that may only write are enough for jobs
            made.delete_object(Bucket=bucket.name, Key=key)
    dated = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    return parsedate_to_datetime(dated).timestamp() - ours if dated else 0.0


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


def full_key(bucket: Bucket, key: str) -> str:
    """The key within the operator's prefix."""
    return f"{bucket.prefix}/{key}" if bucket.prefix else key


def client(to: S3) -> Any:
    """The operator's is kept from job to job: making one takes as long as a small upload."""
    if to.policy is None:
        return _operators(to.bucket)
    made = _made(to.bucket)
    caller_store.guard(made, to.policy, field=ENDPOINT, seconds=CALLER_SECONDS)
    return made


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
