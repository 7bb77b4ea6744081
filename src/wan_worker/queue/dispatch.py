"""Who works off the queue? The server's end of the engine: one job after the other, and restarts.

The engine (a process of its own) is handed the job that has waited longest whenever it has a hand
free. Where it dies, its jobs are failed, in words that say so and as worth another try, and it is
started again, after a pause that grows while it keeps dying. Where an answer says that it can't be
trusted further, it is replaced once its other jobs are done. One that ignores a cancel or a
deadline is killed.
Not covered: what a job does (job), and what is kept of it (ledger).
"""

import asyncio
import logging
import sqlite3
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Literal

from wan_worker import logs
from wan_worker.errors import (
    Canceled,
    ConfigInvalid,
    DeadlineExceeded,
    UnexpectedError,
    WorkerError,
    public,
)
from wan_worker.queue import lost_jobs
from wan_worker.queue.calibrations import Calibrations, Order
from wan_worker.queue.engine_process import EngineProcess, NotReady, Running, start
from wan_worker.queue.ledger import Entry, Ledger
from wan_worker.queue.watchers import ENDED, Watchers
from wan_worker.settings import Settings

log = logging.getLogger(__name__)

State = Literal["starting", "ready", "restarting", "unfit", "stopped"]

COMMAND: Final = (sys.executable, "-m", "wan_worker.queue.engine")
GRACE_SECONDS: Final = 120.0
"""For a job to notice that it was cancelled: one step of the largest clip takes about a minute."""

PAUSES: Final = (0.5, 1.0, 2.0, 5.0, 15.0, 30.0)
"""Seconds before a start, after so many ends without a job in between."""

LOST: Final = UnexpectedError("The server stopped while this job ran; submit it again")


