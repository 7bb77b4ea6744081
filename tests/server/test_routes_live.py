"""Watching a job over real sockets: the latest first, every watcher to the end, nothing left."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from wan_worker.errors import Canceled, public
from wan_worker.queue.ledger import Entry, Ledger
from wan_worker.queue.watchers import Message
from wan_worker.server import app as api
from wan_worker.server import routes_live
from wan_worker.server.error_answers import Refusal
from wan_worker.server.shared import Parts
from wan_worker.settings import Settings

BASE = "/api/v1/generation"
ANSWER = {"status": "completed", "assets": [], "metadata": {}, "warnings": []}
KERNEL_BYTES = 300_000
PREVIEW = {"type": "preview", "number": 1, "step": 2, "content_type": "image/jpeg", "data": "eA=="}


def step(number: int) -> Message:
    return {"type": "progress", "status": "running", "stage": "denoise", "step": number}


class Server:
    """The live routes on a socket, over a ledger that a test writes; no engine."""

    def __init__(self, home: Path) -> None:
        self.parts = api.make_parts(Settings(state_dir=home))
        app = FastAPI()
        app.include_router(routes_live.router(self.parts))
        app.add_exception_handler(Refusal, lambda _, problem: problem.response())  # type: ignore
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        self._server = uvicorn.Server(
            uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=1)
        )
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.until(lambda: self._server.started)

    def _run(self) -> None:
        async def serve() -> None:
            self.loop = asyncio.get_running_loop()
            await self._server.serve(sockets=[self.listening])

        asyncio.run(serve())

    @property
    def ledger(self) -> Ledger:
        return self.parts.ledger

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        assert not self._thread.is_alive()
        self.listening.close()
        self.ledger.close()

    def do(self, act: Callable[[], Any]) -> Any:
        """In the server's own thread."""

        async def run() -> Any:
            return act()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(10)

    def publish(self, task_id: str, *messages: Message) -> None:
        for message in messages:
            self.do(lambda message=message: self.parts.watchers.publish(task_id, message))

    def complete(self, task_id: str) -> None:
        self.ledger.complete(task_id, ANSWER)
        self.publish(task_id, {"type": "ended", "status": "completed"})

    def submit(self, *task_ids: str) -> None:
        for task_id in task_ids:
            self.ledger.submit(task_id, {"prompt": "x"}, limit=10)

    def socket(self, task_id: str) -> ClientConnection:
        return connect(f"ws://127.0.0.1:{self.port}{BASE}/{task_id}/live", proxy=None)

    def events(self, task_id: str, **headers: str) -> tuple[HTTPConnection, HTTPResponse]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.request("GET", f"{BASE}/{task_id}/events", headers=headers)
        return connection, connection.getresponse()

    def watched(self) -> tuple[str, ...]:
        found: tuple[str, ...] = self.do(lambda: self.parts.watchers.watched)
        return found

    def tasks(self) -> int:
        count: int = self.do(lambda: len(asyncio.all_tasks()))
        return count

    def until(self, look: Callable[[], Any]) -> None:
        deadline = time.monotonic() + 20
        while not look():
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with closing(Server(tmp_path)) as found:
        yield found


def read(response: HTTPResponse) -> Iterator[Message]:
    """The messages of an event stream."""
    for line in response:
        if line.startswith(b"data: "):
            yield json.loads(line.removeprefix(b"data: "))


def heard(watching: ClientConnection) -> list[Message]:
    """All that is still to come, until the server closes."""
    return [json.loads(text) for text in watching]


def running(server: Server, task_id: str = "a") -> None:
    server.submit(task_id)
    assert server.ledger.start_next() == task_id


def test_a_websocket_hears_of_a_job_until_it_has_ended(server: Server) -> None:
    running(server)
    with server.socket("a") as watching:
        server.until(server.watched)
        for message in (step(1), PREVIEW, step(2)):
            server.publish("a", message)
            assert json.loads(watching.recv(10)) == message
        server.complete("a")
        (last,) = heard(watching)
        assert watching.close_code == 1000
    assert last == {"type": "ended", "task_id": "a", "status": "completed", "result": ANSWER}


def test_server_sent_events_carry_the_same_messages(server: Server) -> None:
    running(server)
    connection, response = server.events("a")
    with closing(connection), closing(response):
        assert response.headers["content-type"].startswith("text/event-stream")
        messages = read(response)
        server.until(server.watched)
        for message in (step(1), PREVIEW, step(2)):
            server.publish("a", message)
            assert next(messages) == message
        server.complete("a")
        assert list(messages) == [
            {"type": "ended", "task_id": "a", "status": "completed", "result": ANSWER}
        ]


def test_who_comes_late_gets_the_latest_of_each_first(server: Server) -> None:
    running(server)
    server.publish("a", step(1), PREVIEW, step(7))
    with server.socket("a") as watching:
        assert [json.loads(watching.recv(10)) for _ in range(2)] == [step(7), PREVIEW]
    connection, response = server.events("a")
    with closing(connection), closing(response):
        messages = read(response)
        assert [next(messages), next(messages)] == [step(7), PREVIEW]


def test_who_asks_about_a_job_that_has_ended_is_told_how(server: Server) -> None:
    running(server)
    error = public(Canceled("The job was cancelled"), "denoise")
    server.ledger.fail("a", error)
    expected = {"type": "ended", "task_id": "a", "status": "canceled", "error": error}
    with server.socket("a") as watching:
        assert heard(watching) == [expected]
    connection, response = server.events("a")
    with closing(connection), closing(response):
        assert list(read(response)) == [expected]


