"""The process that downloads one model for the HTTP API, with the code of download_weights.py.

    python -m wan_worker.queue.download_process MODEL...     started by downloads

It is a separate process, because rounding weights needs torch, and because a cancel kills it: the
next try continues from the files that it left. It reports its progress in JSON, one message per
line: ``line``, ``bytes``, and finally ``done`` or ``failed``. It ends when its standard input
closes, so that it does not outlive the server.
Not covered: which models may be downloaded (downloads).
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
    except Exception as problem:  # noqa: BLE001 (the server gets an answer to any failure)
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
    """Report the progress now and then, and at the end."""
    reported: Any = None
    while True:
        finished = over.wait(REPORT_SECONDS)
        now = {"done": tally.here, "total": tally.wanted}
        if now != reported:
            line.say("bytes", **now)
            reported = now
        if finished:
            return


def _end_with_the_server() -> None:
    # Not sys.stdin: a thread that reads it holds a lock that the interpreter needs at its end.
    while os.read(0, 1024):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
