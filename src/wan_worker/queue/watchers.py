"""Who is watching a job, and which messages have they not seen yet?

A watcher gets the latest message of each type, even if it joins late. Older messages are dropped,
so that none pile up for a slow reader. ``ended`` is the last message of a job.
Not covered: where messages come from (dispatch), and how a browser gets them (server.routes_live).
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any, Final

Message = dict[str, Any]

ENDED: Final = "ended"


class Watchers:
    """The watchers of all jobs. Used only by the event loop's thread."""

    def __init__(self) -> None:
        self.changed: Callable[[str, bool], None] = lambda job_id, watched: None
        """Called when a job gets its first watcher, or loses its last one."""
        self._latest: dict[str, dict[str, Message]] = {}
        self._watching: dict[str, set[_Watcher]] = {}

    def publish(self, job_id: str, message: Message) -> None:
        """Send a message to the job's watchers, and keep it for later ones."""
        latest = self._latest.setdefault(job_id, {})
        latest[message["type"]] = message
        for watcher in self._watching.get(job_id, ()):
            watcher.put(message)
        if message["type"] == ENDED:  # the ledger has the end
            del self._latest[job_id]

    def latest(self, job_id: str, kind: str) -> Message | None:
        """The newest message of a type about a job that has not ended."""
        return self._latest.get(job_id, {}).get(kind)

    @property
    def watched(self) -> tuple[str, ...]:
        """The jobs that somebody watches."""
        return tuple(self._watching)

    async def follow(self, job_id: str) -> AsyncGenerator[Message, None]:
        """The latest messages about the job, and then each new one, until it has ended.

        Only for a job that has not ended: an ended job has no more messages.
        """
        watcher = _Watcher()
        for message in self._latest.get(job_id, {}).values():
            watcher.put(message)
        watchers = self._watching.setdefault(job_id, set())
        watchers.add(watcher)
        if len(watchers) == 1:
            self.changed(job_id, True)
        try:
            while True:
                for message in await watcher.take():
                    yield message
                    if message["type"] == ENDED:
                        return
        finally:
            watchers.discard(watcher)
            if not watchers:
                del self._watching[job_id]
                self.changed(job_id, False)


class _Watcher:
    def __init__(self) -> None:
        self._new: dict[str, Message] = {}
        self._arrived = asyncio.Event()

    def put(self, message: Message) -> None:
        # Removed and added at the end, so that messages of different types keep their order.
        self._new.pop(message["type"], None)
        self._new[message["type"]] = message
        self._arrived.set()

    async def take(self) -> list[Message]:
        await self._arrived.wait()
        self._arrived.clear()
        taken = list(self._new.values())
        self._new.clear()
        return taken
