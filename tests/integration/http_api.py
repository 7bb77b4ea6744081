"""The HTTP API in processes of its own: what ``make api`` starts, on a free port of loopback."""

import json
import sys
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import psutil

from tests.integration.worker import Child, answers_http, free_port

COMMAND = (sys.executable, "-m", "wan_worker.api")
GENERATION = "/api/v1/generation"
ENDED = ("completed", "failed", "canceled")


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    """By lower-case name."""
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The body of a refusal; every one has the same form."""
        (name,) = self.json
        assert name == "error"
        found: dict[str, Any] = self.json["error"]
        assert set(found) == {"code", "message", "field", "retryable", "stage"}
        return found


class HttpApi(Child):
    """The server and its engine. State and outputs lie below ``home`` and outlast a restart."""

    def __init__(
        self,
        home: Path,
        models_dir: Path,
        *,
        env: Mapping[str, str] | None = None,
        ready_timeout: float = 60.0,
    ) -> None:
        self.port = free_port()
        self.state_dir, self.output_dir = home / "state", home / "outputs"
        super().__init__(
            COMMAND,
            home,
            name="api",
            ready=lambda: answers_http(self.port),
            env={
                "PYTHONPATH": "src",
                "API_PORT": str(self.port),
                "MODELS_DIR": str(models_dir),
                "STATE_DIR": str(self.state_dir),
                "OUTPUT_DIR": str(self.output_dir),
                **(env or {}),
            },
            ready_timeout=ready_timeout,
        )

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 60.0,
    ) -> Reply:
        """One request; a body that is no bytes is sent as JSON."""
        sent = dict(headers or {})
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=timeout)) as connection:
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Reply(answer.status, found, answer.read())

    def get(self, path: str, **headers: str) -> Reply:
        return self.call("GET", path, headers=headers)

    def submit(self, request: Mapping[str, Any]) -> str:
        """Put a job into the queue; its id."""
        reply = self.call("POST", f"{GENERATION}/submit", dict(request))
        assert reply.status == 202, reply.body
        task_id: str = reply.json["task_id"]
        return task_id

    def look(self, task_id: str) -> dict[str, Any]:
        reply = self.get(f"{GENERATION}/{task_id}")
        assert reply.status == 200, reply.body
        found: dict[str, Any] = reply.json
        return found

    def wait(self, task_id: str, *statuses: str, timeout: float = 90.0) -> dict[str, Any]:
        """The job once it has ended, or has one of these statuses."""
        return self.until(lambda: _having(self.look(task_id), statuses or ENDED), timeout)

    def until(self, look: Any, timeout: float = 60.0) -> Any:
        """What ``look`` returns, once that is anything."""
        deadline = time.monotonic() + timeout
        while not (found := look()):
            assert self.alive(), self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)
        return found

    def wait_ready(self) -> None:
        self.until(lambda: self.get("/ping").status == 200)

    def until_gone(self, timeout: float = 30.0) -> int:
        """The server's exit status, once it has ended by itself."""
        return self._process.wait(timeout)

    def engine(self) -> psutil.Process:
        """The process that generates."""
        found: list[psutil.Process] = self.until(lambda: self.children("wan_worker.queue.engine"))
        return found[0]

    def children(self, module: str) -> list[psutil.Process]:
        """The server's child processes that run a module, less those that are just ending."""
        found = []
        for process in psutil.Process(self.pid).children():
            with suppress(psutil.Error):
                if module in process.cmdline():
                    found.append(process)
        return found


def _having(job: dict[str, Any], statuses: tuple[str, ...]) -> dict[str, Any] | None:
    return job if job["status"] in statuses else None
