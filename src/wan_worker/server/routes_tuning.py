"""Routes: what would make this server faster, doing it, and undoing it.

Not covered: the measuring (calibrate), and when something is recommended (recommendations).
"""

from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Depends

from wan_worker.machine.tuning import Tuning
from wan_worker.queue.engine_process import NotReady
from wan_worker.server.access import admin_only
from wan_worker.server.bodies import Optimization, Optimize, Recommendations, refusals
from wan_worker.server.error_answers import Refusal, not_ready
from wan_worker.server.recommendations import Known, recommendations
from wan_worker.server.shared import Parts, model_id


def router(parts: Parts) -> APIRouter:
    routes = APIRouter(prefix="/api/v1/performance", tags=["performance"])
    tuning = Tuning(parts.settings.state_dir)

    def state() -> dict[str, Any]:
        latest = parts.dispatcher.calibrations.latest
        return {
            "latest": latest and latest.public(),
            "calibrations": [each.public() for each in tuning.calibrations],
        }

    @routes.get("/optimize", response_model=Optimization)
    async def look() -> Any:
        """How far the latest order is, and what has been measured on this machine."""
        return state()

    @routes.post(
        "/optimize",
        status_code=202,
        response_model=Optimization,
        dependencies=[Depends(admin_only)],
        responses=refusals(404, 409, 422, 503),
    )
    async def optimize(order: Optimize | None = None) -> Any:
        """Measure which way of computing is the fastest for a model here, and take it.

        A dozen small clips are made between the jobs. Jobs take what won from then on, and say so
        in their plan; nothing else changes.
        """
        model = await _installed(None if order is None else order.model, parts)
        # Checked last: from here on nothing is awaited, so that no other order can come first.
        running = parts.dispatcher.calibrations.running
        if running is not None:
            raise Refusal(409, "CONFLICT", f"{running.model} is being measured; wait, or undo it")
        try:
            parts.dispatcher.measure(model)
        except NotReady:
            raise not_ready() from None
        return state()

    @routes.delete(
        "/optimize",
        response_model=Optimization,
        dependencies=[Depends(admin_only)],
        responses=refusals(409),
    )
    async def undo() -> Any:
        """Stop the measuring that is under way; else undo the newest one."""
        if parts.dispatcher.calibrations.running is not None:
            parts.dispatcher.stop_measuring()
        elif tuning.undo() is None:
            raise Refusal(409, "CONFLICT", "There is nothing to undo: nothing was measured")
        return state()

    @routes.get("/recommendations", response_model=Recommendations, responses=refusals(503))
    async def recommended() -> Any:
        """What would make this server faster, with the figures that say so."""
        health = await parts.ask("health")
        settings = parts.settings
        known = Known(
            performance=await parts.ask("performance"),
            models=health["models"],
            measured=tuning.measured(health["hardware"]["name"], version("torch")),
            preloaded=settings.preload_models,
            concurrency=settings.worker_concurrency,
            weight_type=settings.weight_type,
        )
        return {"recommendations": [asdict(each) for each in recommendations(known)]}

    return routes


async def _installed(name: str | None, parts: Parts) -> str:
    """The model to measure: the named one, else the operator's, else the first installed one.

    Raises:
        Refusal: 404, 409 or 503.
    """
    installed = (await parts.ask("health"))["models"]
    if name is not None:
        wanted: str = model_id(name)
    elif parts.settings.default_model is not None or installed:
        wanted = parts.settings.default_model or installed[0]
    else:
        raise Refusal(409, "MODEL_UNAVAILABLE", "No model is installed: download one first")
    if wanted not in installed:
        raise Refusal(409, "MODEL_UNAVAILABLE", f"{wanted} is not installed: download it first")
    return wanted
