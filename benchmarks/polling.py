"""Do those who ask how a job is slow it down? 200 status requests a second against the HTTP API.

    python benchmarks/polling.py [--json benchmarks/polling.json] [--rounds 7]

The real server and its engine on the tiny weights, held to two cores with whoever asks. The same
job runs alone and watched, in turn; watched means one process with four connections that asks for
the job's status 200 times a second from its start to its end. Medians of the job's time, from its
start to its end as the server states them.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from benchmarks import rounds
from tests.integration.http_api import GENERATION, HttpApi

CORES = 2
PER_SECOND = 200
CONNECTIONS = 4
JOB = {
    "mode": "video",
    "prompt": "a red circle moving right on a white background",
    "size": "128x96",
    "num_frames": 49,
    "num_inference_steps": 100,
    "seed": 1,
}
"""A job of several seconds, nearly all of them in steps."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--poll", nargs=2, metavar=("PORT", "TASK"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.poll:
        print(json.dumps(poll(int(options.poll[0]), options.poll[1])))
        return 0
    hold_to(CORES)
    rounds.write(options.json, measure(options.rounds))
    return 0


def hold_to(count: int) -> None:
    """This process and all that it starts use so many cores."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def measure(count: int) -> dict[str, Any]:
    from wan_worker.weights import tiny

    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        tiny.write(home / "models", ["wan2.1-t2v-1.3b"])
        with HttpApi(home, home / "models") as server:
            server.wait_ready()
            replies: list[dict[str, float]] = []
            found = rounds.alternate(
                {"alone": lambda: run(server), "watched": lambda: run(server, replies)}, count
            )
    alone, watched = (rounds.medians(found[way]) for way in ("alone", "watched"))
    kept = replies[-count:]
    return {
        **rounds.about(),
        "cores": CORES,
        "job": JOB,
        "rounds": count,
        "seconds": {"alone": alone, "watched": watched},
        "spread": {
            way: [min(s["job"] for s in found[way]), max(s["job"] for s in found[way])]
            for way in found
        },
        "replies_per_second": round(statistics.median(each["per_second"] for each in kept), 1),
        "reply_ms": round(statistics.median(each["median_ms"] for each in kept), 2),
        "watched_to_alone": round(watched["job"] / alone["job"], 4),
    }


def run(server: HttpApi, replies: list[dict[str, float]] | None = None) -> rounds.Seconds:
    """One job; asked about all the while where there is a list for what the asker found."""
    task_id = server.submit(JOB)
    asker = None
    if replies is not None:
        command = [sys.executable, __file__, "--poll", str(server.port), task_id]
        asker = subprocess.Popen(command, stdout=subprocess.PIPE)
    # Seldom: who waits must not be what is measured.
    while (job := server.look(task_id))["status"] in ("queued", "running"):
        time.sleep(0.5)
    assert job["status"] == "completed", job["error"]
    if asker is not None:
        replies.append(json.loads(asker.communicate()[0]))
    begun, ended = (datetime.fromisoformat(job[name]) for name in ("started_at", "ended_at"))
    return {"job": (ended - begun).total_seconds()} | {
        stage: seconds
        for stage, seconds in job["result"]["metadata"]["timings"].items()
        if stage in ("denoise", "decode_encode", "total")
    }


def poll(port: int, task_id: str) -> dict[str, float]:
    """Ask until the job has ended; how often, and how long an answer took."""
    taken: list[float] = []
    over = threading.Event()
    begun = time.monotonic()
    threads = [
        threading.Thread(target=_ask, args=(port, task_id, begun, index, taken, over))
        for index in range(CONNECTIONS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - begun
    return {"per_second": len(taken) / seconds, "median_ms": statistics.median(taken) * 1000}


def _ask(
    port: int, task_id: str, begun: float, index: int, taken: list[float], over: threading.Event
) -> None:
    """One connection's share, each request at its own time; late ones are made up for."""
    request = f"GET {GENERATION}/{task_id} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        file = connection.makefile("rb")
        number = index
        while not over.is_set():
            time.sleep(max(0.0, begun + number / PER_SECOND - time.monotonic()))
            number += CONNECTIONS
            asked = time.monotonic()
            connection.sendall(request)
            body = _reply(file)
            taken.append(time.monotonic() - asked)
            if b'"status":"running"' not in body and b'"status":"queued"' not in body:
                over.set()


def _reply(file: Any) -> bytes:
    assert file.readline().startswith(b"HTTP/1.1 200")
    length = 0
    while (header := file.readline().strip()) != b"":
        name, _, value = header.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    body: bytes = file.read(length)
    return body


if __name__ == "__main__":
    sys.exit(main())
