"""Entry point for RunPod: `python handler.py`. The work is in src/wan_worker; start at job.py.

Without RunPod's environment the same handler runs on a laptop (see README.md, For developers):
    handler.py --test_input '{"input": {"mode": "image", "prompt": "a cat", "size": "128x96"}}'
    handler.py --rp_serve_api               RunPod's local test server on port 8000
"""

import asyncio
import logging
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))
# The SDK's own default is DEBUG, which logs every result with its presigned URLs.
os.environ.setdefault("RUNPOD_LOG_LEVEL", "INFO")

import runpod
from runpod.http_client import AsyncClientSession
from runpod.serverless.modules.rp_http import send_result

from wan_worker import doctor, logs, preload, scratch
from wan_worker import job as jobs
from wan_worker.errors import ConfigInvalid
from wan_worker.machine import hardware
from wan_worker.settings import Settings, from_env
from wan_worker.timing.progress import Control, Relay

log = logging.getLogger("wan_worker.handler")


def make_handler(settings: Settings) -> Any:
    """The coroutine function that RunPod calls with each job."""
    worker = jobs.make_worker(settings)
    preload.begin(worker)
    threads = ThreadPoolExecutor(settings.worker_concurrency, thread_name_prefix="job")

    async def handle(job: dict[str, Any]) -> dict[str, Any]:
        """Serve one job in a worker thread, so that the loop stays free to cancel it."""
        loop = asyncio.get_running_loop()

        async def send(update: dict[str, Any]) -> None:
            if settings.on_platform:
                async with AsyncClientSession() as session:
                    await send_result(session, {"status": "IN_PROGRESS", "output": update}, job)
            else:
                log.info("job %s: %s", job.get("id"), update.get("message", update["stage"]))

        relay = Relay(loop, send)
        control = Control(settings.job_timeout_seconds, notify=relay.notify)
        relaying = asyncio.create_task(relay.run(control))
        try:
            return await loop.run_in_executor(threads, jobs.run, job, worker, control)
        finally:
            # Either RunPod cancelled this coroutine, or the job is over and this changes nothing.
            # The thread sees the cancel at its next step. It holds the GPU lock until it ends.
            control.cancel()
            await relay.close(relaying)

    return handle


def make_fitness_check(settings: Settings) -> Callable[[], None]:
    """The check that RunPod's SDK calls before the first job. If it raises, no worker starts."""

    def fitness() -> None:
        findings = list(doctor.examine(settings, hardware.detect()))
        level = {"ok": logging.INFO, "warning": logging.WARNING, "problem": logging.ERROR}
        for finding in findings:
            log.log(level[finding.level], "%s", finding)
        problems = [finding.text for finding in findings if finding.level == "problem"]
        if problems:
            raise RuntimeError("not fit for jobs: " + "; ".join(problems))

    return fitness


def main() -> None:
    try:
        settings = from_env(os.environ)
        logs.start(settings.log_level, settings.log_format)
        scratch.sweep()
        handler = make_handler(settings)
    except ConfigInvalid as problem:
        sys.exit(f"{problem.code}: {problem.message}")
    runpod.serverless.register_fitness_check(make_fitness_check(settings))
    runpod.serverless.start({
        "handler": handler,
        "concurrency_modifier": lambda _: settings.worker_concurrency,
    })  # fmt: skip


if __name__ == "__main__":
    main()
