"""How does a process that the server started send it messages? As JSON, one message per line.

Not covered: the messages (engine, download_process), and the receivers (dispatch, downloads).
"""

import json
import os
import threading
from contextlib import suppress
from typing import Any, BinaryIO


class JsonLines:
    """Messages to the server, from any thread. If the server is gone, messages are dropped."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._lock = threading.Lock()

    def say(self, kind: str, **facts: Any) -> None:
        text = json.dumps({"say": kind} | facts) + "\n"
        with self._lock, suppress(OSError, ValueError):
            self._file.write(text.encode())
            self._file.flush()


def take_stdout() -> JsonLines:
    """Take standard output for messages only: prints of libraries then go to standard error."""
    line = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return JsonLines(line)
