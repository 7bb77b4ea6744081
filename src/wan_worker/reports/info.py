"""Is the worker well, what does it have, what can it do, how fast was it, what would it do?

It answers ``mode: info`` with a ``report``. It uses only what is already known: it fetches and
loads nothing, does not import torch and does not wait for the GPU. It refuses a field that the
report does not take, so that nobody waits for a video that this request does not order.
Not covered: whether a request's URLs exist. It is only checked whether the URLs of a callback, a
bucket and a LoRA may be dialled.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from wan_worker.catalog.models import MODELS, OTHER_NAMES, Installed, Model, stored_bytes
from wan_worker.errors import InvalidRequest
from wan_worker.machine.hardware import Hardware
from wan_worker.planning.plan import Plan
from wan_worker.reports import model_advice, performance
from wan_worker.request import parse
from wan_worker.request.parse import Request
from wan_worker.request.schema import Contract, check
from wan_worker.timing.record import History
from wan_worker.weights.store import Checked

TAKES: Final[Mapping[str, tuple[str, ...]]] = {
    "health": (),
    "models": (),
    "capabilities": ("model",),
    "recommend": ("request", "priority"),
    "compare": ("model", "other", "request"),
    "performance": (),
    "plan": ("request",),
}
"""The fields that each report takes, besides mode and report."""


@dataclass(frozen=True)
class State:
    """The worker at this moment."""

    hardware: Hardware
    installed: Mapping[str, Installed]
    """By model id."""
    components: frozenset[str]
    """Names of the components whose files are whole, even if their model is not installed."""
    damaged: tuple[str, ...]
    """Names of the components that were whole earlier, and no longer are."""
    loaded: tuple[str, ...]
    """Names of the components in memory."""
    busy: bool
    """A job is using the GPU."""
    checks: Mapping[str, Checked]
    """Results of reading every byte, by component name; only for components that were read."""
    history: History
    process_peak_bytes: int


@dataclass(frozen=True)
class Planner:
    """Says what would happen to a request."""

    replan: Callable[[Request], tuple[Request, Plan]]
    """The request as it can be planned here, and its plan."""
    plan_as_if_installed: model_advice.PlanAsIfInstalled
    """Plans as if every model were installed."""
    estimate: model_advice.EstimateOf
    check: Callable[[Request], None]
    """Raises the errors, besides those of planning, that refuse a request before any fetch."""


def is_asked(job: Mapping[str, Any]) -> bool:
    given = job.get("input")
    return isinstance(given, dict) and given.get("mode") == "info"


def answer(
    job: Mapping[str, Any],
    contract: Contract,
    state: State,
    planner: Planner,
) -> dict[str, Any]:
    """The response to one question.

    Args:
        job: a job for which ``is_asked`` is true.
        planner: used by reports about a request.

    Raises:
        InvalidRequest: a field that the report does not take, or a missing one.
        WorkerError: for ``report: plan``, the error that would refuse the request.
    """
    given: dict[str, Any] = job["input"]
    check(given, contract)
    fields = {contract.aliases.get(name, name): value for name, value in given.items()}
    report = fields.get("report")
    if report is None:
        raise InvalidRequest(f"Say what to tell: report {', '.join(TAKES)}", field="/input/report")
    for name in given:
        if contract.aliases.get(name, name) not in ("mode", "report", *TAKES[report]):
            takes = ", ".join(TAKES[report]) or "no other field"
            raise InvalidRequest(
                f"Mode info with report {report} takes {takes}; to generate, give mode image or "
                "video",
                field=f"/input/{name}",
            )
    warnings: list[dict[str, str]] = []
    match report:
        case "health":
            content: Any = _health(state)
        case "models":
            content = {"models": [_model(model, state) for model in MODELS.values()]}
        case "capabilities":
            content = model_advice.capabilities(_model_named(fields.get("model")))
        case "performance":
            content = performance.report(state.history, state.process_peak_bytes, time.time())
        case "recommend":
            content = _recommendation(job, fields, contract, state, planner)
        case "compare":
            content = _comparison(job, fields, contract, state, planner)
        case _:
            request = _inner_request(job, fields.get("request"), contract)
            request, planned = planner.replan(request)
            planner.check(request)
            content = _plan(planned) | {"estimate": planner.estimate(request, planned).public()}
            warnings = [{"code": n.code, "message": n.message} for n in planned.notices]
    return {"status": "completed", "report": report, "info": content, "warnings": warnings}


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
    installed = state.installed.get(model.id)
    missing = [name for name in model.component_names if name not in state.components]
    broken = any(name in state.damaged for name in missing)
    return {
        "id": model.id,
        "wan_task": model.wan_task,
        "status": "installed" if installed is not None else "damaged" if broken else "missing",
        "weights": None if installed is None else "tiny" if installed.tiny else "full",
        "loaded": set(model.component_names) <= set(state.loaded),
        "memory_gb": None if installed is None else _gb(sum(installed.component_bytes.values())),
        "stored_gb": _gb(stored_bytes([model.id])),
        "missing": missing,
        "verified": None if installed is None else _verified(model, state),
    }


def _verified(model: Model, state: State) -> dict[str, Any] | None:
    """The result of reading every byte; None if a component was not read, or changed afterwards."""
    checks = [state.checks.get(name) for name in model.component_names]
    known = [check for check in checks if check is not None]
    if len(known) < len(checks) and all(check.whole for check in known):
        return None
    return {
        "at": min(check.at for check in known),
        "result": "whole" if all(check.whole for check in known) else "differs",
    }


def _model_named(name: str | None, field: str = "model") -> Model:
    model = MODELS.get(OTHER_NAMES.get(name or "", name or ""))
    if model is None:
        raise InvalidRequest(f"Name a model: {', '.join(MODELS)}", field=f"/input/{field}")
    return model


def _recommendation(
    job: Mapping[str, Any],
    fields: Mapping[str, Any],
    contract: Contract,
    state: State,
    planner: Planner,
) -> dict[str, Any]:
    given = _without_prompt(fields.get("request"))
    request = _inner_request(job, given, contract)
    if request.model != "auto":
        raise InvalidRequest(
            "Leave it out: this asks which model to take", field="/input/request/model"
        )
    return model_advice.recommend(
        replace(request, enhance_prompt=False),
        fields.get("priority", "quality"),
        state.installed,
        state.components,
        planner.plan_as_if_installed,
        planner.estimate,
    )


def _comparison(
    job: Mapping[str, Any],
    fields: Mapping[str, Any],
    contract: Contract,
    state: State,
    planner: Planner,
) -> dict[str, Any]:
    first, second = _model_named(fields.get("model")), _model_named(fields.get("other"), "other")
    if first is second:
        raise InvalidRequest("Name another model than model does", field="/input/other")
    given = _without_prompt(fields.get("request", model_advice.MUTUAL_JOB))

    def request_for(model: Model) -> Request:
        request = {**given, "model": model.id}
        if "request" not in fields and model.text_pipeline is None:
            request["image_url"] = model_advice.PICTURE
        if "request" not in fields and model.last_image == "required":
            request["last_image_url"] = model_advice.PICTURE
        return replace(_inner_request(job, request, contract), enhance_prompt=False)

    return model_advice.compare(
        (first, second),
        (request_for(first), request_for(second)),
        state.installed,
        state.components,
        planner.plan_as_if_installed,
        planner.estimate,
    )


def _without_prompt(inner: Any) -> Any:
    """The request with a stand-in for the prompt, for questions that do not depend on it."""
    return {"prompt": "x", **inner} if isinstance(inner, dict) else inner


def _inner_request(
    job: Mapping[str, Any], inner: dict[str, Any] | None, contract: Contract
) -> Request:
    """The request inside a question."""
    if inner is None:
        raise InvalidRequest("Give the request that this is about", field="/input/request")
    try:
        return parse.request({"id": job.get("id", "local"), "input": inner}, contract)
    except InvalidRequest as problem:
        # In a question, the request is one level deeper than in a job.
        pointer = (problem.field or "/input").replace("/input", "/input/request", 1)
        message = problem.message.replace("; /input/", "; /input/request/")
        raise InvalidRequest(message, field=pointer) from None


def _plan(planned: Plan) -> dict[str, Any]:
    known = planned.size is not None  # otherwise the picture decides it
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
