"""The server's end of the engine, against engines that follow a script: each fault on its own."""

import asyncio
import errno
import sqlite3
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wan_worker.errors import ConfigInvalid
from wan_worker.queue import dispatch, engine_process
from wan_worker.queue.dispatch import Dispatcher
from wan_worker.queue.engine_process import NotReady
from wan_worker.queue.ledger import FILE, Entry, Ledger
from wan_worker.queue.watchers import Watchers
from wan_worker.settings import Settings

PREAMBLE = """
import json, os, signal, sys, time
sys.path.insert(0, {source!r})
from pathlib import Path
from wan_worker.queue.ledger import Ledger
ledger = Ledger(Path({path!r}))
def say(kind, **facts):
    print(json.dumps({{"say": kind}} | facts), flush=True)
def end(id, refresh=False):
    ledger.complete(id, {{"status": "completed", "assets": [], "warnings": []}})
    say("ended", id=id, refresh=refresh)
commands = (json.loads(line) for line in sys.stdin)
"""
OBEDIENT = """
say("ready")
for command in commands:
    if command["do"] == "run":
        end(command["id"])
"""


class Bench:
    """A dispatcher with an engine that is a script, and the ledger between them."""

    def __init__(
        self,
        folder: Path,
        script: str,
        pause: Callable[[float], Awaitable[None]] | None = None,
        **settings: Any,
    ) -> None:
        path = folder / FILE
        self.ledger, self.watchers = Ledger(path), Watchers()
        self.pauses: list[float] = []
        source = str(Path(dispatch.__file__).resolve().parents[2])
        code = PREAMBLE.format(source=source, path=str(path)) + script
        self.dispatcher = Dispatcher(
            replace(Settings(output_dir=folder), **settings),
            self.ledger,
            self.watchers,
            command=(sys.executable, "-c", code),
            pause=pause or self._pause,
        )

    async def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)

    def submit(self, *names: str) -> None:
        for name in names:
            self.ledger.submit(name, {"prompt": name}, 100)
        self.dispatcher.submitted()

    def find(self, name: str) -> Entry:
        found = self.ledger.find(name)
        assert found is not None
        return found

    async def until(self, look: Callable[[], Any]) -> None:
        async with asyncio.timeout(30):
            while not look():
                await asyncio.sleep(0.02)

    async def ended(self, *names: str) -> list[str]:
        await self.until(lambda: all(self.find(name).ended for name in names))
        return [self.find(name).status for name in names]


Play = Callable[[Bench], Awaitable[None]]


def play(bench: Bench, scene: Play) -> None:
    """Run the scene beside a running dispatcher, and stop it."""

    async def run() -> None:
        running = asyncio.create_task(bench.dispatcher.run())
        try:
            await scene(bench)
        finally:
            await bench.dispatcher.stop()
            await running
        assert bench.dispatcher.state == "stopped"

    asyncio.run(run())


