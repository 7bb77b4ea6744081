"""RunPod's side of the production loop, on loopback: queue jobs, cancel them, see what is posted.

RunPod's local test server never runs the loop that runs in production: no job-take poll, no
cancel, no progress, no SIGTERM. This does, with the real SDK on the other end. It keeps every post
in order of arrival, because the promises worth testing are about order and number: one final
result, nothing after it, none at all for a cancelled job.

Not covered: the platform's own rules (execution timeout, retries, size limits, result retention)
and its authentication. A job that was handed to a worker is never handed out again.
"""

import json
import select
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal, Protocol, Self
from urllib.parse import parse_qs, unquote, urlsplit

LOG_TAIL_LINES = 60

STOPPABLE_AFTER_SECONDS = 0.3
"""The SDK forgets a stop signal for a job that it took but has not begun (its loop looks every
0.1 s), so one is sent no earlier than this after the job was taken."""


def tail(log: str) -> str:
    """The end of a log, less the SDK's debug lines: several a second, they'd push out the rest."""
    lines = [line for line in log.splitlines() if not line.endswith('"level": "DEBUG"}')]
    return "\n".join(lines[-LOG_TAIL_LINES:])


class Watched(Protocol):
    """A worker process, as far as the platform cares: is it there, and what did it say?"""

    id: str

    def alive(self) -> bool: ...

    def log(self) -> str: ...


@dataclass(frozen=True)
class Event:
    """Something that a worker posted for a job."""

    index: int
    """Order of arrival over all jobs, from 0."""
    at: float
    """``time.monotonic()`` at arrival."""
    kind: Literal["progress", "stream", "final"]
    payload: Any
    """What was given to ``progress_update``; for stream and final posts the whole body."""


class Platform:
    """A RunPod endpoint with one queue. Workers join by running with ``env()``.

    ``hold`` is how long a poll is held open when there is nothing to say.
    """

    def __init__(self, hold: float = 1.0) -> None:
        self._hold = hold
        self._changed = threading.Condition()
        self._closing = False
        self._queue: deque[dict[str, Any]] = deque()
        self._stops: list[str] = []
        self._taken: dict[str, float] = {}
        self._first_takes: dict[str, float] = {}
        self._events: list[tuple[str, Event]] = []
        self._workers: list[Watched] = []

    def __enter__(self) -> Self:
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    # The app's side: what a test does.

    def submit(
        self, input_or_job: dict[str, Any], *, job_id: str | None = None, **top_level: Any
    ) -> str:
        """Queue a job: its input, or a whole job (a dict with ``input``). Return the job's id.

        ``top_level`` goes beside ``input``, as ``webhook``, ``policy`` and ``s3Config`` do.
        """
        whole = input_or_job if "input" in input_or_job else {"input": input_or_job}
        job = {"id": uuid.uuid4().hex, **whole, **top_level}
        if job_id is not None:
            job["id"] = job_id
        # What the worker gets has been through JSON: fail here, in the test, if that can't be.
        job = json.loads(json.dumps(job))
        with self._changed:
            self._queue.append(job)
            self._changed.notify_all()
        return str(job["id"])

    def cancel(self, job_id: str) -> None:
        """Drop a queued job; tell the workers to stop one that was taken. Each call tells once."""
        with self._changed:
            for job in self._queue:
                if job["id"] == job_id:
                    self._queue.remove(job)
                    return
            taken_at = self._taken[job_id]
        time.sleep(max(0.0, taken_at + STOPPABLE_AFTER_SECONDS - time.monotonic()))
        with self._changed:
            self._stops.append(job_id)
            self._changed.notify_all()

    def wait(self, job_id: str, timeout: float = 180.0) -> dict[str, Any]:
        """The first final result posted for a job: ``output``, ``error``, ``stopPod``.

        Fails with the end of the worker's log on timeout, or as soon as no worker is left.
        """
        self.wait_until(lambda: self.results(job_id), timeout, f"a result for job {job_id}")
        return self.results(job_id)[0]

    def wait_until(self, condition: Callable[[], object], timeout: float, what: str) -> None:
        """Wait until ``condition()`` is true, looking again whenever something arrives."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while not condition():
                left = deadline - time.monotonic()
                if left <= 0:
                    raise AssertionError(f"Waited {timeout} s for {what}.\n{self._logs()}")
                # A worker's last post is recorded before its process can end.
                if self._workers and not any(worker.alive() for worker in self._workers):
                    if condition():
                        return
                    raise AssertionError(f"No worker is left to bring {what}.\n{self._logs()}")
                self._changed.wait(min(left, 0.2))

    def events(self, job_id: str) -> list[Event]:
        """Everything posted for a job, in order of arrival.

        To show that nothing follows the final result, stop the worker first: progress is sent by
        threads of their own, and a late one is late by however long it likes.
        """
        with self._changed:
            return [event for posted_for, event in self._events if posted_for == job_id]

    def progress(self, job_id: str) -> list[Event]:
        """The progress updates of a job, in order of arrival."""
        return [event for event in self.events(job_id) if event.kind == "progress"]

    def results(self, job_id: str) -> list[dict[str, Any]]:
        """The final results of a job, in order of arrival. There should be one, or none."""
        return [event.payload for event in self.events(job_id) if event.kind == "final"]

    def taken_at(self, job_id: str) -> float | None:
        """``time.monotonic()`` when the job was handed to a worker; None while it is queued."""
        with self._changed:
            return self._taken.get(job_id)

    @property
    def first_take_at(self) -> float | None:
        """``time.monotonic()`` of the first poll for work by any worker; None before."""
        with self._changed:
            return min(self._first_takes.values(), default=None)

    # The workers' side.

    def env(self, worker_id: str = "w1") -> dict[str, str]:
        """The variables that RunPod sets in a worker's container, pointing here."""
        base = f"http://127.0.0.1:{self._server.server_port}/v2/ep"
        return {
            "RUNPOD_WEBHOOK_GET_JOB": f"{base}/job-take/$ID?gpu=x",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{base}/job-done/$RUNPOD_POD_ID/$ID?gpu=x",
            "RUNPOD_WEBHOOK_POST_STREAM": f"{base}/job-stream/$RUNPOD_POD_ID/$ID?gpu=x",
            "RUNPOD_WEBHOOK_PING": f"{base}/ping/$RUNPOD_POD_ID",
            "RUNPOD_POD_ID": worker_id,
            "RUNPOD_ENDPOINT_ID": "ep",
            "RUNPOD_AI_API_KEY": "x",
            # The SDK's checks of the machine want a GPU, free disk and the internet.
            "RUNPOD_SKIP_GPU_CHECK": "true",
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
        }

    def watch(self, worker: Watched) -> None:
        """Show this worker's log in failures; stop waiting when the last one watched is gone."""
        with self._changed:
            self._workers.append(worker)

    def seen(self, worker_id: str) -> bool:
        """Has this worker asked for work?"""
        with self._changed:
            return worker_id in self._first_takes

    def take(
        self, worker_id: str, limit: int, client_gone: Callable[[], bool]
    ) -> list[dict[str, Any]]:
        """Up to ``limit`` jobs for a worker, waiting for the first one a while."""
        with self._changed:
            self._first_takes.setdefault(worker_id, time.monotonic())
            self._changed.wait_for(lambda: self._queue or self._closing, self._hold)
            # A killed worker's poll must not swallow the job that its successor waits for.
            if self._closing or client_gone():
                return []
            jobs = [self._queue.popleft() for _ in range(min(limit, len(self._queue)))]
            self._taken |= {job["id"]: time.monotonic() for job in jobs}
            self._changed.notify_all()
            return jobs

    def take_stops(self, client_gone: Callable[[], bool]) -> list[str]:
        """The ids of the jobs to stop, waiting for the first one a while."""
        with self._changed:
            self._changed.wait_for(lambda: self._stops or self._closing, self._hold)
            if self._closing or client_gone():
                return []
            stops, self._stops = self._stops, []
            return stops

    def record(self, job_id: str, body: Any, *, stream: bool) -> None:
        """Keep a post. Progress comes to the same address as results, marked by its status."""
        in_progress = isinstance(body, dict) and body.get("status") == "IN_PROGRESS"
        with self._changed:
            event = Event(
                index=len(self._events),
                at=time.monotonic(),
                kind="stream" if stream else "progress" if in_progress else "final",
                payload=body["output"] if in_progress else body,
            )
            self._events.append((job_id, event))
            self._changed.notify_all()

    def _logs(self) -> str:
        if not self._workers:
            return "No worker was started."
        return "\n".join(f"--- {worker.id}'s log\n{tail(worker.log())}" for worker in self._workers)


