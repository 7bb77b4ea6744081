"""Files to put into a bucket, and what the bucket then says it has."""

from pathlib import Path

from tests.integration.s3 import S3Server
from wan_worker.media.artifact import Artifact
from wan_worker.request.outputs import Output

PART_BYTES = 5 * 1024**2
"""S3's own smallest, so that a test need not send much."""
OUTPUT = Output("a cat", 1)


def artifact(path: Path, size: int) -> Artifact:
    path.write_bytes(b"v" * size)
    return Artifact(path, "video/mp4", "mp4", size, "0" * 64, 64, 48, 5, 16, 5 / 16)


def visible(s3: S3Server, job_id: str) -> list[str]:
    """Names of the job's objects, asked of the server itself."""
    listed = s3.client().list_objects_v2(Bucket=s3.bucket, Prefix=f"{job_id}/")
    return [item["Key"].removeprefix(f"{job_id}/") for item in listed.get("Contents", [])]


def unfinished(s3: S3Server) -> list[str]:
    """Keys of the uploads in parts that were begun and neither finished nor aborted."""
    client = s3.client()
    try:
        listed = client.list_multipart_uploads(Bucket=s3.bucket)
    except client.exceptions.NoSuchUpload:  # as rclone says before the first one
        return []
    return [item["Key"] for item in listed.get("Uploads", [])]
