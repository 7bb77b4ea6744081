"""How fast has this worker been, how much memory has it taken, and what has failed?

Pure: a history of jobs -> ``report: performance``. Counts and sums cover all jobs since the worker
started; percentiles cover the latest jobs.
Not covered: the parts of a job's work (timing.work), and other workers of the same endpoint.
"""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from wan_worker.errors import Canceled
from wan_worker.timing.record import COMPLETED, RECENT, Ended, History

STAGES: Final = ("queue", "load", "prompt", "denoise", "decode_encode", "upload", "total")
"""The same stages as in the response's timings."""


def report(history: History, process_peak_bytes: int, now: float) -> dict[str, Any]:
    """The content of ``report: performance``.

    Args:
        process_peak_bytes: most main memory that this process has held.
        now: seconds since 1970.
    """
    models = dict.fromkeys(model for model, _ in history.totals)
    failures = {
        code: count
        for code, count in history.codes.items()
        if code not in (COMPLETED, Canceled.code)
    }
    gpu = [job.peak_bytes for job in history.recent if job.peak_bytes is not None]
    errors = [abs(j.estimate_error) for j in history.recent if j.estimate_error is not None]
    return {
        "since": datetime.fromtimestamp(history.since, UTC).isoformat(timespec="seconds"),
        "uptime_seconds": round(max(0.0, now - history.since), 1),
        "jobs": {
            "completed": history.codes.get(COMPLETED, 0),
            "failed": sum(failures.values()),
            "canceled": history.codes.get(Canceled.code, 0),
        },
        "failures": [{"code": code, "count": count} for code, count in sorted(failures.items())],
        "models": [_model(model, history) for model in models],
        "memory": {
            "process_peak_gb": _gb(process_peak_bytes),
            "gpu_peak_gb": _gb(max(gpu)) if gpu else None,
        },
        "estimates": {"count": len(errors), **percentiles(errors)},
        "percentiles_of_last": RECENT,
    }


def percentiles(values: Sequence[float]) -> Mapping[str, float | None]:
    """Median, 90th and 99th percentile: the smallest value with that share at or below it.

    None without values.
    """
    ordered = sorted(values)
    return {
        name: round(ordered[math.ceil(share * len(ordered)) - 1], 4) if ordered else None
        for name, share in (("median", 0.5), ("p90", 0.9), ("p99", 0.99))
    }


def _model(model: str, history: History) -> dict[str, Any]:
    jobs = [job for job in history.recent if job.model == model]
    peaks = [job.peak_bytes for job in jobs if job.peak_bytes is not None]
    return {
        "model": model,
        "jobs": history.totals[model, "total"][0],
        "peak_gb": _gb(max(peaks)) if peaks else None,
        "stages": [_stage(model, stage, history, jobs) for stage in STAGES],
    }


def _stage(model: str, stage: str, history: History, jobs: Sequence[Ended]) -> dict[str, Any]:
    count, total = history.totals[model, stage]
    return {
        "stage": stage,
        "count": count,
        "seconds": round(total, 3),
        **percentiles([job.seconds[stage] for job in jobs]),
    }


def _gb(count: int) -> float:
    return round(count / 1e9, 2)
