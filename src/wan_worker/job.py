"""The one flow: a RunPod job in, an answer out.

    request -> plan -> references -> generate -> upscale -> encode -> artifact -> storage
    -> response

``run`` holds the only try/except that turns an exception into an answer. Whatever happens below it,
the platform gets a dict that is strict JSON, the temp folder goes, and the next job finds the
worker as it was. The plan is complete before anything is downloaded or the GPU is touched.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from wan_worker import clips, logs, scratch
from wan_worker import worker as workers
from wan_worker.delivery import callback, deliver, response, storage
from wan_worker.errors import (
    Canceled,
    WorkerError,
    public_json,
)
from wan_worker.faults import classify
from wan_worker.inputs import references
from wan_worker.machine import hardware
from wan_worker.media.artifact import Artifact
from wan_worker.planning.plan import Plan
from wan_worker.reports import info
from wan_worker.request import parse
from wan_worker.request.parse import Request
from wan_worker.timing import estimate
from wan_worker.timing.progress import Control
from wan_worker.weights import lora_files
from wan_worker.worker import Worker
from wan_worker.worker import make as make_worker

log = logging.getLogger(__name__)

__all__ = ["Worker", "make_worker", "run"]


@dataclass
class _Known:
    """What is known of a job so far. A failure is reported with it."""

    asked: Request | None = None
    planned: Plan | None = None
    peak_bytes: int | None = None
    """GPU memory, measured."""


def run(job: Mapping[str, Any], worker: Worker, control: Control) -> dict[str, Any]:
    """Serve one job in this thread, and tell its callback. Never raises.

    Returns:
        The response (``schemas/response.schema.json``), or ``{"error": JSON string}``, with
        ``refresh_worker`` beside it where this process should not take another job.
    """
    job_id, question = storage.job_folder(str(job.get("id"))), info.is_asked(job)
    with logs.of_job(job_id, lambda: control.stage, told=not question):
        return _run(job, worker, control, counts=not question)


def _run(job: Mapping[str, Any], worker: Worker, control: Control, counts: bool) -> dict[str, Any]:
    """As ``run``. A question (``mode: info``) does not count as a job."""
    known, error = _Known(), None
    answer: dict[str, Any] = {}
    logs.event("begin", "begins")
    try:
        with scratch.folder() as folder:
            answer = _serve(job, worker, control, folder, known)
        json.dumps(answer, allow_nan=False)  # RunPod's SDK posts nothing at all if this fails
    except WorkerError as problem:
        error = problem
    except (Exception, SystemExit) as problem:  # noqa: BLE001 (an answer, whatever happened)
        error = classify(problem)
    if error is not None:
        # Its traceback holds every local of the job: latents, frames, a pipeline.
        error.__traceback__ = error.__cause__ = error.__context__ = None
        status = "canceled" if isinstance(error, Canceled) else "failed"
        said = f"{error.code} in stage {control.stage}: {error.located}"
        logs.event("end", said, logging.WARNING, status=status, code=error.code)
        answer = {"error": public_json(error, control.stage)}
        if error.refresh_worker:
            answer["refresh_worker"] = True
    if counts and error is not None:
        worker.record.failed(error.code)
    elif "metadata" in answer:
        _completed(answer["metadata"], known, worker)
    _notify(job, answer, error, worker, known, control)
    return answer


def _completed(metadata: Mapping[str, Any], known: _Known, worker: Worker) -> None:
    """Keep what a job came to."""
    worker.record.completed(metadata, known.peak_bytes)
    seconds, model = metadata["timings"]["total"], metadata["model"]
    logs.event("end", f"completed in {seconds:.1f} s", status="completed", model=model,
               seconds=seconds)  # fmt: skip


def _serve(
    job: Mapping[str, Any], worker: Worker, control: Control, folder: Path, known: _Known
) -> dict[str, Any]:
    """request -> plan -> references -> generate ... artifact (clips) -> storage -> response."""
    settings, policy = worker.settings, worker.policy
    control.enter("plan")
    if info.is_asked(job):
        return info.answer(job, worker.contract, workers.state(worker), workers.planner(worker))
    asked = known.asked = parse.request(job, worker.contract)
    destination = deliver.destination(asked, settings, policy)
    asked, planned = workers.planned(asked, worker)
    known.planned = planned
    lora_files.check(asked.loras, settings, policy)
    control.enter("fetch")
    without = partial(workers.planned_without, worker=worker)
    planned, pictures = references.gather(asked, planned, without, settings, policy, control)
    planned = known.planned = workers.enhanced(planned, worker, control)
    made: list[Artifact] = []
    with (
        lora_files.fetched(asked.loras, settings, policy, control) as files,
        deliver.saved_on_failure(made, asked, planned, destination, settings.output_dir, control),
    ):
        with workers.gpu(worker, control):
            here = workers.installed(worker)
            expected = workers.estimated(asked, planned, worker, here)
            control.expect(expected)
            context = workers.clip_context(worker, here, files, folder)
            hardware.forget_gpu_peak(worker.hardware)
            planned = clips.make(planned, pictures, context, made, control)
            known.peak_bytes = hardware.gpu_peak_bytes(worker.hardware)
        stored = deliver.artifacts(made, asked, planned, destination, control)
    sizes = [artifact.bytes for artifact in made]
    worker.record.add(estimate.learn(expected.work, control.stage_times, sizes))
    return response.completed(asked, planned, stored, control)


def _notify(
    job: Mapping[str, Any],
    answer: dict[str, Any],
    error: WorkerError | None,
    worker: Worker,
    known: _Known,
    control: Control,
) -> None:
    """Tell the callback how the job ended. A failure there is a warning, and no more."""
    given = job.get("input")
    url = given.get("callback_url") if isinstance(given, dict) else None
    if not isinstance(url, str) or (error is not None and error.field == callback.FIELD):
        return
    job_id = str(job.get("id", "local"))
    body = callback.body(
        job_id,
        answer,
        error,
        job_type=known.asked.job_type if known.asked else None,
        wan_task=known.planned.model.wan_task if known.planned else None,
    )
    seconds = callback.budget(error, control.seconds_left)
    secrets = worker.settings.callback_secrets
    problem = callback.send(url, body, secrets, worker.policy, seconds=seconds)
    if problem is not None:
        log.warning("job %s: %s", storage.job_folder(job_id), problem)
        if error is None:
            answer["warnings"].append({"code": "CALLBACK_FAILED", "message": problem})
