"""Artifacts -> an S3 bucket, a local folder, or the response itself.

One of three destinations is chosen before the generation starts: the bucket of the job's
``s3Config`` or of the operator; a folder on a laptop; the response, if the job wants base64 or if
RunPod has no bucket. Objects are ``{prefix}/{job_id}/{index}.{ext}``. The job's ``manifest.json``
is written last: if it exists, all other files exist too.

Promises: a repeated job writes the same keys; a local file appears whole or not at all.
Not covered: requests to a bucket (s3), deleting old assets (its lifecycle rules do that better).
"""

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from wan_worker.delivery import s3
from wan_worker.delivery.s3 import S3
from wan_worker.errors import (
    DiskFull,
    OutputTooLarge,
    StorageFailed,
)
from wan_worker.faults import is_disk_full
from wan_worker.inputs.dialing import Policy
from wan_worker.media.artifact import Artifact
from wan_worker.request.outputs import Output
from wan_worker.settings import Bucket
from wan_worker.timing.progress import Control

INLINE_BYTES: Final = 7 * 1000**2
"""Largest file in a response: base64 makes it 9.3 MB, and RunPod refuses results over 10 MB."""

_SMALLER: Final = {
    "gif": "; mp4 or webm are far smaller",
    "png": "; jpeg or webp are far smaller",
}

MANIFEST: Final = "manifest.json"


@dataclass(frozen=True)
class Folder:
    """A folder on this machine. Assets get file URLs."""

    root: Path


@dataclass(frozen=True)
class Inline:
    """The response itself."""

    asked: bool
    """False if the job did not ask for base64, but there is no bucket."""


Destination = S3 | Folder | Inline


@dataclass(frozen=True)
class StoredAsset:
    """An artifact and its place: ``url`` and ``key``, or ``data`` (base64)."""

    artifact: Artifact
    output: Output
    url: str | None = None
    key: str | None = None
    data: str | None = None

    def public(self) -> dict[str, Any]:
        """The asset as the response shows it."""
        place = {"data": self.data} if self.data else {"url": self.url, "key": self.key}
        return place | self.facts()

    def facts(self) -> dict[str, Any]:
        """The file's properties, independent of its place."""
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
    policy: Policy,
) -> Destination:
    """Choose the destination of this job's assets."""
    if response_format == "base64":
        return Inline(asked=True)
    if job_bucket is not None:
        return S3(job_bucket, url_expiry_seconds, policy)
    if bucket is not None:
        return S3(bucket, url_expiry_seconds)
    return Inline(asked=False) if on_platform else Folder(output_dir)


def check_fits(artifacts: Sequence[Artifact], to: Destination) -> None:
    """Check that all of a job's files together fit into the response, if they go there.

    Raises:
        OutputTooLarge: they do not fit.
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
    """Deliver one artifact. Call ``check_fits`` before.

    Raises:
        StorageFailed: the bucket refused it, or could not be reached after the SDK's retries.
        Canceled, DeadlineExceeded: the job should stop; the part already sent is removed.
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
    full_key = s3.full_key(to.bucket, key)
    return StoredAsset(artifact, output, url=s3.put(artifact, full_key, to, control), key=full_key)


def put_manifest(manifest: Mapping[str, Any], job_id: str, to: Destination) -> None:
    """Write the job's durable record, after all its files. No URLs, because they expire."""
    body = json.dumps(manifest, ensure_ascii=False, indent=2, allow_nan=False).encode()
    key = f"{job_folder(job_id)}/{MANIFEST}"
    if isinstance(to, Folder):
        _write_local(to.root.resolve() / key, body)
    elif isinstance(to, S3):
        s3.put_text(body, s3.full_key(to.bucket, key), to)


def remove(asset: StoredAsset, to: Destination) -> None:
    """Remove a delivered file of a cancelled job."""
    if isinstance(to, Folder) and asset.key is not None:
        (to.root.resolve() / asset.key).unlink(missing_ok=True)
    elif isinstance(to, S3) and asset.key is not None:
        s3.remove(asset.key, to)


def job_folder(job_id: str) -> str:
    """The job's id as one path segment. An id with unsafe characters is hashed."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}", job_id, re.ASCII):
        return job_id
    return hashlib.sha256(job_id.encode("utf-8", "backslashreplace")).hexdigest()[:32]


def _write_local(target: Path, body: bytes | Path) -> None:
    """Write bytes or a copy of a file. The target appears whole or not at all."""
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
