"""Which model should a job take, and how do two of them differ?

Every model of the catalog is planned for by the real planner, as if all of them were installed:
what it refuses, and why, is part of the answer. Nothing is fetched or loaded for it.
Not covered: how good a picture comes out; the catalog's order stands for it, best last.
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
"""What two models are compared by where no request is given: one that all of them can make."""

PICTURE: Final = "data:,"
"""Stands for a picture: nobody looks at it."""


@dataclass(frozen=True)
class _Candidate:
    model: Model
    plan: Plan
    estimate: Estimate

    @property
    def memory_bytes(self) -> int:
        """Peak on the GPU; on a CPU, where none is estimated, the weights."""
        return self.plan.layout.peak_bytes or stored_bytes([self.model.id])


def recommend(
    asked: Request,
    priority: Priority,
    installed: Collection[str],
    components: Collection[str],
    plan_as_if_installed: PlanAsIfInstalled,
    foresee: EstimateOf,
) -> dict[str, Any]:
    """Every model that can do it, best first, and what is in the way of the others.

    Args:
        installed: ids of models.
        components: names of those that are here, whichever models need them.
    """
    able, refused = [], []
    for model in MODELS.values():
        named = replace(asked, model=model.id)
        try:
            plan = plan_as_if_installed(named)
        except WorkerError as problem:
            refusal = {"model": model.id, "code": problem.code, "message": problem.message}
            refused.append(refusal)
        else:
            able.append(_Candidate(model, plan, foresee(named, plan)))
    able.sort(key=_order(priority))
    here = [candidate.model.id for candidate in able if candidate.model.id in installed]
    return {
        "priority": priority,
        "best": able[0].model.id if able else None,
        "best_installed": here[0] if here else None,
        "candidates": [
            {
                "model": one.model.id,
                "wan_task": one.model.wan_task,
                "installed": one.model.id in installed,
                "download_gb": _missing_gb(one.model, components),
                "memory_gb": _gb(one.memory_bytes),
                "estimate": one.estimate.public(),
                "accelerations": _accelerations(one.model),
                "reasons": list(_why(one, able, priority, installed)),
                "plan": one.plan.public(),
                "warnings": [{"code": n.code, "message": n.message} for n in one.plan.notices],
            }
            for one in able
        ],
        "refused": refused,
    }


def compare(
    models: tuple[Model, Model],
    requests: tuple[Request, Request],
    installed: Collection[str],
    components: Collection[str],
    plan_as_if_installed: PlanAsIfInstalled,
    foresee: EstimateOf,
) -> dict[str, Any]:
    """Two models side by side, for the same job.

    Args:
        requests: that job, once for each of them.
    """
    sides = []
    for model, asked in zip(models, requests, strict=True):
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
            plan = plan_as_if_installed(asked)
        except WorkerError as problem:
            side["refused"] = {"code": problem.code, "message": problem.message}
        else:
            candidate = _Candidate(model, plan, foresee(asked, plan))
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
    """Every model as if it were installed: those that are not, at the sizes that they would be."""
    return {
        model.id: installed.get(model.id)
        or Installed({part.name: part.stored_bytes for part in model.components}, tiny=False)
        for model in MODELS.values()
    }


def complete_extras(extras: Mapping[str, Installed]) -> dict[str, Installed]:
    """The same of what is beside the models."""
    return {
        name: extras.get(name) or Installed({name: part.stored_bytes}, tiny=False)
        for name, part in EXTRAS.items()
    }


def capabilities(model: Model) -> dict[str, Any]:
    """What one model takes and makes."""
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
    """Sorting key: what is preferred comes first; then the catalog's better one."""
    places = {name: place for place, name in enumerate(reversed(MODELS))}

    def quality(one: _Candidate) -> Any:
        return loses_detail(one.model, job_size(one.plan).pixels), places[one.model.id]

    def speed(one: _Candidate) -> Any:
        return one.estimate.seconds, *quality(one)

    def memory(one: _Candidate) -> Any:
        return one.memory_bytes, *quality(one)

    return {"quality": quality, "speed": speed, "memory": memory}[priority]


def _why(
    one: _Candidate, able: list[_Candidate], priority: Priority, installed: Collection[str]
) -> Iterator[str]:
    place = f"{able.index(one) + 1} of {len(able)}"
    seconds, memory = one.estimate.seconds, _gb(one.memory_bytes)
    said = {
        "quality": "the catalog's order, best first",
        "speed": f"{seconds:.3g} s, {one.estimate.basis}",
        "memory": f"{memory:g} GB",
    }
    yield f"{priority}: {place}, {said[priority]}"
    if loses_detail(one.model, job_size(one.plan).pixels):
        yield f"size: {one.model.id} loses detail below {one.model.min_pixels} pixels a frame"
    if one.model.id not in installed:
        yield f"model: {install_hint(one.model.id)}"


def _advantages(model: Model, other: Model) -> Iterator[str]:
    """What a model can and another can't."""
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
    """Billions of all its transformers: most of their weights are stored in two bytes."""
    parts = [c.stored_bytes for c in model.components if c.role.startswith("transformer")]
    return round(sum(parts) / 2e9, 1)


def _missing_gb(model: Model, components: Collection[str]) -> float:
    return _gb(sum(c.hub_bytes for c in model.components if c.name not in components))


def _gb(count: int) -> float:
    return round(count / 1e9, 1)