@pytest.mark.parametrize("how", ["socket", "events"])
def test_a_job_that_ends_while_somebody_comes_is_not_waited_for(
    server: Server, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    look = routes_live.entry_of
    error = public(Canceled("The job was cancelled"), "queue")

    def look_and_end(task_id: str, parts: Parts) -> Entry:
        entry = look(task_id, parts)
        if server.ledger.drop("a", error):
            server.parts.watchers.publish("a", {"type": "ended", "status": "canceled"})
        return entry

    monkeypatch.setattr(routes_live, "entry_of", look_and_end)
    server.submit("a")
    if how == "socket":
        with server.socket("a") as watching:
            last = json.loads(watching.recv(10))
    else:
        connection, response = server.events("a")
        with closing(connection), closing(response):
            last = next(read(response))
    assert last == {"type": "ended", "task_id": "a", "status": "canceled", "error": error}
    assert server.do(lambda: server.parts.watchers.latest("a", "progress")) is None


def test_a_browser_that_has_heard_the_end_is_told_to_stop_asking(server: Server) -> None:
    running(server)
    server.ledger.complete("a", ANSWER)
    connection, response = server.events("a")
    with closing(connection), closing(response):
        assert b"id: ended\ndata: " in response.read()
    connection, response = server.events("a", **{"Last-Event-ID": "ended"})
    with closing(connection):
        assert response.status == 204  # the one status at which an EventSource does not come back


def test_a_job_that_waits_says_how_many_are_before_it(server: Server) -> None:
    server.submit("a", "b", "c")
    with server.socket("c") as watching:
        first = json.loads(watching.recv(10))
        assert (first["status"], first["position"], first["task_id"]) == ("queued", 2, "c")
        server.ledger.start_next()
        server.do(server.parts.dispatcher._tell_positions)
        assert json.loads(watching.recv(10))["position"] == 1
    server.until(lambda: not server.watched())
    server.ledger.start_next()  # nobody watches: nobody is told
    with server.socket("c") as watching:
        assert json.loads(watching.recv(10))["position"] == 0


@pytest.mark.parametrize("how", ["socket", "events"])
def test_a_job_that_is_not_there_is_404(server: Server, how: str) -> None:
    if how == "socket":
        with pytest.raises(InvalidStatus) as refusal:
            server.socket("nobody")
        status, body = refusal.value.response.status_code, refusal.value.response.body
    else:
        connection, response = server.events("nobody")
        with closing(connection), closing(response):
            status, body = response.status, response.read()
    assert status == 404
    assert json.loads(body or b"")["error"]["code"] == "NOT_FOUND"


def test_a_silent_stream_says_that_it_is_still_there(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes_live, "QUIET_SECONDS", 0.05)
    running(server)
    connection, response = server.events("a")
    with closing(connection), closing(response):
        lines = [response.readline() for _ in range(6)]
        assert lines.count(b": still here\n") == 2
        server.publish("a", step(3))  # and goes on from there
        assert next(read(response)) == step(3)


def test_many_watch_one_job_and_all_hear_its_end(server: Server) -> None:
    running(server)
    with ExitStack() as stack:
        sockets = [stack.enter_context(server.socket("a")) for _ in range(40)]
        streams = [server.events("a") for _ in range(20)]
        server.publish("a", step(1))
        server.complete("a")
        ends = [heard(one)[-1] for one in sockets]
        ends += [list(read(response))[-1] for _, response in streams]
        for connection, response in streams:
            response.close()
            connection.close()
    assert [end["type"] for end in ends] == ["ended"] * 60


@pytest.mark.parametrize("politely", [True, False])
def test_who_leaves_leaves_nothing_behind(server: Server, politely: bool) -> None:
    running(server)
    before = server.tasks()
    for _ in range(10):
        with server.socket("a") as watching:
            connection, response = server.events("a")
            server.until(server.watched)
            if not politely:
                watching.socket.shutdown(socket.SHUT_RDWR)
        response.close()
        connection.close()
    server.until(lambda: not server.watched())
    server.until(lambda: server.tasks() <= before)
    server.publish("a", step(1))  # to nobody


def test_what_a_watcher_says_is_ignored(server: Server) -> None:
    running(server)
    with server.socket("a") as watching:
        server.until(server.watched)
        watching.send("cancel everything")
        watching.send(b"\x00\xff")
        watching.ping().wait(10)
        server.publish("a", step(1))
        assert json.loads(watching.recv(10)) == step(1)


def test_who_does_not_read_hears_the_latest_and_fills_no_memory(server: Server) -> None:
    running(server)
    large = "x" * 100_000
    # The kernel's share is bounded at both ends, and yet several segments wide: through a window
    # that is smaller than one, what is on its way would drip for minutes.
    server.listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BYTES)
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BYTES)
        slow.connect(("127.0.0.1", server.port))
        slow.sendall(
            f"GET {BASE}/a/events HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()
        )
        server.until(server.watched)
        count = 300
        for number in range(count):
            server.publish("a", PREVIEW | {"number": number, "data": large})
        server.complete("a")
        received = b"".join(iter(lambda: slow.recv(65536), b""))
    numbers = [
        json.loads(line[6:])["number"]
        for line in received.splitlines()
        if line.startswith(b'data: {"type": "preview"')
    ]
    assert numbers[-1] == count - 1
    assert len(numbers) < count / 10  # what the kernel's buffers took, and the last one
    assert b'"type": "ended"' in received
