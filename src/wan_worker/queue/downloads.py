"""Which models are being downloaded for the HTTP API, and how far is that? One at a time.

Each runs in a process of its own (installer), which a cancel ends; the next try goes on from there.
A model appears to the worker when all of it is here, so that jobs need not be told.
Not covered: how weights get here, and resuming (download).
"""

import asyncio
import json
import logging
import os
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from wan_worker.catalog.models import stored_bytes
from wan_worker.errors import UnexpectedError, public

log = logging.getLogger(__name__)

COMMAND: Final = (sys.executable, "-m", "wan_worker.queue.download_process")

Status = Literal["downloading", "completed", "failed", "canceled"]


class Busy(Exception):
    """Another model is being downloaded; ``model`` is which."""

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.model = model


@dataclass
class Download:
    """The latest download of one model. Times are seconds since 1970."""

    model: str
    status: Status
    bytes_done: int
    bytes_total: int
    """What its files take where they come from; the catalog's estimate until those are listed."""
    message: str
    """What it is at."""
    started_at: float
    ended_at: float | None = None
    error: dict[str, Any] | None = None

    def public(self) -> dict[str, Any]:
        return asdict(self)


class Downloads:
    """For the event loop's thread alone."""

    def __init__(self, models_dir: Path, command: Sequence[str] = COMMAND) -> None:
        self._models_dir = models_dir
        self._command = command
        self._known: dict[str, Download] = {}
        self._process: Process | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def current(self) -> Download | None:
        """The one that is under way."""
        moving = (each for each in self._known.values() if each.status == "downloading")
        return next(moving, None)

    def known(self) -> list[Download]:
        """The latest of every model that was asked for since the server started."""
        return list(self._known.values())

    def start(self, model: str) -> Download:
        """Begin, or go on; of the one that is under way, nothing more than how far it is.

        Raises:
            Busy: another is under way.
        """
        current = self.current
        if current is not None and current.model != model:
            raise Busy(current.model)
        if current is not None:
            return current
        started = Download(model, "downloading", 0, stored_bytes([model]), "starting", time.time())
        self._known[model] = started
        self._task = asyncio.create_task(self._run(started))
        return started

    def cancel(self, model: str) -> Download | None:
        """End it; None where it is not under way."""
        current = self.current
        if current is None or current.model != model:
            return None
        _end(current, "canceled", "canceled; another try goes on from here")
        if self._process is not None:
            _kill(self._process)
        return current

    async def stop(self) -> None:
        """End the one that is under way, for the server's end."""
        if self.current is not None:
            self.cancel(self.current.model)
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, now: Download) -> None:
        try:
            await self._follow(now)
        except Exception:  # it can't be started, or a line is none
            log.exception("the download of %s can't go on", now.model)
        if now.status == "downloading":
            error = UnexpectedError("The download's process failed; another try goes on from there")
            _end(now, "failed", error.message, public(error, "download"))
        log.info("download of %s: %s", now.model, now.status)

    async def _follow(self, now: Download) -> None:
        # Whoever asks for a download means the network, whatever jobs may do.
        env = os.environ | {
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
            "MODELS_DIR": str(self._models_dir),
            "HF_HUB_OFFLINE": "0",
        }
        process = self._process = await asyncio.create_subprocess_exec(
            *(*self._command, now.model), stdin=PIPE, stdout=PIPE, env=env
        )
        if now.status != "downloading":  # cancelled before it began
            _kill(process)
        stdout = process.stdout
        assert stdout is not None  # noqa: S101 (a pipe was asked for)
        try:
            while text := await stdout.readline():
                self._hear(now, json.loads(text))
        except Exception:
            _kill(process)  # this one: after a cancel the next may have begun
            raise
        finally:
            await process.wait()

    def _hear(self, now: Download, message: dict[str, Any]) -> None:
        match message["say"]:
            case "line":
                now.message = message["text"]
            case "bytes":
                now.bytes_done = message["done"]
                now.bytes_total = message["total"] or now.bytes_total
            case "done" if now.status == "downloading":
                now.bytes_done = now.bytes_total
                _end(now, "completed", now.message)
            case "failed" if now.status == "downloading":
                _end(now, "failed", message["error"]["message"], message["error"])


def _end(
    download: Download, status: Status, message: str, error: dict[str, Any] | None = None
) -> None:
    download.status, download.message, download.error = status, message, error
    download.ended_at = time.time()


def _kill(process: Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
