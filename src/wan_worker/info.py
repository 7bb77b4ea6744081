"""Is the worker well, which models has it, what can one do, and what would be done for a request?

``mode: info`` with a ``report``. Answers come from what is known already: nothing is fetched or
loaded, torch is not imported and the GPU is not waited for. A field that a report does not take is
refused, so that nobody waits for a video that was never asked for.
Not covered: figures measured on this machine, whether a request's URLs lead anywhere, and whether
every byte of the weights is right (``download_weights.py --verify``).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from wan_worker import references, request
from wan_worker.catalog import MODELS, OTHER_NAMES, Installed, Model, stored_bytes
from wan_worker.contract import Contract, check
from wan_worker.errors import InvalidRequest
from wan_worker.estimate import Estimate
from wan_worker.hardware import Hardware
from wan_worker.plan import Plan
from wan_worker.request import Request

TAKES: Final[Mapping[str, tuple[str, ...]]] = {
    "health": (),
    "models": (),
    "capabilities": ("model",),
    "plan": ("request",),
}
"""The fields of each report, beside mode and report."""


@dataclass(frozen=True)
class State:
    """The worker at this moment."""

    hardware: Hardware
    installed: Mapping[str, Installed]
    """By model id."""
    components: frozenset[str]
    """Names of those whose files are whole, whether or not their models are."""
    damaged: tuple[str, ...]
    """Names of components that were whole once."""
    loaded: tuple[str, ...]
    """Names of the components in memory."""
    busy: bool
    """A job has the GPU."""


def is_asked(job: Mapping[str, Any]) -> bool:
    given = job.get("input")
    return isinstance(given, dict) and given.get("mode") == "info"


def answer(
    job: Mapping[str, Any],
    contract: Contract,
    state: State,
    replan: Callable[[Request], Plan],
    foresee: Callable[[Request, Plan], Estimate],
) -> dict[str, Any]:
    """The response to one question.

    Args:
        job: one that ``is_asked``.
        replan: the planner, for ``report: plan``.
        foresee: how long a plan takes here.

    Raises:
        InvalidRequest: a field that the report does not take, or lacks.
        WorkerError: ``report: plan`` of a request that would be refused, as it would be.
    """
    given: dict[str, Any] = job["input"]
    check(given, contract)
    fields = {contract.aliases.get(name, name): value for name, value in given.items()}
    report = fields.get("report")
    if report is None:
        raise InvalidRequest(f"Say what to tell: report {', '.join(TAKES)}", field="/input/report")
    for name in given:
        if contract.aliases.get(name, name) not in ("mode", "report", *TAKES[report]):
            takes = " and ".join(TAKES[report]) or "no other field"
            raise InvalidRequest(
                f"Mode info with report {report} takes {takes}; to generate, give mode image or "
                "video",
                field=f"/input/{name}",
            )
    warnings: list[dict[str, str]] = []
    match report:
        case "health":
            told: Any = _health(state)
        case "models":
            told = {"models": [_model(model, state) for model in MODELS.values()]}
        case "capabilities":
            told = _capabilities(_named(fields.get("model")))
        case _:
            asked, planned = _planned(job, fields.get("request"), contract, replan)
            told = _plan(planned) | {"estimate": foresee(asked, planned).public()}
            warnings = [{"code": n.code, "message": n.message} for n in planned.notices]
    return {"status": "completed", "report": report, "info": told, "warnings": warnings}


def _health(state: State) -> dict[str, Any]:
    machine = state.hardware
    return {
        "ready": bool(state.installed) and not state.damaged,
        "busy": state.busy,
        "hardware": {
            "device": machine.device,
            "name": machine.name,
            "memory_gb": _gb(machine.memory_bytes),
            "free_gb": _gb(machine.free_bytes),
            "reason": machine.reason,
        },
        "models": list(state.installed),
        "loaded": list(state.loaded),
        "damaged": list(state.damaged),
    }


def _model(model: Model, state: State) -> dict[str, Any]:
    here = state.installed.get(model.id)
    missing = [name for name in model.component_names if name not in state.components]
    broken = any(name in state.damaged for name in missing)
    return {
        "id": model.id,
        "wan_task": model.wan_task,
        "status": "installed" if here is not None else "damaged" if broken else "missing",
        "weights": None if here is None else "tiny" if here.tiny else "full",
        "loaded": set(model.component_names) <= set(state.loaded),
        "memory_gb": None if here is None else _gb(sum(here.component_bytes.values())),
        "stored_gb": _gb(stored_bytes([model.id])),
        "missing": missing,
    }


def _named(name: str | None) -> Model:
    model = MODELS.get(OTHER_NAMES.get(name or "", name or ""))
    if model is None:
        raise InvalidRequest(f"Name a model: {', '.join(MODELS)}", field="/input/model")
    return model


def _capabilities(model: Model) -> dict[str, Any]:
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


def _planned(
    job: Mapping[str, Any],
    inner: dict[str, Any] | None,
    contract: Contract,
    replan: Callable[[Request], Plan],
) -> tuple[Request, Plan]:
    if inner is None:
        raise InvalidRequest("Give the request to plan for", field="/input/request")
    try:
        asked = request.parse({"id": job.get("id", "local"), "input": inner}, contract)
    except InvalidRequest as problem:
        # One level down from where the request would be if it were sent.
        pointer = (problem.field or "/input").replace("/input", "/input/request", 1)
        message = problem.message.replace("; /input/", "; /input/request/")
        raise InvalidRequest(message, field=pointer) from None
    return references.plan_with(asked, replan)


def _plan(planned: Plan) -> dict[str, Any]:
    known = planned.size is not None  # else the picture sets it
    width, height = planned.delivered_size if known else (None, None)
    made_wide, made_high = planned.generated_size if known else (None, None)
    return {
        "mode": planned.mode,
        "model": planned.model.id,
        "wan_task": planned.model.wan_task,
        "outputs": len(planned.outputs),
        "delivered": {
            "width": width,
            "height": height,
            "num_frames": planned.num_frames,
            "fps": planned.fps if planned.mode == "video" else None,
        },
        "generated": {
            "width": made_wide,
            "height": made_high,
            "num_frames": planned.generated_frames,
        },
        "plan": planned.public(),
    }


def _gb(count: int) -> float:
    return round(count / 1e9, 1)
