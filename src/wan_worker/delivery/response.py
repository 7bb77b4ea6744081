"""What is the answer? The response of a completed job, and the manifest of its assets.

``schemas/response.schema.json`` describes both. A manifest has no URLs, because they expire. The
manifest of a failed job has ``status: failed`` and the ``error``.
Not covered: the answer of a failed job (errors.public_json).
"""

import json
import time
from collections.abc import Sequence
from typing import Any

from wan_worker.delivery.storage import StoredAsset
from wan_worker.errors import WorkerError, public_json
from wan_worker.planning.plan import Plan
from wan_worker.request.parse import Request
from wan_worker.timing import estimate
from wan_worker.timing.progress import Control


def completed(
    asked: Request, planned: Plan, assets: Sequence[StoredAsset], control: Control
) -> dict[str, Any]:
    """The answer of a job that made all its outputs."""
    body = _body(asked, planned, [asset.public() for asset in assets], control)
    if control.estimate is not None:
        wrong = estimate.error(control.estimate, control.stage_times)
        body["metadata"]["estimate"]["error"] = None if wrong is None else round(wrong, 4)
    return body


def manifest(
    asked: Request,
    planned: Plan,
    assets: Sequence[StoredAsset],
    control: Control,
    error: WorkerError | None = None,
) -> dict[str, Any]:
    """The job's durable record. A failed job's record has the files that were finished."""
    facts = [{"key": asset.key} | asset.facts() for asset in assets]
    body = _body(asked, planned, facts, control)
    if error is not None:
        body |= {"status": "failed", "error": json.loads(public_json(error, control.stage))}
    return body


def _body(
    asked: Request, planned: Plan, assets: list[dict[str, Any]], control: Control
) -> dict[str, Any]:
    wide, high = planned.generated_size
    spent = control.timings
    timings = {
        # The time before the job had the GPU: waiting, planning and fetching.
        "queue": sum(spent.get(stage, 0.0) for stage in ("queue", "plan", "fetch")),
        "load": spent.get("load", 0.0),
        "prompt": spent.get("prompt", 0.0),
        "denoise": spent.get("denoise", 0.0),
        "decode_encode": spent.get("decode_encode", 0.0) + spent.get("check", 0.0),
        "upload": spent.get("upload", 0.0),
        "total": time.monotonic() - control.started,
    }
    metadata = {
        "job_type": asked.job_type,
        "mode": planned.mode,
        "model": planned.model.id,
        "wan_task": planned.model.wan_task,
        "content_type": planned.mode,
        "frame_num": planned.num_frames,
        "prompt": planned.outputs[0].prompt,
        "generation_time": round(sum(spent.values()) - spent.get("upload", 0.0), 3),
        "timings": {stage: round(value, 3) for stage, value in timings.items()},
        "estimate": None if control.estimate is None else control.estimate.public(),
        "generated": {"width": wide, "height": high, "num_frames": planned.generated_frames},
        "plan": planned.public(),
    }
    if planned.outputs[0].prompt != asked.prompt:
        metadata["original_prompt"] = asked.prompt
    if planned.tiny:
        metadata["weights"] = "tiny"
    return {
        "status": "completed",
        "assets": assets,
        "metadata": metadata,
        "warnings": [{"code": n.code, "message": n.message} for n in planned.notices],
    }
