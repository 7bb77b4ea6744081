"""Who is watching a job, and what have they not seen yet?

A watcher gets the latest message of each type, a late one too: nothing is queued up behind a slow
reader. ``ended`` is the last message of a job.
Not covered: where the messages come from (dispatch), and how they get to a browser (api).
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any, Final

Message = dict[str, Any]

ENDED: Final = "ended"


class Watchers:
    """All jobs' watchers. For the event loop's thread alone."""

    def __init__(self) -> None:
        self.changed: Callable[[str, bool], None] = lambda job_id, watched: None
        """Called where a job gets its first watcher, or loses its last one."""
        self._latest: dict[str, dict[str, Message]] = {}
        self._watching: dict[str, set[_Watcher]] = {}

    def publish(self, job_id: str, message: Message) -> None:
        """Tell those who watch the job, and those who will."""
        latest = self._latest.setdefault(job_id, {})
        latest[message["type"]] = message
        for watcher in self._watching.get(job_id, ()):
            watcher.put(message)
        if message["type"] == ENDED:  # from now on the ledger knows
            del self._latest[job_id]

    def latest(self, job_id: str, kind: str) -> Message | None:
        """The newest message of a type about a job that has not ended."""
        return self._latest.get(job_id, {}).get(kind)

    @property
    def watched(self) -> tuple[str, ...]:
        """The jobs that somebody watches."""
        return tuple(self._watching)

    async def follow(self, job_id: str) -> AsyncGenerator[Message, None]:
        """What is known of the job now, and then what is new, until it has ended.

        For a job that has not ended: of one that has, there is nothing more to hear.
        """
        watcher = _Watcher()
        for message in self._latest.get(job_id, {}).values():
            watcher.put(message)
        others = self._watching.setdefault(job_id, set())
        others.add(watcher)
        if len(others) == 1:
            self.changed(job_id, True)
        try:
            while True:
                for message in await watcher.take():
                    yield message
                    if message["type"] == ENDED:
                        return
        finally:
            others.discard(watcher)
            if not others:
                del self._watching[job_id]
                self.changed(job_id, False)


class _Watcher:
    def __init__(self) -> None:
        self._new: dict[str, Message] = {}
        self._there = asyncio.Event()

    def put(self, message: Message) -> None:
        # Put at the end, so that messages of different types keep their order.
        self._new.pop(message["type"], None)
        self._new[message["type"]] = message
        self._there.set()

    async def take(self) -> list[Message]:
        await self._there.wait()
        self._there.clear()
        taken = list(self._new.values())
        self._new.clear()
        return taken