class _Server(ThreadingHTTPServer):
    """One thread a request. Closing waits for them all, so that no socket outlives a test."""

    daemon_threads = False

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        super().__init__(("127.0.0.1", 0), _Routes)


class _Routes(BaseHTTPRequestHandler):
    """HTTP/1.0 on purpose: a connection a request, so none is left open between two."""

    server: _Server
    timeout = 10

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        match url.path.strip("/").split("/"):
            case ["v2", "ep", "job-take", worker_id]:
                jobs = self.server.platform.take(worker_id, 1, self._client_gone)
                self._answer(jobs[0] if jobs else None)
            case ["v2", "ep", "job-take-batch", worker_id]:
                limit = int(parse_qs(url.query)["batch_size"][0])
                self._answer(self.server.platform.take(worker_id, limit, self._client_gone))
            case ["v2", "ep", "job-stop", _]:
                stops = self.server.platform.take_stops(self._client_gone)
                self._answer({"jobsToStop": stops} if stops else None)
            case ["v2", "ep", "ping", _]:
                self._answer({"status": "ok"})
            case _:
                self.send_error(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        match urlsplit(self.path).path.strip("/").split("/"):
            case ["v2", "ep", ("job-done" | "job-stream") as kind, _, *job_id]:
                try:
                    parsed = json.loads(body, parse_constant=_refuse)
                except ValueError as error:
                    self.send_error(HTTPStatus.BAD_REQUEST, str(error))
                    return
                # The SDK puts the id into the address as it is, slashes too.
                posted_for = unquote("/".join(job_id))
                self.server.platform.record(posted_for, parsed, stream=kind == "job-stream")
                self._answer({"status": "ok"})
            case _:
                self.send_error(HTTPStatus.NOT_FOUND)

    def _answer(self, body: dict[str, Any] | list[Any] | None) -> None:
        """Send JSON, or 204 for nothing. A worker that was killed meanwhile is no error."""
        with suppress(ConnectionError):
            if not body:
                self.send_response(HTTPStatus.NO_CONTENT)
                self.end_headers()
                return
            data = json.dumps(body).encode()
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    def _client_gone(self) -> bool:
        readable, _, _ = select.select([self.connection], [], [], 0)
        try:
            return bool(readable) and self.connection.recv(1, socket.MSG_PEEK) == b""
        except ConnectionError:
            return True

    def log_message(self, format: str, *args: Any) -> None:
        """Polls every second are noise: ``events`` is the record."""


def _refuse(constant: str) -> None:
    """NaN and Infinity are no JSON, though Python writes them."""
    raise ValueError(f"{constant} is not JSON")
