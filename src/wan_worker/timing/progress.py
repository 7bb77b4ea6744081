"""How far is the job, and should it stop? Events, previews, throttle, cancel and deadline.

One ``Control`` belongs to one job. The worker thread reports and checks; the event loop cancels and
reads the newest event. A report replaces the one before: a slow reader sees the latest, never a
queue. Clocks are monotonic, so a change of the machine's clock does not end a job. If the job was
estimated, the time left is the whole job's: by the estimate until a stage has a pace of its own,
then corrected by that pace.
Not covered: sending events to RunPod (handler), drawing previews (pipelines.previews).
"""

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from wan_worker import logs
from wan_worker.errors import Canceled, DeadlineExceeded
from wan_worker.timing import estimate as estimates
from wan_worker.timing.estimate import Estimate, StageTime

log = logging.getLogger(__name__)

PREVIEW_SECONDS: Final = 1.0
"""The least time between one preview and the next."""

PREVIEW_SHARE: Final = 0.05
"""The largest share of the job's time that drawing previews may take."""


@dataclass(frozen=True)
class Part:
    """Which of several things the job works on: ``first`` to ``last`` of ``count``, from 1."""

    name: str
    first: int
    last: int
    count: int

    def __str__(self) -> str:
        if self.first == self.last:
            return f"{self.name} {self.first} of {self.count}"
        return f"{self.name}s {self.first} to {self.last} of {self.count}"


@dataclass(frozen=True)
class Event:
    """One report. ``number`` grows by one each time, so that a reader can order reports."""

    number: int
    stage: str
    step: int | None = None
    steps: int | None = None
    seconds_left: float | None = None
    """Of the job, if it was estimated; otherwise of this stage, by its average pace so far."""
    parts: tuple[Part, ...] = ()

    def public(self) -> dict[str, Any]:
        """The event as the caller of /status sees it: only what is known."""
        body: dict[str, Any] = {"stage": self.stage, "number": self.number}
        where = ", ".join([self.stage, *map(str, self.parts)])
        for part in self.parts:
            body |= {part.name: part.first, f"{part.name}s": part.count, "message": where}
        if self.step is not None:
            body |= {"step": self.step, "steps": self.steps}
            body["message"] = f"{where}: step {self.step} of {self.steps}"
        if self.seconds_left is not None:
            body["seconds_left"] = round(self.seconds_left, 1)
        return body


@dataclass(frozen=True)
class Preview:
    """A small picture of how far the job is; ``number`` grows by one each time."""

    number: int
    stage: str
    step: int
    data: bytes
    """A JPEG file."""


