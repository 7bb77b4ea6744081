"""Models by the API, from a loopback Hub: progress, cancel, resume, verify, and then a job."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE
from typing import Any

import psutil
import pytest

from tests.conftest import QUICK
from tests.integration import repositories
from tests.integration.http_api import HttpApi
from tests.integration.hub import Fault, HubServer
from tests.integration.repositories import I2V, T2V
from tests.integration.worker import REPOSITORY

DOWNLOAD = "/api/v1/models/download"
PROGRESS = f"{DOWNLOAD}/progress"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    with HubServer(repositories.build(tmp_path_factory.mktemp("repositories"))) as server:
        yield server


@pytest.fixture(scope="module")
def api(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpApi]:
    """A server without a model, which is offline but for downloads."""
    home = tmp_path_factory.mktemp("api")
    env = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "1"}
    with HttpApi(home, home / "models", env=env) as server:
        server.wait_ready()
        yield server


def download_of(api: HttpApi, model: str) -> dict[str, Any]:
    found: dict[str, Any] = next(
        each for each in api.get(PROGRESS).json["downloads"] if each["model"] == model
    )
    return found


def start(api: HttpApi, model: str) -> dict[str, Any]:
    reply = api.call("POST", DOWNLOAD, {"model": model})
    assert reply.status == 202, reply.body
    started: dict[str, Any] = reply.json
    return started


def installers(api: HttpApi) -> list[psutil.Process]:
    return api.children("wan_worker.queue.download_process")


def test_a_download_is_cancelled_goes_on_and_serves_a_job(api: HttpApi, hub: HubServer) -> None:
    assert api.get("/api/v1/models/health").json["ready"] is False
    hub.faults.append(Fault("transformer/diffusion_pytorch_model-00003", stall=True))
    assert start(api, "T2V-1.3B")["status"] == "downloading"

    def part() -> bool:
        now = download_of(api, T2V.id)
        assert now["status"] == "downloading", now
        return any(path.stat().st_size for path in weights.glob("*-00003-*"))

    weights = api.home / "models" / f"{T2V.id}.transformer.download"
    api.until(part)
    now = download_of(api, T2V.id)
    assert 0 < now["bytes_done"] < now["bytes_total"]
    ended = api.call("DELETE", f"{DOWNLOAD}/{T2V.id}")
    assert (ended.status, ended.json["status"]) == (200, "canceled")
    api.until(lambda: not installers(api))
    assert api.call("DELETE", f"{DOWNLOAD}/{T2V.id}").status == 409

    sent = sum(hub.sent.values())
    start(api, T2V.id)
    api.until(lambda: download_of(api, T2V.id)["status"] != "downloading")
    done = download_of(api, T2V.id)
    assert done["status"] == "completed", done
    assert done["bytes_done"] == done["bytes_total"]
    assert any(seen.range for seen in hub.seen)  # it went on where it stopped
    assert sum(hub.sent.values()) > sent
    job = api.wait(api.submit(QUICK))
    assert job["status"] == "completed", job["error"]
    assert "weights" not in job["result"]["metadata"]  # real ones, as far as anybody can tell


def test_only_one_model_is_downloaded_at_a_time(api: HttpApi, hub: HubServer) -> None:
    hub.faults.append(Fault("transformer/diffusion_pytorch_model-00003", stall=True))
    start(api, I2V.id)
    assert start(api, I2V.id)["status"] == "downloading"  # the same once more
    refused = api.call("POST", DOWNLOAD, {"model": T2V.id})
    assert (refused.status, refused.error["code"]) == (409, "CONFLICT")
    assert I2V.id in refused.error["message"]
    assert api.call("DELETE", f"{DOWNLOAD}/{I2V.id}").status == 200
    api.until(lambda: not installers(api))


def test_a_download_that_fails_says_why(api: HttpApi, hub: HubServer) -> None:
    hub.faults.append(Fault("", status=403, times=1_000))
    try:
        start(api, "wan2.2-ti2v-5b")
        api.until(lambda: download_of(api, "wan2.2-ti2v-5b")["status"] != "downloading")
    finally:
        hub.faults.clear()
    failed = download_of(api, "wan2.2-ti2v-5b")
    assert (failed["status"], failed["error"]["code"]) == ("failed", "MODEL_UNAVAILABLE")
    api.until(lambda: not installers(api))
    assert "Fatal Python error" not in api.log()


def test_every_byte_of_a_model_is_verified(api: HttpApi) -> None:
    whole = api.call("POST", "/api/v1/models/verify/t2v-1.3b")
    assert (whole.status, whole.json) == (200, {"model": T2V.id, "ok": True, "problems": []})
    name = f"{T2V.id}.transformer"
    weights = next((api.home / "models" / name).glob("*.safetensors"))
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    try:
        damaged = api.call("POST", f"/api/v1/models/verify/{T2V.id}").json
    finally:
        weights.write_bytes(good)
    assert damaged["ok"] is False
    assert name in damaged["problems"][0]
    absent = api.call("POST", "/api/v1/models/verify/wan2.1-t2v-14b").json
    assert absent["ok"] is False


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"model": "sora"}, 404),
        ({"model": "../../etc"}, 404),
        ({"model": "--tiny"}, 404),
        ({}, 422),
        ({"model": 5}, 422),
        ({"model": T2V.id, "dest": "/"}, 422),
        ([], 422),
    ],
)
def test_what_is_no_model_is_not_downloaded(api: HttpApi, body: Any, status: int) -> None:
    refused = api.call("POST", DOWNLOAD, body)
    assert refused.status == status
    assert refused.error["code"] in ("NOT_FOUND", "INVALID_REQUEST")


def test_a_download_does_not_outlive_the_server(
    hub: HubServer, tmp_path: Path, models_dir: Path
) -> None:
    env = {"HF_ENDPOINT": hub.endpoint}
    with HttpApi(tmp_path, tmp_path / "models", env=env) as server:
        hub.faults.append(Fault("transformer/diffusion_pytorch_model-00003", stall=True))
        start(server, T2V.id)
        (process,) = server.until(lambda: installers(server))
        psutil.Process(server.pid).kill()
        process.wait(30)


def test_downloading_is_for_the_admin(tmp_path: Path) -> None:
    key, admin = "k" * 16, "a" * 16
    env = {"API_KEY": key, "API_ADMIN_KEY": admin}
    with HttpApi(tmp_path, tmp_path / "models", env=env) as server:
        for method, path, body in (
            ("POST", DOWNLOAD, {"model": "sora"}),
            ("DELETE", f"{DOWNLOAD}/sora", None),
        ):
            refused = server.call(method, path, body, {"X-API-Key": key})
            assert (refused.status, refused.error["code"]) == (403, "FORBIDDEN")
            passed = server.call(method, path, body, {"X-API-Key": admin})
            assert passed.status == 404
        assert server.call("GET", PROGRESS, headers={"X-API-Key": key}).status == 200


def test_an_installer_ends_in_order_while_the_server_is_there(tmp_path: Path) -> None:
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": "src", "MODELS_DIR": str(tmp_path),
           "HF_HUB_OFFLINE": "1"}  # fmt: skip
    command = (sys.executable, "-m", "wan_worker.queue.download_process", T2V.id)
    with subprocess.Popen(
        command, cwd=REPOSITORY, env=env, stdin=PIPE, stdout=PIPE, stderr=PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        last = json.loads(process.stdout.read().splitlines()[-1])
        assert last["say"] == "failed"
        assert "Fatal" not in process.stderr.read().decode()
        assert process.wait(60) == 1
