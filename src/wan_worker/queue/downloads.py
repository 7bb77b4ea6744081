"""Which model is being downloaded for the HTTP API, and how far is it? There is one at a time.

Each download runs in its own process (download_process). A cancel ends the process, and the next
try continues from there. The worker sees a model only when it is complete, so that jobs need no
message.
Not covered: how weights are downloaded and resumed (weights.download).
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
    """Another model is being downloaded: ``model``."""

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
    """Size of its files at their source; until they are listed, the catalog's estimate."""
    message: str
    """What the download is doing."""
    started_at: float
    ended_at: float | None = None
    error: dict[str, Any] | None = None

    def public(self) -> dict[str, Any]:
        return asdict(self)


class Downloads:
    """Used only by the event loop's thread."""

    def __init__(self, models_dir: Path, command: Sequence[str] = COMMAND) -> None:
        self._models_dir = models_dir
        self._command = command
        self._known: dict[str, Download] = {}
        self._process: Process | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def current(self) -> Download | None:
        """The running download."""
        moving = (download for download in self._known.values() if download.status == "downloading")
        return next(moving, None)

    def known(self) -> list[Download]:
        """The latest download of every model that was ordered since the server started."""
        return list(self._known.values())

    def start(self, model: str) -> Download:
        """Start or continue a download. If it is already running, only return its state.

        Raises:
            Busy: another model's download is running.
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
        """Cancel a download; None if it is not running."""
        current = self.current
        if current is None or current.model != model:
            return None
        _end(current, "canceled", "canceled; another try goes on from here")
        if self._process is not None:
            _kill(self._process)
        return current

    async def stop(self) -> None:
        """Cancel the running download, because the server ends."""
        if self.current is not None:
            self.cancel(self.current.model)
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, download: Download) -> None:
        try:
            await self._follow(download)
        except Exception:  # the process can't be started, or a line is not a message
            log.exception("the download of %s can't go on", download.model)
        if download.status == "downloading":
            error = UnexpectedError("The download's process failed; another try goes on from there")
            _end(download, "failed", error.message, public(error, "download"))
        log.info("download of %s: %s", download.model, download.status)

    async def _follow(self, download: Download) -> None:
        # An ordered download uses the network, even if jobs may not.
        env = os.environ | {
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
            "MODELS_DIR": str(self._models_dir),
            "HF_HUB_OFFLINE": "0",
        }
        process = self._process = await asyncio.create_subprocess_exec(
            *(*self._command, download.model), stdin=PIPE, stdout=PIPE, env=env
        )
        if download.status != "downloading":  # cancelled before it began
            _kill(process)
        stdout = process.stdout
        assert stdout is not None  # noqa: S101 (a pipe was asked for)
        try:
            while text := await stdout.readline():
                self._hear(download, json.loads(text))
        except Exception:
            _kill(process)  # not self._process: after a cancel, the next may have started
            raise
        finally:
            await process.wait()

    def _hear(self, download: Download, message: dict[str, Any]) -> None:
        match message["say"]:
            case "line":
                download.message = message["text"]
            case "bytes":
                download.bytes_done = message["done"]
                download.bytes_total = message["total"] or download.bytes_total
            case "done" if download.status == "downloading":
                download.bytes_done = download.bytes_total
                _end(download, "completed", download.message)
            case "failed" if download.status == "downloading":
                _end(download, "failed", message["error"]["message"], message["error"])


def _end(
    download: Download, status: Status, message: str, error: dict[str, Any] | None = None
) -> None:
    download.status, download.message, download.error = status, message, error
    download.ended_at = time.time()


def _kill(process: Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
