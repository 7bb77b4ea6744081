"""What is the answer? The response of a job that completed, and its manifest.

``schemas/response.schema.json`` describes it. Not covered: failures (errors.public_json).
"""

import time
from typing import Any

from wan_worker.plan import Plan
from wan_worker.progress import Control
from wan_worker.request import Request
from wan_worker.storage import StoredAsset


def completed(
    asked: Request,
    planned: Plan,
    assets: list[StoredAsset],
    seconds: float,
    control: Control,
    *,
    public: bool,
) -> dict[str, Any]:
    """The answer, or (not ``public``) the manifest: the same without URLs, which expire."""
    wide, high = planned.generated_size
    spent = control.timings
    timings = {
        # Before the GPU was ours: waiting, planning and fetching.
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
        "prompt": planned.prompt,
        "generation_time": round(seconds, 3),
        "timings": {stage: round(value, 3) for stage, value in timings.items()},
        "generated": {"width": wide, "height": high, "num_frames": planned.generated_frames},
        "plan": planned.public(),
    }
    if planned.tiny:
        metadata["weights"] = "tiny"
    return {
        "status": "completed",
        "assets": [a.public() if public else {"key": a.key} | a.facts() for a in assets],
        "metadata": metadata,
        "warnings": [{"code": n.code, "message": n.message} for n in planned.notices],
    }
