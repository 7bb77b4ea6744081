"""Processes under test: started in a clean environment, stopped for certain, their log kept.

``Child`` is any server in a process of its own; ``Worker`` is the one that runs handler.py in
RunPod's production loop. Nothing of the developer's environment reaches them: a test that passes
because of an exported variable or a file in the home folder proves nothing.
"""

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.integration.platform import Platform, tail

REPOSITORY = Path(__file__).resolve().parents[2]
HANDLER = (sys.executable, "handler.py")


class Child:
    """A server process, from ready to gone. Its own process group, so that its children go too."""

    def __init__(
        self,
        command: Sequence[str],
        home: Path,
        *,
        name: str,
        ready: Callable[[], bool],
        env: Mapping[str, str] | None = None,
        ready_timeout: float = 60.0,
    ) -> None:
        self.home = home
        self.tmp = home / "tmp"
        """The process's TMPDIR: look here for files that it left behind."""
        self.log_path = home / f"{name}.log"
        self._command = command
        self._ready = ready
        self._env = env or {}
        self._ready_timeout = ready_timeout
        self._swept = False

    def __enter__(self) -> Self:
        self.tmp.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=REPOSITORY,
                env={
                    "PATH": os.environ["PATH"],
                    "HOME": str(self.home),
                    "TMPDIR": str(self.tmp),
                    "PYTHONUNBUFFERED": "1",
                    "OMP_NUM_THREADS": "1",
                    "OMP_WAIT_POLICY": "PASSIVE",  # as tests/conftest.py has it
                    **self._env,
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        return self._process.pid

    def alive(self) -> bool:
        return self._process.poll() is None

    def log(self) -> str:
        """What the process and its children have printed so far."""
        return self.log_path.read_text(errors="replace")

    def terminate(self) -> None:
        """Send SIGTERM, to the process alone as a container runtime does, and don't wait."""
        self._process.terminate()

    def stop(self, timeout: float = 30.0) -> int:
        """SIGTERM, wait, then kill what is left of the process group. Return the exit status."""
        self.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)
        return self.kill()

    def kill(self) -> int:
        """SIGKILL the process and its children at once, as an out-of-memory container is."""
        if not self._swept:
            self._swept = True
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        return self._process.wait()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self._ready_timeout
        while not self._ready():
            if not self.alive():
                raise AssertionError(f"{self._command} ended too early:\n{tail(self.log())}")
            if time.monotonic() > deadline:
                raise AssertionError(f"{self._command} is not ready in time:\n{tail(self.log())}")
            time.sleep(0.05)


class Worker(Child):
    """handler.py in production: polls the platform for jobs. Ready at its first poll."""

    def __init__(
        self,
        platform: Platform,
        home: Path,
        *,
        command: Sequence[str] = HANDLER,
        env: Mapping[str, str] | None = None,
        ready_timeout: float = 60.0,
    ) -> None:
        self.id = f"w{uuid.uuid4().hex[:6]}"
        self._platform = platform
        super().__init__(
            command,
            home,
            name=self.id,
            ready=lambda: platform.seen(self.id),
            env={**platform.env(self.id), **(env or {})},
            ready_timeout=ready_timeout,
        )

    def __enter__(self) -> Self:
        super().__enter__()
        self._platform.watch(self)
        return self


def free_port() -> int:
    """A port of loopback that nothing listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def answers_http(port: int) -> bool:
    """Does a server on loopback answer, with whatever status?"""
    with closing(HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
        try:
            connection.request("GET", "/")
            connection.getresponse().read()
        except (OSError, HTTPException):
            return False
        return True
