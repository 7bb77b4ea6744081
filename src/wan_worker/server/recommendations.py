"""What would make this server faster? It recommends from the server's own measurements. Pure.

Each recommendation says why, how to do it, and its largest gain by the measurements here. Nothing
is recommended without figures. If the server can do it itself (measure a model), the recommendation
has the request for it; otherwise the operator changes the environment.
Not covered: doing it (calibrate), and what is broken (alerts).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

LOAD_SHARE: Final = 0.05
"""Preloading is recommended if loading takes at least this share of all jobs' time."""

UPLOAD_SHARE: Final = 0.1
"""Uploading beside the next job is recommended if uploads take at least this share of it."""


@dataclass(frozen=True)
class Call:
    """A request over HTTP."""

    method: str
    path: str
    body: Mapping[str, Any]


@dataclass(frozen=True)
class Recommendation:
    id: str
    why: str
    how: str
    gain: str
    request: Call | None = None
    """The HTTP request that does it; None: the operator sets it on the server."""
    model: str | None = None


@dataclass(frozen=True)
class Known:
    """The facts about the server."""

    performance: Mapping[str, Any]
    """``report: performance``."""
    models: Collection[str]
    """Ids of the installed models."""
    measured: Collection[str]
    """Ids of the models with a valid calibration on this machine."""
    preloaded: Collection[str]
    concurrency: int
    weight_type: str | None


def recommendations(known: Known) -> list[Recommendation]:
    """All recommendations, the most useful first."""
    return [*_memory(known), *_load(known), *_upload(known), *_measure(known)]


def _measure(known: Known) -> list[Recommendation]:
    jobs = {model["model"]: model["jobs"] for model in known.performance["models"]}
    used = sorted(jobs, key=lambda model: -jobs[model]) or list(known.models)[:1]
    return [
        Recommendation(
            f"measure:{model}",
            f"{model} has not been measured on this machine ({_jobs(jobs.get(model, 0))} so far)",
            "Measure it: a dozen small clips, made in different ways between the jobs; the fastest "
            "way is taken from then on, and can be undone",
            "not known before it is measured",
            Call("POST", "/api/v1/performance/optimize", {"model": model}),
            model,
        )
        for model in used
        if model in known.models and model not in known.measured
    ]


def _load(known: Known) -> list[Recommendation]:
    found = []
    for model in known.performance["models"]:
        name, stages = model["model"], _stages(model)
        load, total = stages["load"], stages["total"]
        if name in known.preloaded or load["seconds"] < LOAD_SHARE * total["seconds"]:
            continue
        names = ",".join([*known.preloaded, name])
        found.append(
            Recommendation(
                f"preload:{name}",
                f"Loading took {load['seconds']:.1f} of {total['seconds']:.1f} s of {name}'s "
                f"{_jobs(model['jobs'])}, up to {load['p99']:.1f} s of one",
                f"Set PRELOAD_MODELS={names} and start again: it is loaded while there is no job",
                f"{load['p99']:.1f} s of the first job",
                model=name,
            )
        )
    return found


def _upload(known: Known) -> list[Recommendation]:
    totals: dict[str, float] = {"upload": 0.0, "total": 0.0}
    for model in known.performance["models"]:
        for stage, seconds in totals.items():
            totals[stage] = seconds + float(_stages(model)[stage]["seconds"])
    if known.concurrency > 1 or totals["upload"] < UPLOAD_SHARE * totals["total"]:
        return []
    if not totals["total"]:
        return []
    share = totals["upload"] / totals["total"]
    return [
        Recommendation(
            "concurrency",
            f"Uploading is {share:.0%} of the jobs' time, and the GPU waits meanwhile",
            "Set WORKER_CONCURRENCY=2 and start again: one job uploads while the next one is made",
            f"up to {share:.0%} of the time where jobs wait",
        )
    ]


def _memory(known: Known) -> list[Recommendation]:
    failed = {failure["code"]: failure["count"] for failure in known.performance["failures"]}
    count = failed.get("OUT_OF_MEMORY", 0)
    if not count or known.weight_type is not None:
        return []
    return [
        Recommendation(
            "weight_type",
            f"{_jobs(count)} ran out of memory",
            "Set WEIGHT_TYPE=fp8 (int8 on GPUs before Ada) and start again: the transformers take "
            "half the memory, and pictures change slightly",
            "those jobs",
        )
    ]


def _jobs(count: int) -> str:
    return f"{count} {'job' if count == 1 else 'jobs'}"


def _stages(model: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {stage["stage"]: stage for stage in model["stages"]}
