"""Who runs the queued jobs? The dispatcher gives them to the engine, and restarts the engine.

The engine is a separate process. Whenever it has room, it gets the job that has waited longest. If
the engine dies, its jobs fail with a message that says so and can be tried again. Then the engine
is started again, after a pause that grows while it keeps dying. If a job's answer says that the
engine needs a refresh, it is replaced as soon as its other jobs are done. An engine that ignores a
cancel or a deadline is killed.
Not covered: what a job does (job), and what is stored of it (ledger).
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
"""Time for a job to react to a cancel: one step of the largest clip takes about a minute."""

PAUSES: Final = (0.5, 1.0, 2.0, 5.0, 15.0, 30.0)
"""Seconds before a restart; the pause grows with each end that follows no finished job."""

LOST: Final = UnexpectedError("The server stopped while this job ran; submit it again")


class Dispatcher:
    """Used only by the event loop's thread.

    Args:
        pause: waits for a number of seconds, before a restart.
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
        """Times of the latest restarts, in seconds since 1970."""
        self.restarts = 0
        self.calibrations = Calibrations()
        self.problem: str | None = None
        """Why the engine can't start."""

    async def run(self) -> None:
        """Keep an engine running until ``stop``.

        Raises:
            ConfigInvalid: the first engine finds the environment wrong, or the ledger can no
                longer be written.
        """
        try:
            await self._keep_engine()
        except sqlite3.Error as problem:
            self.problem = f"STATE_DIR: the ledger can't be used ({problem})"
            raise ConfigInvalid(self.problem) from problem
        finally:
            self.state = "stopped"

    async def _keep_engine(self) -> None:
        self.recover()
        failures, once_ready = 0, False
        while not self._stop.is_set():
            engine = await self._run_engine()
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
            await self._wait(PAUSES[min(failures, len(PAUSES)) - 1])

    def recover(self) -> None:
        """Record the end of jobs that were running when the last server ended."""
        for entry in self._ledger.running():
            self._record_lost(entry.id, LOST)

    async def stop(self) -> None:
        """Cancel the running jobs, and wait for the engine's end."""
        self._stop.set()
        engine = self._engine
        if engine is None:
            return
        engine.leave()
        await engine.ended()

    def submitted(self) -> None:
        """Called when there is a new job in the ledger."""
        self._hand_out()

    def cancel(self, entry: Entry) -> bool:
        """End a waiting job, or tell the engine to end a running one; False if it has ended."""
        canceled = Canceled("The job was cancelled while it waited")
        if entry.status == "queued" and self._ledger.drop(entry.id, public(canceled, "queue")):
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
            self._kill_after(engine, entry.id, GRACE_SECONDS)
        return True

    def canceling(self, job_id: str) -> bool:
        """Whether the engine still has the job and was told to end it."""
        running = None if self._engine is None else self._engine.jobs.get(job_id)
        return running is not None and running.canceled

    async def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """The answer of job.run to ``mode: info``.

        Raises:
            NotReady: the engine is not running, or does not answer.
        """
        if self._engine is None:
            raise NotReady
        return await self._engine.ask(question)

    async def _wait(self, seconds: float) -> None:
        """Wait for this time, or until the server stops."""
        tasks = [
            asyncio.ensure_future(self._pause(seconds)),
            asyncio.ensure_future(self._stop.wait()),
        ]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()

    def measure(self, model: str) -> Order:
        """Tell the engine to find the fastest way for a model, between the jobs.

        Raises:
            NotReady: the engine is not ready.
        """
        engine = self._engine
        if engine is None or not engine.ready or engine.leaving:
            raise NotReady
        engine.tell("measure", model=model)
        return self.calibrations.begin(model)

    def stop_measuring(self) -> None:
        """Tell the engine to stop measuring; it stops within a step."""
        if self._engine is not None:
            self._engine.tell("stop measuring")

    async def _run_engine(self) -> EngineProcess | None:
        """Run one engine from its start to its end; None if it could not be started."""
        try:
            engine = self._engine = await start(self._command)
        except OSError as problem:  # out of memory or processes for now
            log.error("the engine can't be started: %s", problem)
            return None
        if self._stop.is_set():  # stop was called during the start, before there was an engine
            engine.kill()
        try:
            await self._listen(engine)
        except sqlite3.Error:
            raise
        except Exception:  # a line that is not a message
            log.exception("the engine can't be understood")
            engine.leave()
        finally:
            engine.silent = True
            code = await engine.ended()
            self._engine = None
            self._fail_jobs(engine, code)
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
            # A stop ended it, or its answer could not be recorded; its files may still exist.
            unrecorded = "The job's answer could not be recorded; see the server's log"
            loss = LOST if self._stop.is_set() else UnexpectedError(unrecorded)
            self._record_lost(job_id, (running and _intended_end(running)) or loss)
        elif entry is not None:
            self._watchers.publish(job_id, {"type": ENDED, "status": entry.status})
        engine.leaving = engine.leaving or refresh
        if engine.leaving and not engine.jobs:
            engine.leave()
        else:
            self._hand_out()

    def _hand_out(self) -> None:
        """Give the engine as many jobs as it has room for."""
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
                self._kill_after(engine, job_id, limit)
        if handed:
            self._tell_positions()

    def _watch(self, job_id: str, watched: bool) -> None:
        """Tell the engine that a job has its first watcher, or no watcher any more."""
        if self._engine is not None and job_id in self._engine.jobs:
            self._engine.tell("watch", id=job_id, on=watched)

    def tell_position(self, entry: Entry) -> None:
        """Tell the watchers of a waiting job how many jobs are before it."""
        about = {"task_id": entry.id, "status": "queued", "position": self._ledger.ahead(entry)}
        message = {"type": "progress", "stage": "queue", "number": 0} | about
        self._watchers.publish(entry.id, message)

    def _tell_positions(self) -> None:
        for job_id in self._watchers.watched:
            entry = self._ledger.find(job_id)
            if entry is not None and entry.status == "queued":
                self.tell_position(entry)

    def _kill_after(self, engine: EngineProcess, job_id: str, seconds: float) -> None:
        """Kill the engine if it still has the job after this time."""

        def kill_if_running() -> None:
            running = engine.jobs.get(job_id)
            if running is not None and not running.canceled:
                running.overdue = DeadlineExceeded(
                    "The job's time was up, and it did not end by itself; ask for fewer steps, "
                    "frames or pixels, or raise JOB_TIMEOUT_SECONDS"
                )
            if running is not None:
                log.error("job %s does not end; the engine is killed", job_id)
                engine.kill()

        asyncio.get_running_loop().call_later(seconds, kill_if_running)

    def _fail_jobs(self, engine: EngineProcess, code: int) -> None:
        """Fail the jobs of an engine that has ended."""
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
            self._record_lost(job_id, _intended_end(running) or error)

    def _record_lost(self, job_id: str, error: WorkerError) -> None:
        """Record the end of a job for a dead engine: its answer if it finished, else the error."""
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


def _intended_end(running: Running) -> WorkerError | None:
    """Why a job was told to end; None if it was not."""
    return Canceled("The job was cancelled") if running.canceled else running.overdue
