"""Hundreds of mixed jobs through RunPod's production loop, a tenth of them faulted.

    make soak        500 jobs with one at a time, 500 with two; writes tests/soak.json

Asks what a test of one job can't: does anything grow? Every job must be answered exactly once (a
cancelled one at most once), with the code that its fault has; after a warm-up the worker's memory
may grow by 5 % and its open files, threads, child processes and temp files not at all.
Ends with 1 where that is not so.
"""

import argparse
import base64
import io
import json
import os
import platform as machine
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from PIL import Image

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from tests.integration.platform import Platform
from tests.integration.s3 import S3Server
from tests.integration.worker import Worker
from wan_worker.catalog.models import EXTRAS
from wan_worker.weights import tiny

WARM_UP: Final = 0.2
"""Share of the jobs before the first measurement: pools and caches are full then."""

MOST_GROWTH: Final = 1.05
"""Of resident memory, from the end of the warm-up to the end."""

QUEUED: Final = 10
"""Jobs that are submitted at a time; the worker is looked at when they are done."""

COMPARED: Final = 5
"""First and last looks at the worker that are compared."""

KEPT_OPEN: Final = 1
"""Connections to the store that the SDK may have begun to keep since the first looks."""

QUICK: Final[dict[str, Any]] = {
    "mode": "video",
    "prompt": "a red circle",
    "size": "64x48",
    "num_frames": 5,
    "num_inference_steps": 2,
}


def data_uri(colour: str, size: tuple[int, int] = (64, 48)) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


GOOD: Final[dict[str, dict[str, Any]]] = {
    "video": {},
    "longer video": {"num_frames": 13},
    "odd size": {"size": "54x36", "num_frames": 7, "solver": "dpm++"},
    "webm": {"output_format": "webm"},
    "gif": {"output_format": "gif"},
    "image": {"mode": "image", "num_frames": None},
    "webp": {"mode": "image", "num_frames": None, "output_format": "webp"},
    "image to video": {"image_url": data_uri("red")},
    "image to image": {"mode": "image", "num_frames": None, "image_url": data_uri("blue")},
    "two outputs": {"num_outputs": 2},
    "two prompts": {"prompt": ["a red circle", "a blue square"]},
    "inline": {"response_format": "base64"},
    "a LoRA": {"loras": [{"source": "cyan", "scale": 0.5}]},
    "upscaled": {"upscale": 2},
    "enhanced": {"enhance_prompt": True},
    "no guidance": {"guidance_scale": 1, "solver": "euler"},
}
FAULTED: Final[dict[str, tuple[dict[str, Any], str]]] = {
    "unknown field": ({"promt": "x"}, "INVALID_REQUEST"),
    "too large": ({"size": "1920x1080"}, "UNSUPPORTED"),
    "local file": ({"image_url": "file:///etc/passwd"}, "URL_BLOCKED"),
    "metadata address": ({"image_url": "http://169.254.169.254/latest"}, "URL_BLOCKED"),
    "cut image": ({"image_url": data_uri("red")[:200]}, "IMAGE_REJECTED"),
    "absent model": ({"model": "wan2.2-t2v-a14b"}, "MODEL_UNAVAILABLE"),
    "absent LoRA": ({"loras": [{"source": "nowhere"}]}, "INVALID_REQUEST"),
    "a bucket of this machine's": ({}, "URL_BLOCKED"),
    "cancelled": ({"size": "416x240", "num_inference_steps": 100}, "CANCELED"),
}


@dataclass(frozen=True)
class State:
    """Of the worker's process, while it waits for jobs."""

    rss_mb: float
    open_files: int
    threads: int
    children: int
    temp_entries: int


def look(pid: int, temp: Path) -> State:
    process = Path("/proc") / str(pid)
    status = dict(
        line.split(":", 1) for line in (process / "status").read_text().splitlines() if ":" in line
    )
    children = [task / "children" for task in (process / "task").iterdir()]
    return State(
        rss_mb=round(int(status["VmRSS"].split()[0]) / 1024, 1),
        open_files=len(list((process / "fd").iterdir())),
        threads=int(status["Threads"]),
        children=sum(len(path.read_text().split()) for path in children if path.exists()),
        temp_entries=len(list(temp.rglob("*"))),
    )