def test_jobs_are_handed_out_one_after_the_other_in_order(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        bench.submit("c", "a", "b")
        assert await bench.ended("c", "a", "b") == ["completed"] * 3
        c, a, b = (bench.find(name) for name in "cab")
        assert (c.ended_at or 0) <= (a.started_at or 0)
        assert (a.ended_at or 0) <= (b.started_at or 0)

    play(Bench(tmp_path, OBEDIENT), scene)


def test_as_many_jobs_run_at_once_as_the_settings_say(tmp_path: Path) -> None:
    script = """
say("ready")
got = []
for command in commands:
    got.append(command["id"])
    if len(got) == 2:  # the first ends only when the second has come
        for id in got:
            end(id)
"""

    async def scene(bench: Bench) -> None:
        bench.submit("a", "b")
        assert await bench.ended("a", "b") == ["completed"] * 2

    play(Bench(tmp_path, script, worker_concurrency=2), scene)


def test_a_job_that_takes_the_engine_down_fails_and_the_next_one_is_served(tmp_path: Path) -> None:
    script = """
say("ready")
for command in commands:
    if ledger.request(command["id"])["prompt"] == "deadly":
        say("progress", id=command["id"], event={"stage": "denoise", "number": 3})
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)
    end(command["id"])
"""

    async def scene(bench: Bench) -> None:
        bench.submit("deadly", "next")
        assert await bench.ended("deadly", "next") == ["failed", "completed"]
        error = bench.find("deadly").error
        assert error is not None
        assert (error["code"], error["retryable"], error["stage"]) == ("INTERNAL", True, "denoise")
        assert "signal 9" in error["message"]
        assert bench.dispatcher.restarts == 1

    play(Bench(tmp_path, script), scene)


def test_an_engine_that_keeps_dying_is_started_less_and_less_often(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        await bench.until(lambda: len(bench.pauses) >= 8)
        assert bench.pauses[:6] == sorted(set(bench.pauses[:6]))
        assert bench.pauses[5:8] == [dispatch.PAUSES[-1]] * 3
        assert bench.dispatcher.state == "restarting"

    play(Bench(tmp_path, "sys.exit(3)"), scene)


def test_an_engine_that_can_not_be_started_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = [OSError(errno.EAGAIN, "no process"), OSError(errno.ENOMEM, "no memory")]

    async def start(command: Sequence[str]) -> engine_process.EngineProcess:
        if faults:
            raise faults.pop()
        return await engine_process.start(command)

    monkeypatch.setattr(dispatch, "start", start)

    async def scene(bench: Bench) -> None:
        bench.submit("a")
        assert await bench.ended("a") == ["completed"]
        assert bench.pauses == list(dispatch.PAUSES[:2])

    play(Bench(tmp_path, OBEDIENT), scene)


def test_an_engine_that_dies_of_every_job_gets_the_next_one_later_and_later(tmp_path: Path) -> None:
    script = """
say("ready")
for command in commands:
    sys.exit(1)
"""

    async def scene(bench: Bench) -> None:
        bench.submit("a", "b", "c")
        assert await bench.ended("a", "b", "c") == ["failed"] * 3
        await bench.until(lambda: len(bench.pauses) == 3)
        assert bench.pauses == list(dispatch.PAUSES[:3])

    play(Bench(tmp_path, script), scene)


def test_a_ledger_that_can_not_be_written_ends_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_process, "STOP_SECONDS", 0.3)
    bench = Bench(tmp_path, OBEDIENT)

    async def run() -> None:
        running = asyncio.create_task(bench.dispatcher.run())
        await bench.until(lambda: bench.dispatcher.state == "ready")
        bench.ledger.submit("a", {}, 9)
        bench.ledger.close()
        with pytest.raises(sqlite3.Error):
            bench.dispatcher.submitted()
        bench.dispatcher._engine.leave()  # type: ignore[union-attr]
        async with asyncio.timeout(30):
            await running

    with pytest.raises(ConfigInvalid, match="the ledger can't be used"):
        asyncio.run(run())


def test_an_engine_that_can_not_be_understood_is_replaced(tmp_path: Path) -> None:
    script = """
say("ready")
for command in commands:
    if ledger.request(command["id"])["prompt"] == "babble":
        print("Loading weights: 100%", flush=True)
    else:
        end(command["id"])
"""

    async def scene(bench: Bench) -> None:
        bench.submit("babble", "next")
        assert await bench.ended("babble", "next") == ["failed", "completed"]

    play(Bench(tmp_path, script), scene)


def test_an_engine_that_finds_the_environment_wrong_ends_the_server(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 'say("unfit", error={"message": "DEFAULT_MODEL: wrong"})')
    with pytest.raises(ConfigInvalid, match="DEFAULT_MODEL: wrong"):
        asyncio.run(bench.dispatcher.run())


def test_an_engine_that_can_not_be_trusted_is_replaced_when_its_other_jobs_are_done(
    tmp_path: Path,
) -> None:
    script = f"""
say("ready")
born = (Path({str(tmp_path)!r}) / "born")
first = not born.exists()
born.touch()
got = []
for command in commands:
    got.append(command["id"])
    if first and len(got) == 2:
        end(got[0], refresh=True)
        time.sleep(0.3)
        end(got[1])
    elif not first:
        end(got[-1])
"""

    async def scene(bench: Bench) -> None:
        bench.submit("a", "b", "c")
        assert await bench.ended("a", "b", "c") == ["completed"] * 3
        assert (bench.find("b").ended_at or 0) <= (bench.find("c").started_at or 0)
        assert bench.dispatcher.restarts == 1

    play(Bench(tmp_path, script, worker_concurrency=2), scene)


def test_a_job_that_does_not_end_when_it_is_cancelled_is_ended_with_its_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "GRACE_SECONDS", 0.3)
    script = """
say("ready")
for command in commands:
    if command["do"] == "run" and ledger.request(command["id"])["prompt"] != "deaf":
        end(command["id"])
"""

    async def scene(bench: Bench) -> None:
        bench.submit("deaf", "next")
        await bench.until(lambda: bench.find("deaf").status == "running")
        assert bench.dispatcher.canceling("deaf") is False
        assert bench.dispatcher.cancel(bench.find("deaf")) is True
        assert bench.dispatcher.canceling("deaf") is True
        assert await bench.ended("deaf", "next") == ["canceled", "completed"]

    play(Bench(tmp_path, script), scene)


