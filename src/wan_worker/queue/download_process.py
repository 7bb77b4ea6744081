"""The process that downloads one model for the HTTP API: the code of download_weights.py.

    python -m wan_worker.queue.download_process MODEL...     started by downloads

A process of its own, because rounding weights needs torch, and because ending one is how a download
is cancelled: what it leaves behind is gone on with. Says how far it is in JSON, a message a line:
``line``, ``bytes``, and at last ``done`` or ``failed``. Ends when its standard input does, so that
it does not outlive the server.
Not covered: which models may be asked for (downloads).
"""

import os
import sys
import threading
from pathlib import Path
from typing import Any

from wan_worker import logs
from wan_worker.errors import WorkerError, public
from wan_worker.faults import classify
from wan_worker.queue.json_lines import JsonLines, take_stdout
from wan_worker.settings import Settings, from_env
from wan_worker.weights import download
from wan_worker.weights.hub import Hub, Tally

REPORT_SECONDS = 0.5


def main() -> int:
    line = take_stdout()
    threading.Thread(target=_end_with_the_server, daemon=True).start()
    tally, over = Tally(), threading.Event()
    try:
        settings = from_env(os.environ)
        logs.start(settings.log_level, settings.log_format)
        counting = threading.Thread(target=_count, args=(line, tally, over))
        counting.start()
        try:
            install(settings.models_dir, sys.argv[1:], settings, line, tally)
        finally:
            over.set()
            counting.join()
    except Exception as problem:  # noqa: BLE001 (an answer, whatever happened)
        error = problem if isinstance(problem, WorkerError) else classify(problem)
        line.say("failed", error=public(error, "download"))
        return 1
    line.say("done")
    return 0


def install(
    models_dir: Path, names: list[str], settings: Settings, line: JsonLines, tally: Tally
) -> None:
    hub = Hub(settings.hub_token, tally=tally)
    download.install(models_dir, names, hub, report=lambda text: line.say("line", text=text))


def _count(line: JsonLines, tally: Tally, over: threading.Event) -> None:
    """Say how far it is, now and then, and at the end."""
    told: Any = None
    while True:
        ended = over.wait(REPORT_SECONDS)
        now = {"done": tally.here, "total": tally.wanted}
        if now != told:
            line.say("bytes", **now)
            told = now
        if ended:
            return


def _end_with_the_server() -> None:
    # Not sys.stdin: whoever waits in its buffer holds a lock that the interpreter's end asks for.
    while os.read(0, 1024):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