def requests(count: int, seed: int) -> Iterator[tuple[str, dict[str, Any], str | None]]:
    """Name, request and the code that it should end with, or None; every tenth is faulted."""
    rng = random.Random(seed)
    for index in range(count):
        if index % 10 == 9:
            name = list(FAULTED)[index // 10 % len(FAULTED)]
            changes, code = FAULTED[name]
        else:
            name, code = rng.choice(list(GOOD)), None
            changes = GOOD[name]
        fields = QUICK | {"seed": index} | changes
        yield name, {k: v for k, v in fields.items() if v is not None}, code


def soak(jobs: int, concurrency: int, models: Path, home: Path) -> dict[str, Any]:
    """One worker's run, as the report has it; ``problems`` is empty where all held."""
    problems: list[str] = []
    outcomes: Counter[str] = Counter()
    started = time.monotonic()
    with S3Server(home / "s3") as s3, Platform() as platform:
        env = s3.env() | {
            "MODELS_DIR": str(models),
            "WORKER_CONCURRENCY": str(concurrency),
            "LORA_CACHE_DIR": str(home / "lora-cache"),
            "OUTPUT_DIR": str(home / "outputs"),
            "RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS": "false",
        }
        inside = {
            "accessId": s3.access_key,
            "accessSecret": s3.secret_key,
            "bucketName": s3.bucket,
            "endpointUrl": s3.endpoint_url,
        }
        with Worker(platform, home / "worker", env=env) as worker:
            states = []
            given: list[tuple[str, str, str | None]] = []
            for index, (name, request, code) in enumerate(requests(jobs, concurrency)):
                top: dict[str, Any] = (
                    {"s3Config": inside} if name == "a bucket of this machine's" else {}
                )
                given.append((platform.submit(request, **top), name, code))
                if name == "cancelled":
                    job = given[-1][0]
                    platform.wait_until(lambda: platform.events(job), 120, "it to begin")  # noqa: B023
                    platform.cancel(job)
                done = index + 1
                if done % QUEUED:
                    continue
                resolve(platform, worker, given[-QUEUED:])
                if done >= jobs * WARM_UP:
                    time.sleep(0.5)  # let the last job's threads go
                    states.append((done, look(worker.pid, worker.tmp)))
                    print(f"{concurrency} at a time, {done} of {jobs}: {states[-1][1]}", flush=True)
            log = worker.log()
            for job, name, code in given:
                answered(platform.results(job), log, job, name, code, outcomes, problems)
            if not worker.alive():
                problems.append("the worker is gone")
            status = worker.stop()
            left = [path.name for path in worker.tmp.glob("wan-job-*")]
            problems += [f"left behind: {name}" for name in left]
            problems += [f"the worker ended with {status}"] if status else []
    early, late = ([state for _, state in part] for part in (states[:COMPARED], states[-COMPARED:]))
    growth = median(s.rss_mb for s in late) / median(s.rss_mb for s in early)
    if growth > MOST_GROWTH:
        problems.append(f"memory grew to {growth:.3f} of what it was")
    # What leaks is more in every late look than in any early one.
    for name, spare in (
        ("open_files", KEPT_OPEN),
        ("threads", 0),
        ("children", 0),
        ("temp_entries", 0),
    ):
        was, is_ = (max(getattr(s, name) for s in early), min(getattr(s, name) for s in late))
        if is_ > was + spare:
            problems.append(f"{name} grew from {was} to {is_}")
    return {
        "jobs": jobs,
        "concurrency": concurrency,
        "minutes": round((time.monotonic() - started) / 60, 1),
        "outcomes": dict(sorted(outcomes.items())),
        "memory_growth": round(growth, 3),
        "states": [{"jobs": done} | asdict(state) for done, state in states],
        "problems": problems,
    }


def resolve(platform: Platform, worker: Worker, given: list[tuple[str, str, str | None]]) -> None:
    """Wait until each of these jobs is over: a cancelled one says so in the log alone."""
    for job, name, _ in given:
        if name == "cancelled":
            platform.wait_until(
                lambda: f"job {job}: CANCELED" in worker.log() or platform.results(job),  # noqa: B023
                120,
                "the job to stop",
            )
        else:
            platform.wait(job, 300)


def answered(
    results: list[dict[str, Any]],
    log: str,
    job: str,
    name: str,
    code: str | None,
    outcomes: Counter[str],
    problems: list[str],
) -> None:
    """Was it answered once, as it should be?"""
    if name == "cancelled" and not results:
        found = "CANCELED" if f"job {job}: CANCELED" in log else "no answer"
    elif len(results) != 1:
        found = f"{len(results)} answers"
    else:
        error = results[0].get("error")
        found = "completed" if error is None else json.loads(error)["code"]
    outcomes[found] += 1
    if found != (code or "completed"):
        problems.append(f"{name} ended with {found}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=500, help="for each concurrency")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--report", type=Path, help="JSON file to write")
    options = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        models = Path(folder) / "models"
        tiny.write(models, ["wan2.1-t2v-1.3b", "wan2.1-i2v-14b-480p", *EXTRAS])
        for concurrency in options.concurrency:
            home = Path(folder) / str(concurrency)
            home.mkdir()
            runs.append(soak(options.jobs, concurrency, models, home))
            if options.report:
                report = {
                    "date": time.strftime("%Y-%m-%d"),
                    "python": machine.python_version(),
                    "machine": f"{os.cpu_count()} cores, no GPU",
                    "runs": runs,
                }
                options.report.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    for run in runs:
        print(f"{run['jobs']} jobs, {run['concurrency']} at a time: {run['outcomes']}")
        print("\n".join(run["problems"]) or "nothing grew, nothing was lost")
    return 1 if any(run["problems"] for run in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
