"""The server and its engine killed at bad moments: no job is lost, nothing stays behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.builders.requests import LONG
from tests.conftest import QUICK
from tests.integration.http_api import COMMAND, HttpApi
from tests.integration.worker import REPOSITORY, free_port
from wan_worker.queue.ledger import FILE, Ledger


class Line:
    """One home and the servers that live in it, one after the other.

    A test takes the one that the last test left (its engine may have loaded what jobs need, which
    takes seconds), or a new one where that is gone.
    """

    def __init__(self, home: Path, models_dir: Path) -> None:
        self._home = home
        self._models_dir = models_dir
        self._server: HttpApi | None = None

    def server(self) -> HttpApi:
        """The one that lives."""
        if self._server is None or not self._server.alive():
            return self.successor()
        return self._server

    def successor(self) -> HttpApi:
        """Another, after the last has ended."""
        self.end()
        env = {"LOG_FORMAT": "json", "RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS": "true"}
        self._server = HttpApi(self._home, self._models_dir, env=env).__enter__()
        self._server.wait_ready()
        return self._server

    def end(self) -> None:
        if self._server is not None:
            self._server.stop()


@pytest.fixture(scope="module")
def line(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    line = Line(tmp_path_factory.mktemp("line"), models_dir)
    yield line
    line.end()


def gone(process: psutil.Process) -> None:
    """Returns when the process has ended."""
    process.wait(30)


def denoising(server: HttpApi) -> str:
    """The id of a job that is being generated."""
    task_id = server.submit(LONG)
    server.until(lambda: (server.look(task_id)["progress"] or {}).get("stage") == "denoise")
    return task_id


def left_behind(server: HttpApi) -> list[str]:
    return [path.name for path in server.tmp.iterdir() if path.name.startswith("wan-job-")]


def test_a_killed_engine_fails_its_job_and_the_server_goes_on(line: Line) -> None:
    server = line.successor()
    running, following = denoising(server), server.submit(QUICK)
    server.engine().send_signal(signal.SIGKILL)
    lost = server.wait(running)
    assert (lost["status"], lost["error"]["code"]) == ("failed", "INTERNAL")
    assert lost["error"]["retryable"] is True
    assert lost["error"]["stage"] == "denoise"
    assert server.wait(following)["status"] == "completed"
    health = server.get("/health").json
    assert (health["status"], health["restarts"]) == ("ok", 1)
    entries = [json.loads(line) for line in server.log().splitlines() if line[:1] == "{"]
    (said,) = [e for e in entries if e["logger"] == "wan_worker.queue.dispatch" and "stage" in e]
    assert (said["level"], said["stage"]) == ("WARNING", "denoise")
    assert running in said.values()
    assert left_behind(server) == []


def test_a_killed_server_loses_no_job_and_keeps_the_queues_order(line: Line) -> None:
    server = line.server()
    engine = server.engine()
    running = denoising(server)
    waiting = [server.submit(QUICK | {"seed": seed}) for seed in (1, 2, 3)]
    os.kill(server.pid, signal.SIGKILL)
    gone(engine)  # by itself: its line has closed
    again = line.successor()
    lost = again.look(running)
    assert lost["status"] == "failed"
    assert lost["error"]["retryable"] is True
    assert "submit it again" in lost["error"]["message"]
    ended = [again.wait(task_id) for task_id in waiting]
    assert [job["status"] for job in ended] == ["completed"] * 3
    starts = [job["started_at"] for job in ended]
    assert starts == sorted(starts)
    assert left_behind(again) == []


def test_server_and_engine_killed_at_once_leave_nothing_behind(line: Line) -> None:
    server = line.server()
    running = denoising(server)
    engine = server.engine()
    server.kill()
    gone(engine)
    assert left_behind(server) != []
    again = line.successor()
    assert again.look(running)["status"] == "failed"
    assert left_behind(again) == []


def test_two_servers_do_not_share_one_ledger(line: Line, models_dir: Path) -> None:
    server = line.server()
    other = subprocess.run(
        COMMAND,
        cwd=REPOSITORY,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": "src", "API_PORT": "1",
             "STATE_DIR": str(server.state_dir), "MODELS_DIR": str(models_dir)},
        capture_output=True,
        text=True,
        timeout=60,
    )  # fmt: skip
    assert other.returncode == 1
    said = f"CONFIG_INVALID: STATE_DIR: another server uses {server.state_dir}; "
    assert said in other.stderr


def test_a_job_that_had_finished_when_all_was_killed_is_reported_finished(
    line: Line, response_errors: Any
) -> None:
    called = threading.Event()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            called.set()
            time.sleep(20)  # longer than the server lives

        def log_message(self, *_: Any) -> None:
            pass

    receiver = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    receiver.daemon_threads = True
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{receiver.server_port}/"
    server = line.server()
    task_id = server.submit(QUICK | {"callback_url": url})
    assert called.wait(60)
    server.kill()
    receiver.shutdown()
    receiver.server_close()
    again = line.successor()
    job = again.look(task_id)
    assert job["status"] == "completed"
    assert response_errors(job["result"]) == []
    assert again.get(job["result"]["assets"][0]["url"]).status == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_told_to_stop_ends_its_job_and_leaves_nobody(
    line: Line, number: signal.Signals
) -> None:
    server = line.server()
    running, waiting = denoising(server), server.submit(QUICK)
    family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    if number == signal.SIGINT:
        os.killpg(server.pid, number)  # as a terminal does
    else:
        os.kill(server.pid, number)
    for process in family:
        if process.pid == server.pid:
            server.until_gone()
        else:
            gone(process)
    assert left_behind(server) == []
    assert "Traceback" not in server.log()
    with Ledger(server.state_dir / FILE) as ledger:
        jobs = [ledger.find(task_id) for task_id in (running, waiting)]
    assert [job and job.status for job in jobs] == ["failed", "queued"]


def test_a_port_that_is_taken_is_said_to_be(models_dir: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = subprocess.run(
            COMMAND,
            cwd=REPOSITORY,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": "src", "API_PORT": str(port),
                 "STATE_DIR": str(tmp_path / "state"), "MODELS_DIR": str(models_dir)},
            capture_output=True,
            text=True,
            timeout=60,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.endswith(f"CONFIG_INVALID: API_PORT: {port} is taken; set another\n")
    assert "Traceback" not in done.stderr


def test_a_server_that_could_serve_nothing_does_not_start(models_dir: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        COMMAND,
        cwd=REPOSITORY,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": "src", "API_PORT": "0" * 3 + "8",
             "STATE_DIR": str(tmp_path), "DEFAULT_MODEL": "sora"},
        capture_output=True,
        text=True,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "CONFIG_INVALID: DEFAULT_MODEL: must be one of" in done.stderr


def test_a_server_whose_dispatcher_fails_says_so(models_dir: Path, tmp_path: Path) -> None:
    code = """