class Viewer:
    """Draws previews for somebody who may watch a job: seldom, and never at the job's cost.

    Args:
        show: takes each preview, in the worker's thread.
        wanted: asked before drawing; False means that nobody is watching.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        show: Callable[[Preview], None],
        wanted: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._show = show
        self._wanted = wanted
        self._clock = clock
        self._number = 0
        self._next = clock()
        self._broken = False

    def offer(self, draw: Callable[[], bytes | None], stage: str, step: int) -> None:
        """Draw a preview and show it, if one is due. Never raises.

        Args:
            draw: returns a JPEG file, or None if there is nothing to see yet.
        """
        try:
            begun = self._clock()
            if self._broken or begun < self._next or not self._wanted():
                return
            data = draw()
            if data is None:
                return
            now = self._clock()
            self._next = now + max(PREVIEW_SECONDS, (now - begun) / PREVIEW_SHARE)
            self._number += 1
            self._show(Preview(self._number, stage, step, data))
        except Exception as problem:  # noqa: BLE001 (a preview must not cost the job)
            self._broken = True
            log.warning("previews stop: %s in stage %s", type(problem).__name__, stage)


class Control:
    """The connection between a job's thread and those who wait for the job.

    Args:
        seconds: the job's budget; None for no deadline.
        notify: called after each report, in the worker's thread.
        clock: monotonic seconds.
        viewer: draws previews; with None there are none.
    """

    def __init__(
        self,
        seconds: float | None = None,
        notify: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        viewer: Viewer | None = None,
    ) -> None:
        self.viewer = viewer
        self._clock = clock
        self._notify = notify
        self._canceled = threading.Event()
        self.started = clock()
        self._deadline = None if seconds is None else self.started + seconds
        self._stage_started = self.started
        self.latest = Event(0, "queue")
        self.parts: tuple[Part, ...] = ()
        """Which of several outputs and segments the job works on; every report repeats it."""
        self.timings: dict[str, float] = {}
        """Seconds spent in each stage that has ended."""
        self.estimate: Estimate | None = None
        self.stage_times: list[StageTime] = []
        """All stages since the estimate was made, in order."""
        self._steps: list[float] = []
        """When each step of this stage was done."""
        self._stage_index: int | None = None
        """The stage's place in the estimate; None if the estimate does not cover it."""
        self._paces: dict[str, float] = {}
        """Seconds over estimated seconds, by stage."""

    @property
    def stage(self) -> str:
        return self.latest.stage

    def cancel(self) -> None:
        """Ask the job to stop at its next check; may be called twice, from any thread."""
        self._canceled.set()

    def check(self) -> None:
        """Raise an error if the job should not go on.

        Raises:
            Canceled: somebody cancelled it.
            DeadlineExceeded: its time is up; the message names the stage.
        """
        if self._canceled.is_set():
            raise Canceled(f"The job was cancelled during {self.stage}")
        if self.seconds_left is not None and self.seconds_left <= 0:
            raise DeadlineExceeded(
                f"The job's time was up during {self.stage}; ask for fewer steps, frames or "
                "pixels, or raise JOB_TIMEOUT_SECONDS"
            )

    @property
    def seconds_left(self) -> float | None:
        """Until the deadline of the whole job; None without a deadline."""
        return None if self._deadline is None else self._deadline - self._clock()

    def extend(self, seconds: float) -> None:
        """Grant a late job this many seconds more, to save what it has finished."""
        if self._deadline is not None:
            self._deadline = max(self._deadline, self._clock() + seconds)

    def expect(self, estimate: Estimate) -> None:
        """Take an estimate for the job from here on; the time taken is compared with it."""
        self.close_stage()
        self.estimate, self.stage_times, self._stage_index = estimate, [], None

    def enter(self, stage: str) -> None:
        """Begin a stage: check, end the stage before, and report."""
        self.check()
        self.close_stage()
        self._advance(stage)
        left = self._left(stage, self._stage_started)
        self.latest = Event(self.latest.number + 1, stage, seconds_left=left, parts=self.parts)
        logs.event("stage", ", ".join([stage, *map(str, self.parts)]), seconds_left=left)
        self._notify()

    def close_stage(self) -> None:
        """Add the time since the current stage began to that stage."""
        now = self._clock()
        stage_time = self._stage_time(now)
        self.timings[stage_time.stage] = (
            self.timings.get(stage_time.stage, 0.0) + stage_time.seconds
        )
        self.stage_times.append(stage_time)
        if (
            self.estimate is not None
            and self._stage_index is not None
            and stage_time.stage != "check"
        ):
            estimated = self.estimate.stages[self._stage_index]
            self._paces[stage_time.stage] = estimates.pace(estimated, stage_time)
        self._stage_started = now
        self._steps = []

    def step(self, done: int, steps: int) -> None:
        """Report step ``done`` of ``steps`` within the stage, and check."""
        self.check()
        now = self._clock()
        self._steps.append(now)
        left = self._left(self.stage, now, steps)
        if left is None:
            left = (now - self._stage_started) / max(done, 1) * (steps - done)
        self.latest = Event(self.latest.number + 1, self.stage, done, steps, left, self.parts)
        self._notify()

    def _stage_time(self, now: float) -> StageTime:
        """The time spent in this stage, until now."""
        began = self._stage_started
        times = [began, *self._steps]
        steps = (after - before for before, after in pairwise(times))
        return StageTime(self.stage, now - began, tuple(steps))

    def _advance(self, stage: str) -> None:
        """Find the stage in the estimate, from the job's place on; a second try begins again."""
        if self.estimate is None or (stage == "check" and self._stage_index is not None):
            return  # a file's check counts as part of its making
        stages = [stage_estimate.stage for stage_estimate in self.estimate.stages]
        start = 0 if self._stage_index is None else self._stage_index + 1
        order = [*range(start, len(stages)), *range(start)]
        self._stage_index = next((index for index in order if stages[index] == stage), None)

    def _left(self, stage: str, now: float, steps: int = 0) -> float | None:
        if self.estimate is None or self._stage_index is None:
            return None
        stage_time = None if stage == "check" else self._stage_time(now)
        return estimates.left(
            self.estimate.stages, self._stage_index, stage_time, self._paces, steps
        )


class Relay:
    """Sends a job's newest event to the platform, in order and at most once a second.

    RunPod's ``progress_update`` starts a thread per call, so that updates overtake each other and
    can land after the result. Here one coroutine sends them one by one, and ``close`` returns when
    the last one has arrived.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        send: Callable[[dict[str, Any]], Awaitable[None]],
        interval: float = 1.0,
    ) -> None:
        self._loop = loop
        self._send = send
        self._interval = interval
        self._changed = asyncio.Event()
        self._sending = asyncio.Lock()

    def notify(self) -> None:
        """Report, from any thread, that there is a newer event."""
        self._loop.call_soon_threadsafe(self._changed.set)

    async def run(self, control: Control) -> None:
        """Send until cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            async with self._sending:
                try:
                    await self._send(control.latest.public())
                except Exception as problem:  # noqa: BLE001 (an update must not cost the job)
                    log.warning("a progress update was lost: %s", type(problem).__name__)
            await asyncio.sleep(self._interval)

    async def close(self, running: "asyncio.Task[None]", seconds: float = 5.0) -> None:
        """Stop sending. An update under way arrives first, unless it takes too long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._sending:
                running.cancel()
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
