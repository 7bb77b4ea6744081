"""The server's side of one engine process, from its start to its end: commands and questions.

Not covered: reacting to the engine's messages, and replacing the engine (dispatch).
"""

import asyncio
import json
import os
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final

from wan_worker.errors import WorkerError

ASK_SECONDS: Final = 30.0
STOP_SECONDS: Final = 10.0
"""Time for the engine to end after ``leave``: twice the time that it gives its jobs."""

LINE_BYTES: Final = 64 * 1024**2
"""Longest message from the engine."""


class NotReady(Exception):
    """The engine can't be asked now."""


@dataclass
class Running:
    """A job that the engine has."""

    canceled: bool = False
    overdue: WorkerError | None = None
    """Why the engine is being killed, if this job is the cause."""


@dataclass
class EngineProcess:
    """One process and its jobs. Used only by the event loop's thread."""

    process: Process
    jobs: dict[str, Running] = field(default_factory=dict)
    ready: bool = False
    served: bool = False
    """It has finished a job."""
    leaving: bool = False
    """It gets no more jobs."""
    silent: bool = False
    """It sends no more messages, because it is ending or has ended."""
    _questions: dict[int, asyncio.Future[dict[str, Any]]] = field(default_factory=dict)
    _numbers: "count[int]" = field(default_factory=count)

    def tell(self, what: str, **facts: Any) -> None:
        stdin = self.process.stdin
        if stdin is not None and not stdin.is_closing():
            stdin.write(json.dumps({"do": what} | facts).encode() + b"\n")

    async def hear(self) -> dict[str, Any] | None:
        """The next message; None after the last one.

        Raises:
            ValueError: a line that is not a message.
        """
        stdout = self.process.stdout
        assert stdout is not None  # noqa: S101 (a pipe was asked for)
        text = await stdout.readline()
        if not text:
            return None
        message = json.loads(text)
        if not isinstance(message, dict) or "say" not in message:
            raise ValueError("no message")
        return message

    async def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """The answer of job.run to ``mode: info``.

        Raises:
            NotReady: it is starting, or ends before it answers, or does not answer.
        """
        if not self.ready or self.silent:
            raise NotReady
        number = next(self._numbers)
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._questions[number] = future
        self.tell("ask", number=number, input={"mode": "info"} | dict(question))
        try:
            async with asyncio.timeout(ASK_SECONDS):
                return await future
        except TimeoutError:
            raise NotReady from None
        finally:
            del self._questions[number]

    def answered(self, number: int, answer: dict[str, Any]) -> None:
        future = self._questions.get(number)
        if future is not None and not future.done():
            future.set_result(answer)

    def leave(self) -> None:
        """Let the engine end: it exits when its input closes."""
        if self.process.stdin is not None:
            self.process.stdin.close()

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self.process.kill()

    async def ended(self) -> int:
        """The exit status. Call it after ``leave``; it kills an engine that does not end."""
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self.process.wait()
        except TimeoutError:
            self.kill()
        code = await self.process.wait()
        for future in self._questions.values():
            if not future.done():
                future.set_exception(NotReady())
        return code


async def start(command: Sequence[str]) -> EngineProcess:
    source = str(Path(__file__).resolve().parents[2])
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=PIPE,
        stdout=PIPE,
        limit=LINE_BYTES,
        env=os.environ | {"PYTHONPATH": source},
    )
    return EngineProcess(process)