def test_a_job_is_cancelled_whose_engine_is_just_ending(tmp_path: Path) -> None:
    script = """
say("ready")
for command in commands:
    os.close(1)  # nothing more is said, but the process is there
    time.sleep(1)
    sys.exit(1)
"""

    async def scene(bench: Bench) -> None:
        bench.submit("a", "next")
        await bench.until(lambda: bench.dispatcher._engine and bench.dispatcher._engine.silent)
        assert bench.dispatcher.cancel(bench.find("a")) is True
        with pytest.raises(NotReady):
            await bench.dispatcher.ask({"report": "health"})
        assert bench.find("next").status == "queued"
        assert await bench.ended("a") == ["canceled"]

    play(Bench(tmp_path, script), scene)


def test_a_job_that_does_not_see_its_deadline_is_ended_with_its_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "GRACE_SECONDS", -0.7)
    script = """
say("ready")
for command in commands:
    pass
"""

    async def scene(bench: Bench) -> None:
        bench.submit("late")
        assert await bench.ended("late") == ["failed"]
        error = bench.find("late").error
        assert error is not None
        assert error["code"] == "DEADLINE"

    play(Bench(tmp_path, script, job_timeout_seconds=1), scene)


def test_a_question_is_answered_or_the_engine_is_not_ready(tmp_path: Path) -> None:
    script = """
say("ready")
for command in commands:
    if command["input"]["report"] == "deadly":
        sys.exit(1)
    say("answer", number=command["number"], answer={"asked": command["input"]})
"""

    async def scene(bench: Bench) -> None:
        with pytest.raises(NotReady):
            await bench.dispatcher.ask({"report": "health"})  # it is only starting
        await bench.until(lambda: bench.dispatcher.state == "ready")
        both = [bench.dispatcher.ask({"report": name}) for name in ("models", "health")]
        answers = await asyncio.gather(*both)
        assert [a["asked"] for a in answers] == [
            {"mode": "info", "report": "models"},
            {"mode": "info", "report": "health"},
        ]
        with pytest.raises(NotReady):
            await bench.dispatcher.ask({"report": "deadly"})

    play(Bench(tmp_path, script), scene)


def test_a_question_that_is_not_answered_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_process, "ASK_SECONDS", 0.2)

    async def scene(bench: Bench) -> None:
        await bench.until(lambda: bench.dispatcher.state == "ready")
        with pytest.raises(NotReady):
            await bench.dispatcher.ask({"report": "health"})

    play(Bench(tmp_path, 'say("ready")\nfor command in commands: pass'), scene)


def test_an_answer_that_was_not_recorded_is_a_failure(tmp_path: Path) -> None:
    script = """
say("ready")
for command in commands:
    say("ended", id=command["id"], refresh=False)
"""

    async def scene(bench: Bench) -> None:
        bench.submit("a")
        assert await bench.ended("a") == ["failed"]

    play(Bench(tmp_path, script), scene)


