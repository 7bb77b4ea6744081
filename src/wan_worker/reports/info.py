"""Is the worker well, what has it, what can it do, how fast was it, and what would it do?

``mode: info`` with a ``report``. Answers come from what is known already: nothing is fetched or
loaded, torch is not imported and the GPU is not waited for. A field that a report does not take is
refused, so that nobody waits for a video that was never asked for.
Not covered: whether a request's URLs lead anywhere (of a callback's, a bucket's and a LoRA's it is
asked whether they may be dialled).
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
    checks: Mapping[str, Checked]
    """Of components, by name: those whose every byte was read."""
    history: History
    process_peak_bytes: int


@dataclass(frozen=True)
class Planner:
    """What would become of a request."""

    replan: Callable[[Request], tuple[Request, Plan]]
    """The request as it can be planned here, and its plan."""
    plan_as_if_installed: model_advice.PlanAsIfInstalled
    """As if every model were installed."""
    estimate: model_advice.EstimateOf
    check: Callable[[Request], None]
    """Raises what refuses it beside the plan, before anything is fetched."""


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
        job: one that ``is_asked``.
        planner: for reports about a request.

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
            takes = ", ".join(TAKES[report]) or "no other field"
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
            told = model_advice.capabilities(_named(fields.get("model")))
        case "performance":
            told = performance.report(state.history, state.process_peak_bytes, time.time())
        case "recommend":
            told = _recommendation(job, fields, contract, state, planner)
        case "compare":
            told = _comparison(job, fields, contract, state, planner)
        case _:
            asked = _asked(job, fields.get("request"), contract)
            asked, planned = planner.replan(asked)
            planner.check(asked)
            told = _plan(planned) | {"estimate": planner.estimate(asked, planned).public()}
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
        "verified": None if here is None else _verified(model, state),
    }


def _verified(model: Model, state: State) -> dict[str, Any] | None:
    """What reading every byte came to; None while a component was not, or has changed since."""
    checks = [state.checks.get(name) for name in model.component_names]
    known = [check for check in checks if check is not None]
    if len(known) < len(checks) and all(check.whole for check in known):
        return None
    return {
        "at": min(check.at for check in known),
        "result": "whole" if all(check.whole for check in known) else "differs",
    }


def _named(name: str | None, field: str = "model") -> Model:
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
    asked = _asked(job, given, contract)
    if asked.model != "auto":
        raise InvalidRequest(
            "Leave it out: this asks which model to take", field="/input/request/model"
        )
    return model_advice.recommend(
        replace(asked, enhance_prompt=False),
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
    first, second = _named(fields.get("model")), _named(fields.get("other"), "other")
    if first is second:
        raise InvalidRequest("Name another model than model does", field="/input/other")
    given = _without_prompt(fields.get("request", model_advice.MUTUAL_JOB))

    def asked(model: Model) -> Request:
        request = {**given, "model": model.id}
        if "request" not in fields and model.text_pipeline is None:
            request["image_url"] = model_advice.PICTURE
        if "request" not in fields and model.last_image == "required":
            request["last_image_url"] = model_advice.PICTURE
        return replace(_asked(job, request, contract), enhance_prompt=False)

    return model_advice.compare(
        (first, second),
        (asked(first), asked(second)),
        state.installed,
        state.components,
        planner.plan_as_if_installed,
        planner.estimate,
    )


def _without_prompt(inner: Any) -> Any:
    """A request for a question that the prompt does not matter to."""
    return {"prompt": "x", **inner} if isinstance(inner, dict) else inner


def _asked(job: Mapping[str, Any], inner: dict[str, Any] | None, contract: Contract) -> Request:
    """The request inside a question."""
    if inner is None:
        raise InvalidRequest("Give the request that this is about", field="/input/request")
    try:
        return parse.request({"id": job.get("id", "local"), "input": inner}, contract)
    except InvalidRequest as problem:
        # One level down from where the request would be if it were sent.
        pointer = (problem.field or "/input").replace("/input", "/input/request", 1)
        message = problem.message.replace("; /input/", "; /input/request/")
        raise InvalidRequest(message, field=pointer) from None


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
