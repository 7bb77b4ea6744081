"""The ways a developer runs the worker on a laptop."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.builders.files import path_of, read
from tests.builders.pictures import picture
from tests.conftest import QUICK
from tests.integration.api_server import ApiServer
from tests.integration.worker import REPOSITORY


def run_handler(
    models_dir: Path, outputs: Path, job: dict[str, Any]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "handler.py", "--test_input", json.dumps(job)],
        cwd=REPOSITORY,
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(outputs),
            "MODELS_DIR": str(models_dir),
            "OUTPUT_DIR": str(outputs),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_test_input_makes_a_file_and_says_where(models_dir: Path, tmp_path: Path) -> None:
    done = run_handler(models_dir, tmp_path, {"id": "laptop", "input": QUICK})
    assert done.returncode == 0, done.stderr
    target = tmp_path / "laptop" / "0.mp4"
    assert read(target).frames.shape == (5, 48, 64, 3)
    assert target.as_uri() in done.stdout + done.stderr
    assert "Warning" not in done.stdout + done.stderr


def test_test_input_takes_an_image_as_a_data_uri(models_dir: Path, tmp_path: Path) -> None:
    job = {"id": "laptop", "input": QUICK | {"image_url": picture()}}
    done = run_handler(models_dir, tmp_path, job)
    assert done.returncode == 0, done.stderr
    assert read(tmp_path / "laptop" / "0.mp4").frames.shape == (5, 48, 64, 3)


def test_a_bad_test_input_fails_with_its_field(models_dir: Path, tmp_path: Path) -> None:
    done = run_handler(models_dir, tmp_path, {"input": QUICK | {"fsp": 3}})
    assert done.returncode == 1
    assert "did you mean fps?" in done.stdout + done.stderr


def test_the_sdks_local_server_answers_runsync_run_and_status(
    models_dir: Path, tmp_path: Path
) -> None:
    env = {"MODELS_DIR": str(models_dir), "OUTPUT_DIR": str(tmp_path / "out")}
    with ApiServer(tmp_path / "server", env=env) as server:
        status, body = server.post("/runsync", {"input": QUICK})
        assert (status, body["status"]) == (200, "COMPLETED")
        assert read(path_of(body["output"]["assets"][0]["url"])).frames.shape == (5, 48, 64, 3)

        status, body = server.post("/run", {"input": QUICK | {"prompt": " "}})
        status, body = server.post(f"/status/{body['id']}", {})
        assert body["status"] == "FAILED"
        assert json.loads(body["error"])["field"] == "/input/prompt"
