"""Fixtures that many tests share: tiny weights written once, and a worker in this process."""

import datetime
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from wan_worker import job as jobs
from wan_worker.catalog.models import EXTRAS
from wan_worker.settings import Settings
from wan_worker.timing.progress import Control
from wan_worker.weights import tiny

# Tiny tensors gain nothing from a second thread and lose much where the cores are busy. Set before
# torch is imported, and inherited by the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
# Where a test does ask for two threads, one that waits for the other sleeps: by default it spins,
# on a core that the other needs, and a clip of a second takes ten.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

SCHEMAS = Path(__file__).resolve().parents[1] / "schemas"

QUICK = {
    "mode": "video",
    "prompt": "a red circle",
    "size": "64x48",
    "num_frames": 5,
    "num_inference_steps": 2,
    "seed": 7,
}
"""A request that takes tenths of a second on a CPU."""

Answer = dict[str, Any]


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny weights of the default image's two models and the extras, written once."""
    folder = tmp_path_factory.mktemp("store") / "models"
    tiny.write(folder, ["wan2.1-t2v-1.3b", "wan2.1-i2v-14b-480p", *EXTRAS])
    return folder


@pytest.fixture(scope="session")
def every_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny weights of every model, written once."""
    folder = tmp_path_factory.mktemp("every") / "models"
    tiny.write(folder)
    return folder


@pytest.fixture(scope="session")
def shared_worker(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> jobs.Worker:
    """A worker on the tiny weights that keeps its components loaded between tests."""
    outputs = tmp_path_factory.mktemp("outputs")
    return jobs.make_worker(
        Settings(
            models_dir=models_dir, output_dir=outputs, state_dir=outputs, allow_private_urls=True
        )
    )


@pytest.fixture(scope="session")
def every_worker(every_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> jobs.Worker:
    """A worker that has every model."""
    outputs = tmp_path_factory.mktemp("every-outputs")
    return jobs.make_worker(
        Settings(
            models_dir=every_model_dir,
            output_dir=outputs,
            state_dir=outputs,
            allow_private_urls=True,
        )
    )


@pytest.fixture
def worker(shared_worker: jobs.Worker, tmp_path: Path) -> jobs.Worker:
    """The shared worker with an output folder of the test's own."""
    return replace(shared_worker, settings=replace(shared_worker.settings, output_dir=tmp_path))


@pytest.fixture(scope="session")
def response_errors() -> Callable[[Answer], list[str]]:
    """What the response schema finds wrong with an answer."""
    validator = Draft202012Validator(json.loads((SCHEMAS / "response.schema.json").read_text()))
    return lambda answer: [f"{e.json_path}: {e.message}" for e in validator.iter_errors(answer)]


@pytest.fixture
def serve(
    worker: jobs.Worker, response_errors: Callable[[Answer], list[str]]
) -> Callable[..., Answer]:
    """Run a request to its answer; a completed one is checked against the response schema."""

    def run(
        changes: Mapping[str, Any] | None = None, /, job_id: str = "job-1", **top: Any
    ) -> Answer:
        job = {"id": job_id, "input": QUICK | dict(changes or {}), **top}
        answer = jobs.run(job, worker, Control())
        if "error" not in answer:
            assert response_errors(answer) == []
        return answer

    return run


@pytest.fixture
def no_retry_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """boto3 tries as often as ever, without its pauses of up to half a minute in between."""
    monkeypatch.setattr("botocore.retryhandler.delay_exponential", lambda *_, **__: 0.0)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for secure.example, and its key, in one file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "secure.example")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("secure.example")]), False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "pair.pem"
    pem = serialization.Encoding.PEM
    path.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + signed.public_bytes(pem)
    )
    return path


def error_of(answer: Answer) -> dict[str, Any]:
    """The parsed error of a failed answer."""
    assert isinstance(answer.get("error"), str), answer
    parsed: dict[str, Any] = json.loads(answer["error"])
    return parsed
