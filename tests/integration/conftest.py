"""Workers, a platform and an S3 server, started once for all tests of a module."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.platform import Platform
from tests.integration.s3 import S3Server
from tests.integration.worker import Worker


@dataclass(frozen=True)
class Production:
    """handler.py in RunPod's own production loop, delivering to a real S3 server."""

    platform: Platform
    worker: Worker
    s3: S3Server

    def run(self, request: dict[str, Any], timeout: float = 60, **top_level: Any) -> dict[str, Any]:
        """Submit one request and wait for what the platform is told."""
        job_id = self.platform.submit(request, **top_level)
        return self.platform.wait(job_id, timeout)


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="module")
def production(
    models_dir: Path, s3: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Production]:
    env = s3.env() | {
        "MODELS_DIR": str(models_dir),
        "BUCKET_PREFIX": "assets/wan",
        "RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS": "true",
        "CALLBACK_SECRET": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    }
    with (
        Platform() as platform,
        Worker(platform, tmp_path_factory.mktemp("worker"), env=env) as worker,
    ):
        yield Production(platform, worker, s3)
