"""A canary in every secret: after a run of good and bad jobs, no log and no answer has it."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import QUICK
from tests.integration.conftest import Production
from tests.integration.platform import Platform
from tests.integration.s3 import S3Server
from tests.integration.worker import Worker

CANARY = "canary7f3a"
PICTURE = base64.b64encode(f"no picture, {CANARY}, ".encode() * 9).decode()
"""Base64 of a canary: both ways of writing it are looked for."""
INLINE = base64.b64encode(CANARY.encode())[:12].decode()


class CanaryS3(S3Server):
    secret_key = f"{CANARY}-bucket"


@pytest.fixture(scope="module")
def production(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Production]:
    """As in production, at the most talkative log level, with a canary in every secret."""
    with CanaryS3(tmp_path_factory.mktemp("s3")) as s3, Platform() as platform:
        env = s3.env() | {
            "MODELS_DIR": str(models_dir),
            "LORA_CACHE_DIR": str(tmp_path_factory.mktemp("loras")),
            "LOG_LEVEL": "DEBUG",
            # Most of these jobs wait for somebody who does not answer: let them wait together.
            "WORKER_CONCURRENCY": "8",
            "RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS": "true",
            "CALLBACK_SECRET": f"{CANARY}-callback-secret",
            "HF_TOKEN": f"hf_{CANARY}",
        }
        with Worker(platform, tmp_path_factory.mktemp("worker"), env=env) as worker:
            yield Production(platform, worker, s3)


def jobs(s3: S3Server) -> dict[str, dict[str, Any]]:
    """Good jobs and bad ones; each carries secrets, and none may come back."""
    signed = f"http://127.0.0.1:9/a.png?X-Amz-Signature={CANARY}"
    refused = f"https://user:{CANARY}@example.com/a.png"
    missing = f"{s3.endpoint_url}/nowhere/a.png?X-Amz-Signature={CANARY}"
    inline = f"data:image/png;base64,{PICTURE}"
    keys = {
        "accessId": f"AK{CANARY}",
        "accessSecret": f"{CANARY}-of-the-job",
        "bucketName": s3.bucket,
        "endpointUrl": s3.endpoint_url,
    }

    def job(given: dict[str, Any], **top: Any) -> dict[str, Any]:
        return {"input": QUICK | given, **top}

    return {
        "good": job({}),
        "wrong keys": job({}, s3Config=keys),
        "no store there": job({}, s3Config=keys | {"endpointUrl": "http://127.0.0.1:9"}),
        "broken keys": job({}, s3Config=keys | {"accessSecret": f"{CANARY} with a space"}),
        "broken endpoint": job({}, s3Config=keys | {"endpointUrl": f"s3://{CANARY}"}),
        "endpoint with keys": job({}, s3Config=keys | {"endpointUrl": f"http://a:{CANARY}@b"}),
        "bucket of another name": job({}, s3Config=keys | {"bucketName": f"../{CANARY}"}),
        "keys in a text": job({}, s3Config=json.dumps(keys)),
        "picture out of reach": job({"image_url": signed}),
        "picture with a password": job({"image_url": refused}),
        "picture that is not there": job({"image_url": missing}),
        "picture that fails, with fallback": job(
            {"image_url": missing, "reference_fallback": True}
        ),
        "no picture": job({"image_url": inline}),
        "no picture, with fallback": job({"config": {"first_frame": inline}}),
        "broken base64": job({"image_url": PICTURE + "!"}),
        "too large": job({"image_url": PICTURE * 200_000}),
        "wrong kind of data": job({"image_url": f"data:text/{CANARY};base64,{PICTURE}"}),
        "a path": job({"image_url": f"/home/{CANARY}/a.png"}),
        "lora out of reach": job({"loras": [{"source": f"http://127.0.0.1:9/a?sig={CANARY}"}]}),
        "lora with a password": job({"loras": [{"source": refused}]}),
        "lora that is not there": job({"loras": [{"source": missing}]}),
        "callback out of reach": job({"callback_url": f"http://127.0.0.1:9/?token={CANARY}"}),
        "callback with a password": job({"callback_url": refused}),
        "callback of a bad job": job({"callback_url": f"http://127.0.0.1:9/?t={CANARY}", "fps": 0}),
        **{
            f"value of {name}": job({name: value})
            for name in ("size", "seed", "solver", "steps", "loras", "config", "mode", "model")
            for value in (f"{CANARY}\n",)
        },
        "not a number": job({"guidance_scale": [CANARY]}),
        "control characters": job({"negative_prompt": f"{CANARY}\x1b[2J"}),
    }  # fmt: skip


def test_no_secret_is_in_a_log_or_an_answer(production: Production) -> None:
    platform, submitted = production.platform, jobs(production.s3)
    ids = {name: platform.submit(whole) for name, whole in submitted.items()}
    answers = {name: platform.wait(job_id, 120) for name, job_id in ids.items()}
    good = answers.pop("good")
    assert good["output"]["status"] == "completed"
    # The app's own signed URL is made from the secret, and holds no part of it.
    assert CANARY not in json.dumps(good)
    succeed = {"picture that fails, with fallback", "no picture, with fallback",
               "callback out of reach"}  # fmt: skip
    assert {name for name, answer in answers.items() if "error" not in answer} == succeed
    for name, job_id in ids.items():
        told = json.dumps([event.payload for event in platform.events(job_id)])
        assert CANARY not in told, name
        assert INLINE not in told, name
    log = production.worker.log()
    assert all(job_id in log for job_id in ids.values())  # the log is the one of these jobs
    for secret in (CANARY, INLINE, "X-Amz-Signature"):
        assert [line[:200] for line in log.splitlines() if secret in line] == []
    assert [path.name for path in production.worker.tmp.glob("wan-*")] == []
    assert platform.wait(platform.submit(QUICK))["output"]["status"] == "completed"
