"""RunPod's local test server around handler.py: what ``make serve`` starts.

It runs the handler, but not the production loop: see platform.py for that.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from tests.integration.worker import HANDLER, Child, answers_http, free_port


class ApiServer(Child):
    """``handler.py --rp_serve_api``: POST ``/run``, ``/runsync``, ``/status/ID``, ``/stream/ID``.

    ``/run`` only stores a job; POST ``/status/ID`` executes it, once.
    """

    def __init__(
        self,
        home: Path,
        *,
        command: Sequence[str] = HANDLER,
        env: Mapping[str, str] | None = None,
        ready_timeout: float = 60.0,
    ) -> None:
        self.port = free_port()
        super().__init__(
            [
                *(*command, "--rp_serve_api"),
                *("--rp_api_host", "127.0.0.1", "--rp_api_port", str(self.port)),
            ],
            home,
            name="api",
            ready=lambda: answers_http(self.port),
            env=env,
            ready_timeout=ready_timeout,
        )

    def post(self, path: str, body: Any = None, timeout: float = 60.0) -> tuple[int, Any]:
        """POST JSON. Return the status and the answer: parsed, or as text where it is no JSON."""
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=timeout)) as connection:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read().decode()
            try:
                return response.status, json.loads(text)
            except ValueError:
                return response.status, text
