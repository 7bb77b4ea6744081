"""Which model should a job take, and how do two of them differ?

The real planner plans for every model of the catalog, as if all were installed. Models that it
refuses, and why, are part of the answer. Nothing is fetched or loaded.
Not covered: the quality of the pictures; the catalog's order stands for it, best last.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, get_args

from wan_worker.catalog.models import EXTRAS, MODELS, Installed, Model, stored_bytes
from wan_worker.errors import WorkerError
from wan_worker.planning.model_choice import accelerates, install_hint, loses_detail
from wan_worker.planning.plan import Plan, job_size
from wan_worker.request.parse import Acceleration, Request
from wan_worker.timing.estimate import Estimate

Priority = Literal["quality", "speed", "memory"]

PlanAsIfInstalled = Callable[[Request], Plan]
"""The planner on this machine, with every model installed."""

EstimateOf = Callable[[Request, Plan], Estimate]

MUTUAL_JOB: Final[Mapping[str, Any]] = {
    "mode": "video", "size": "832x480", "num_frames": 81, "num_inference_steps": 50,
}  # fmt: skip
"""The job by which two models are compared, if no request is given; every model can make it."""

PICTURE: Final = "data:,"
"""A stand-in for a picture, which nothing reads."""


@dataclass(frozen=True)
class _Candidate:
    model: Model
    plan: Plan
    estimate: Estimate

    @property
    def memory_bytes(self) -> int:
        """Estimated peak on the GPU; on a CPU, which has no estimate, the size of the weights."""
        return self.plan.layout.peak_bytes or stored_bytes([self.model.id])


def recommend(
    request: Request,
    priority: Priority,
    installed: Collection[str],
    components: Collection[str],
    plan_as_if_installed: PlanAsIfInstalled,
    estimate_of: EstimateOf,
) -> dict[str, Any]:
    """Every model that can do the request, best first, and why the others can't.

    Args:
        installed: ids of the installed models.
        components: names of the installed components, whichever models need them.
    """
    capable, refused = [], []
    for model in MODELS.values():
        named = replace(request, model=model.id)
        try:
            plan = plan_as_if_installed(named)
        except WorkerError as problem:
            refusal = {"model": model.id, "code": problem.code, "message": problem.message}
            refused.append(refusal)
        else:
            capable.append(_Candidate(model, plan, estimate_of(named, plan)))
    capable.sort(key=_order(priority))
    installed_candidates = [
        candidate.model.id for candidate in capable if candidate.model.id in installed
    ]
    return {
        "priority": priority,
        "best": capable[0].model.id if capable else None,
        "best_installed": installed_candidates[0] if installed_candidates else None,
        "candidates": [
            {
                "model": candidate.model.id,
                "wan_task": candidate.model.wan_task,
                "installed": candidate.model.id in installed,
                "download_gb": _missing_gb(candidate.model, components),
                "memory_gb": _gb(candidate.memory_bytes),
                "estimate": candidate.estimate.public(),
                "accelerations": _accelerations(candidate.model),
                "reasons": list(_why(candidate, capable, priority, installed)),
                "plan": candidate.plan.public(),
                "warnings": [
                    {"code": n.code, "message": n.message} for n in candidate.plan.notices
                ],
            }
            for candidate in capable
        ],
        "refused": refused,
    }


def compare(
    models: tuple[Model, Model],
    requests: tuple[Request, Request],
    installed: Collection[str],
    components: Collection[str],
    plan_as_if_installed: PlanAsIfInstalled,
    estimate_of: EstimateOf,
) -> dict[str, Any]:
    """Two models side by side, for the same job.

    Args:
        requests: that job, once for each model.
    """
    sides = []
    for model, request in zip(models, requests, strict=True):
        side: dict[str, Any] = {
            "model": model.id,
            "wan_task": model.wan_task,
            "parameters_b": _parameters_b(model),
            "experts": 2 if model.two_experts else 1,
            "stored_gb": _gb(stored_bytes([model.id])),
            "installed": model.id in installed,
            "download_gb": _missing_gb(model, components),
            "capabilities": capabilities(model),
            "accelerations": _accelerations(model),
            "memory_gb": None,
            "estimate": None,
            "refused": None,
        }
        try:
            plan = plan_as_if_installed(request)
        except WorkerError as problem:
            side["refused"] = {"code": problem.code, "message": problem.message}
        else:
            candidate = _Candidate(model, plan, estimate_of(request, plan))
            side["memory_gb"] = _gb(candidate.memory_bytes)
            side["estimate"] = candidate.estimate.public()
        sides.append(side)
    first, second = models
    return {
        "models": sides,
        "only_first": list(_advantages(first, second)),
        "only_second": list(_advantages(second, first)),
    }


def complete(installed: Mapping[str, Installed]) -> dict[str, Installed]:
    """Every model as if it were installed; missing ones with the sizes that they would have."""
    return {
        model.id: installed.get(model.id)
        or Installed({part.name: part.stored_bytes for part in model.components}, tiny=False)
        for model in MODELS.values()
    }


def complete_extras(extras: Mapping[str, Installed]) -> dict[str, Installed]:
    """The same for the extras."""
    return {
        name: extras.get(name) or Installed({name: part.stored_bytes}, tiny=False)
        for name, part in EXTRAS.items()
    }


def capabilities(model: Model) -> dict[str, Any]:
    """What one model takes as input, and what it makes."""
    width, height = model.default_size
    return {
        "id": model.id,
        "wan_task": model.wan_task,
        "text_to_video": model.text_pipeline is not None,
        "image": model.image,
        "last_image": model.last_image,
        "native": {
            "width": width,
            "height": height,
            "num_frames": model.native_frames,
            "fps": model.fps,
            "num_inference_steps": model.steps,
            "guidance_scale": model.guidance_scale,
            "guidance_scale_2": model.guidance_scale_2,
        },
        "min_pixels": model.min_pixels,
        "max_pixels": model.max_pixels,
        "max_frames": model.max_frames,
        "grid": model.grid,
        "temporal_stride": model.temporal_stride,
    }


def _order(priority: Priority) -> Callable[[_Candidate], Any]:
    """Sorting key: first by the priority, then by the catalog's order, the better model first."""
    places = {name: place for place, name in enumerate(reversed(MODELS))}

    def quality(candidate: _Candidate) -> Any:
        return loses_detail(candidate.model, job_size(candidate.plan).pixels), places[
            candidate.model.id
        ]

    def speed(candidate: _Candidate) -> Any:
        return candidate.estimate.seconds, *quality(candidate)

    def memory(candidate: _Candidate) -> Any:
        return candidate.memory_bytes, *quality(candidate)

    return {"quality": quality, "speed": speed, "memory": memory}[priority]