class Dispatcher:
    """For the event loop's thread alone.

    Args:
        pause: waits so many seconds, before a start.
    """

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        watchers: Watchers,
        command: Sequence[str] = COMMAND,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._watchers = watchers
        watchers.changed = self._watch
        self._command = command
        self._pause = pause
        self._engine: EngineProcess | None = None
        self._stop = asyncio.Event()
        self.state: State = "starting"
        self.restarted_at: deque[float] = deque(maxlen=100)
        """The last times, in seconds since 1970."""
        self.restarts = 0
        self.calibrations = Calibrations()
        self.problem: str | None = None
        """Why the engine is not there."""

    async def run(self) -> None:
        """Keep an engine until ``stop``.

        Raises:
            ConfigInvalid: the first one finds the environment wrong, or the ledger can't be
                written any more.
        """
        try:
            await self._keep()
        except sqlite3.Error as problem:
            self.problem = f"STATE_DIR: the ledger can't be used ({problem})"
            raise ConfigInvalid(self.problem) from problem
        finally:
            self.state = "stopped"

    async def _keep(self) -> None:
        self.recover()
        failures, once_ready = 0, False
        while not self._stop.is_set():
            engine = await self._live()
            if self._stop.is_set():
                break
            once_ready = once_ready or (engine is not None and engine.ready)
            if self.state == "unfit" and not once_ready:
                raise ConfigInvalid(self.problem or "")
            failures = 1 if engine is not None and engine.served else failures + 1
            self.restarts += 1
            self.restarted_at.append(time.time())
            if self.state != "unfit":
                self.state = "restarting"
            await self._rest(PAUSES[min(failures, len(PAUSES)) - 1])

    def recover(self) -> None:
        """Say what became of the jobs that were running when the last server ended."""
        for entry in self._ledger.running():
            self._lose(entry.id, LOST)

    async def stop(self) -> None:
        """Cancel what runs, and see the engine out."""
        self._stop.set()
        engine = self._engine
        if engine is None:
            return
        engine.leave()
        await engine.ended()

    def submitted(self) -> None:
        """There is a job in the ledger."""
        self._hand_out()

    def cancel(self, entry: Entry) -> bool:
        """End a waiting job, or ask the engine to; False where the job has ended."""
        gone = Canceled("The job was cancelled while it waited")
        if entry.status == "queued" and self._ledger.drop(entry.id, public(gone, "queue")):
            self._watchers.publish(entry.id, {"type": ENDED, "status": "canceled"})
            self._tell_positions()
            return True
        engine = self._engine
        if engine is None or entry.id not in engine.jobs:
            return False
        running = engine.jobs[entry.id]
        if not running.canceled:
            running.canceled = True
            engine.tell("cancel", id=entry.id)
            self._see_to_it(engine, entry.id, GRACE_SECONDS)
        return True

    def canceling(self, job_id: str) -> bool:
        """Whether the engine was asked to end a job that it still has."""
        running = None if self._engine is None else self._engine.jobs.get(job_id)
        return running is not None and running.canceled

    async def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """What job.run answers to ``mode: info``.

        Raises:
            NotReady: the engine is not there, or does not answer.
        """
        if self._engine is None:
            raise NotReady
        return await self._engine.ask(question)

    async def _rest(self, seconds: float) -> None:
        """Wait so long, or until the server stops."""
        both = [
            asyncio.ensure_future(self._pause(seconds)),
            asyncio.ensure_future(self._stop.wait()),
        ]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        for each in both:
            each.cancel()

    def measure(self, model: str) -> Order:
        """Have the engine find the fastest way for a model, between the jobs.

        Raises:
            NotReady: the engine is not there.
        """
        engine = self._engine
        if engine is None or not engine.ready or engine.leaving:
            raise NotReady
        engine.tell("measure", model=model)
        return self.calibrations.begin(model)

    def stop_measuring(self) -> None:
        """Have the engine give it up, within a step."""
        if self._engine is not None:
            self._engine.tell("stop measuring")

    async def _live(self) -> EngineProcess | None:
        """One engine from its start to its end; None where there was none."""
        try:
            engine = self._engine = await start(self._command)
        except OSError as problem:  # no memory or no process to be had: it passes
            log.error("the engine can't be started: %s", problem)
            return None
        if self._stop.is_set():  # meanwhile, when there was nobody to tell
            engine.kill()
        try:
            await self._listen(engine)
        except sqlite3.Error:
            raise
        except Exception:  # a line that is none
            log.exception("the engine can't be understood")
            engine.leave()
        finally:
            engine.silent = True
            code = await engine.ended()
            self._engine = None
            self._bury(engine, code)
        return engine

    async def _listen(self, engine: EngineProcess) -> None:
        while (message := await engine.hear()) is not None:
            match message.pop("say"):
                case "ready":
                    engine.ready, self.state, self.problem = True, "ready", None
                    self._hand_out()
                case "unfit":
                    self.state, self.problem = "unfit", message["error"]["message"]
                    log.error("the engine can't start: %s", self.problem)
                case "progress":
                    self._progress(engine, message["id"], message["event"])
                case "preview":
                    if message["id"] in engine.jobs:
                        self._watchers.publish(message.pop("id"), {"type": "preview"} | message)
                case "answer":
                    engine.answered(message["number"], message["answer"])
                case "measured":
                    self.calibrations.heard(message)
                case "ended":
                    self._ended(engine, message["id"], message["refresh"])

    def _progress(self, engine: EngineProcess, job_id: str, event: dict[str, Any]) -> None:
        if job_id in engine.jobs:
            about = {"type": "progress", "task_id": job_id, "status": "running", "position": None}
            self._watchers.publish(job_id, about | event)

    def _ended(self, engine: EngineProcess, job_id: str, refresh: bool) -> None:
        running = engine.jobs.pop(job_id, None)
        engine.served = True
        entry = self._ledger.find(job_id)
        if entry is not None and not entry.ended:
            # A stop ended it, or its answer could not be recorded: its files may be there.
            unrecorded = "The job's answer could not be recorded; see the server's log"
            error = LOST if self._stop.is_set() else UnexpectedError(unrecorded)
            self._lose(job_id, (running and _meant(running)) or error)
        elif entry is not None:
            self._watchers.publish(job_id, {"type": ENDED, "status": entry.status})
        engine.leaving = engine.leaving or refresh
        if engine.leaving and not engine.jobs:
            engine.leave()
        else:
            self._hand_out()

    def _hand_out(self) -> None:
        """Give the engine as many jobs as it has hands for."""
        engine = self._engine
        if engine is None or not engine.ready or engine.leaving or engine.silent:
            return
        if self._stop.is_set():
            return
        handed = False
        while len(engine.jobs) < self._settings.worker_concurrency:
            job_id = self._ledger.start_next()
            if job_id is None:
                break
            handed = True
            engine.jobs[job_id] = Running()
            engine.tell("run", id=job_id)
            if job_id in self._watchers.watched:
                engine.tell("watch", id=job_id, on=True)
            if self._settings.job_timeout_seconds is not None:
                limit = self._settings.job_timeout_seconds + GRACE_SECONDS
                self._see_to_it(engine, job_id, limit)
        if handed:
            self._tell_positions()

    def _watch(self, job_id: str, watched: bool) -> None:
        """Somebody looks at a job now, or nobody does any more."""
        if self._engine is not None and job_id in self._engine.jobs:
            self._engine.tell("watch", id=job_id, on=watched)

    def tell_position(self, entry: Entry) -> None:
        """Tell those who watch a waiting job how many are before it."""
        about = {"task_id": entry.id, "status": "queued", "position": self._ledger.ahead(entry)}
        message = {"type": "progress", "stage": "queue", "number": 0} | about
        self._watchers.publish(entry.id, message)

    def _tell_positions(self) -> None:
        for job_id in self._watchers.watched:
            entry = self._ledger.find(job_id)
            if entry is not None and entry.status == "queued":
                self.tell_position(entry)

    def _see_to_it(self, engine: EngineProcess, job_id: str, seconds: float) -> None:
        """Kill the engine if the job is still there by then."""

        def look() -> None:
            running = engine.jobs.get(job_id)
            if running is not None and not running.canceled:
                running.overdue = DeadlineExceeded(
                    "The job's time was up, and it did not end by itself; ask for fewer steps, "
                    "frames or pixels, or raise JOB_TIMEOUT_SECONDS"
                )
            if running is not None:
                log.error("job %s does not end; the engine is killed", job_id)
                engine.kill()

        asyncio.get_running_loop().call_later(seconds, look)

    def _bury(self, engine: EngineProcess, code: int) -> None:
        """Fail what an engine that is gone had been given."""
        self.calibrations.lost()
        why = f"by signal {-code}" if code < 0 else f"with status {code}"
        if self._stop.is_set():
            error = LOST
        else:
            if engine.jobs or not engine.leaving:
                log.error("the engine ended %s", why)
            memory = ", mostly for lack of memory" if code == -9 else ""
            error = UnexpectedError(
                f"The process that ran this job ended {why}{memory}; submit it again"
            )
        for job_id, running in engine.jobs.items():
            self._lose(job_id, _meant(running) or error)

    def _lose(self, job_id: str, error: WorkerError) -> None:
        """Record the end of a job in the engine's place: its answer, if it had come to that."""
        stage = (self._watchers.latest(job_id, "progress") or {}).get("stage", "queue")
        answer = lost_jobs.answer(job_id, self._settings.output_dir)
        if answer is not None:
            self._ledger.complete(job_id, answer)
        elif self._ledger.fail(job_id, public(error, stage)):
            with logs.of_job(job_id, lambda: stage):
                log.warning("job %s: %s: %s", job_id, error.code, error.message)
        entry = self._ledger.find(job_id)
        if entry is not None:
            self._watchers.publish(job_id, {"type": ENDED, "status": entry.status})


def _meant(running: Running) -> WorkerError | None:
    """Why a job was to end, where it was."""
    return Canceled("The job was cancelled") if running.canceled else running.overdue