def test_an_answer_that_was_not_recorded_is_made_from_its_manifest(tmp_path: Path) -> None:
    script = f"""
from wan_worker.delivery import storage
say("ready")
for command in commands:
    folder = Path({str(tmp_path)!r}) / storage.job_folder(command["id"])
    folder.mkdir(parents=True)
    (folder / storage.MANIFEST).write_text('{{"status": "completed", "assets": []}}')
    say("ended", id=command["id"], refresh=False)
"""

    async def scene(bench: Bench) -> None:
        bench.submit("a")
        assert await bench.ended("a") == ["completed"]
        assert bench.find("a").answer == {"status": "completed", "assets": []}

    play(Bench(tmp_path, script), scene)


@pytest.mark.parametrize(("canceled", "status"), [(False, "failed"), (True, "canceled")])
def test_a_job_that_the_servers_stop_ended_says_so(
    tmp_path: Path, canceled: bool, status: str
) -> None:
    script = """
say("ready")
got = []
for command in commands:
    if command["do"] == "run":
        got.append(command["id"])
        say("progress", id=command["id"], event={"stage": "denoise", "number": 3})
for id in got:  # the line has closed: as the engine does, nothing is recorded
    say("ended", id=id, refresh=False)
"""

    async def scene(bench: Bench) -> None:
        bench.submit("a")
        await bench.until(lambda: bench.watchers.latest("a", "progress"))
        if canceled:
            assert bench.dispatcher.cancel(bench.find("a"))

    bench = Bench(tmp_path, script)
    play(bench, scene)
    entry = bench.find("a")
    assert entry.error is not None
    assert (entry.status, entry.error["stage"]) == (status, "denoise")
    assert canceled or entry.error["message"] == dispatch.LOST.message


def test_the_engine_hears_of_watchers_before_and_after_the_job_starts(tmp_path: Path) -> None:
    script = """
say("ready")
for command in commands:
    if command["do"] == "watch":
        state = "on" if command["on"] else "off"
        say("preview", id=command["id"], number=1, step=1, data=state)
        if state == "off":
            end(command["id"])
"""

    async def scene(bench: Bench) -> None:
        bench.submit("a")
        following = bench.watchers.follow("a")
        message = await anext(following)
        while message["type"] != "preview":
            message = await anext(following)
        assert message == {"type": "preview", "number": 1, "step": 1, "data": "on"}
        await following.aclose()  # type: ignore[attr-defined]
        assert await bench.ended("a") == ["completed"]

    play(Bench(tmp_path, script), scene)


def test_who_watches_a_waiting_job_sees_it_move_up(tmp_path: Path) -> None:
    script = """
say("ready")
for command in commands:
    if command["do"] == "run":
        time.sleep(0.2)
        end(command["id"])
"""

    async def scene(bench: Bench) -> None:
        bench.submit("a", "b", "c")
        seen = []
        async for message in bench.watchers.follow("c"):
            if message["type"] == "progress":
                seen.append(message["position"])
        assert seen == sorted(seen, reverse=True)
        assert 0 in seen
        assert message == {"type": "ended", "status": "completed"}

    play(Bench(tmp_path, script), scene)


def test_stopping_does_not_wait_for_a_pause_to_end(tmp_path: Path) -> None:
    async def pause(seconds: float) -> None:
        bench.pauses.append(seconds)
        await asyncio.sleep(1_000)

    bench = Bench(tmp_path, "sys.exit(3)", pause)

    async def scene(bench: Bench) -> None:
        await bench.until(lambda: bench.pauses)

    play(bench, scene)


def test_stopping_while_the_engine_starts_leaves_nobody(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        await asyncio.sleep(0)  # the process is being made, and nobody has it yet

    play(Bench(tmp_path, OBEDIENT), scene)


def test_stopping_ends_an_engine_that_does_not_listen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_process, "STOP_SECONDS", 0.3)
    bench = Bench(tmp_path, 'say("ready")\nwhile True: time.sleep(1)')

    async def scene(bench: Bench) -> None:
        bench.submit("a")
        await bench.until(lambda: bench.find("a").status == "running")

    play(bench, scene)
    entry = bench.find("a")
    assert entry.status == "failed"
    assert entry.error is not None
    assert entry.error["retryable"] is True