def _why(
    candidate: _Candidate, capable: list[_Candidate], priority: Priority, installed: Collection[str]
) -> Iterator[str]:
    place = f"{capable.index(candidate) + 1} of {len(capable)}"
    seconds, memory = candidate.estimate.seconds, _gb(candidate.memory_bytes)
    figures = {
        "quality": "the catalog's order, best first",
        "speed": f"{seconds:.3g} s, {candidate.estimate.basis}",
        "memory": f"{memory:g} GB",
    }
    yield f"{priority}: {place}, {figures[priority]}"
    if loses_detail(candidate.model, job_size(candidate.plan).pixels):
        yield (
            f"size: {candidate.model.id} loses detail below {candidate.model.min_pixels} pixels "
            "a frame"
        )
    if candidate.model.id not in installed:
        yield f"model: {install_hint(candidate.model.id)}"


def _advantages(model: Model, other: Model) -> Iterator[str]:
    """What a model can do and another can't."""
    theirs = set(_abilities(other))
    yield from (ability for ability in _abilities(model) if ability not in theirs)
    if model.max_pixels > other.max_pixels:
        yield f"frames of up to {model.max_pixels} pixels ({other.id}: {other.max_pixels})"
    if model.max_frames > other.max_frames:
        yield f"clips of up to {model.max_frames} frames ({other.id}: {other.max_frames})"
    if model.fps > other.fps:
        yield f"motion drawn for {model.fps} frames a second ({other.id}: {other.fps})"


def _abilities(model: Model) -> Iterator[str]:
    if model.text_pipeline is not None:
        yield from ("videos from text alone", "still images")
    if model.image != "none":
        yield "videos that begin with a picture"
    if model.last_image != "none":
        yield "videos that end with a picture"
    if model.two_experts:
        yield "a guidance of its own for fine detail (guidance_scale_2)"
    yield from (f"acceleration {mode}" for mode in _accelerations(model))


def _accelerations(model: Model) -> list[str]:
    return [mode for mode in get_args(Acceleration) if accelerates(model, mode)]


def _parameters_b(model: Model) -> float:
    """Billions of parameters in all its transformers, at two bytes each, as most are stored."""
    parts = [c.stored_bytes for c in model.components if c.role.startswith("transformer")]
    return round(sum(parts) / 2e9, 1)


def _missing_gb(model: Model, components: Collection[str]) -> float:
    return _gb(sum(c.hub_bytes for c in model.components if c.name not in components))


def _gb(count: int) -> float:
    return round(count / 1e9, 1)