import sys
from wan_worker import api
from wan_worker.queue import dispatch
async def keep(self): raise RuntimeError("a mistake")
dispatch.Dispatcher._keep_engine = keep
sys.exit(api.main())
"""
    done = subprocess.run(
        (sys.executable, "-c", code),
        cwd=REPOSITORY,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": "src", "API_PORT": str(free_port()),
             "STATE_DIR": str(tmp_path), "MODELS_DIR": str(models_dir)},
        capture_output=True,
        text=True,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "the server failed" in done.stderr
    assert "RuntimeError: a mistake" in done.stderr


def test_an_engine_that_can_not_understand_its_server_ends_without_its_job(
    models_dir: Path, tmp_path: Path
) -> None:
    with Ledger(tmp_path / FILE) as ledger:
        ledger.submit("a", LONG, 1)
        ledger.start_next()
        with subprocess.Popen(
            (sys.executable, "-m", "wan_worker.queue.engine"),
            cwd=REPOSITORY,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": "src", "OMP_NUM_THREADS": "1",
                 "STATE_DIR": str(tmp_path), "OUTPUT_DIR": str(tmp_path),
                 "MODELS_DIR": str(models_dir)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as engine:  # fmt: skip
            assert engine.stdin is not None
            assert engine.stdout is not None
            engine.stdin.write(b'{"do": "run", "id": "a"}\n')
            engine.stdin.flush()
            while b"denoise" not in engine.stdout.readline():
                pass
            engine.stdin.write(b"what?\n")
            engine.stdin.flush()
            assert b'"ended"' not in engine.stdout.read()
            assert engine.wait(60) == 1
        assert [entry.id for entry in ledger.running()] == ["a"]  # the server says what became
