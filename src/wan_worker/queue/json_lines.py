"""How does a process that the server has started speak to it? JSON, one message a line.

Not covered: what is said (engine, installer), and the other end (dispatch, downloads).
"""

import json
import os
import threading
from contextlib import suppress
from typing import Any, BinaryIO


class JsonLines:
    """Messages to the server, from any thread. What one that is gone would miss is dropped."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._lock = threading.Lock()

    def say(self, kind: str, **facts: Any) -> None:
        text = json.dumps({"say": kind} | facts) + "\n"
        with self._lock, suppress(OSError, ValueError):
            self._file.write(text.encode())
            self._file.flush()


def take_stdout() -> JsonLines:
    """Standard output for messages alone: what libraries print goes to standard error."""
    line = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return JsonLines(line)
