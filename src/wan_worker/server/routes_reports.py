"""Routes: which model to take, how fast this worker is, and all data of a dashboard.

Not covered: the reports themselves (reports.info), and the causes of alerts (alerts).
"""

import asyncio
import os
import shutil
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query

from wan_worker.server.alerts import Alert, Now, alerts
from wan_worker.server.bodies import Alerts, ModelHealth, Overview, PerformanceStatus, refusals
from wan_worker.server.openapi import told
from wan_worker.server.shared import ModelType, Parts, model_id

PICTURE = "data:,"
"""A stand-in for a picture in a question; nothing reads it."""

RECENT = 50
"""Number of latest ended jobs that alerts consider."""


def router(parts: Parts) -> APIRouter:
    routes = APIRouter(prefix="/api/v1")
    _wan_models(routes, parts)
    _performance(routes, parts)
    _dashboard(routes, parts)
    return routes


def _wan_models(routes: APIRouter, parts: Parts) -> None:
    @routes.get(
        "/wan-models/capabilities/{model_type}",
        tags=["wan-models"],
        response_model=None,
        responses=told("capabilities") | refusals(404, 503),
    )
    async def capabilities(model_type: ModelType) -> dict[str, Any]:
        """What a model takes and makes, and what it is best at."""
        return await parts.ask("capabilities", model=model_id(model_type))

    @routes.get(
        "/wan-models/health/{model_type}",
        tags=["wan-models"],
        response_model=ModelHealth,
        responses=refusals(404, 503),
    )
    async def health(model_type: ModelType) -> Any:
        """Whether a model can serve jobs, and what is in its way."""
        return await _health_of(model_type, parts)

    @routes.get(
        "/wan-models/performance/{model_type}",
        tags=["wan-models"],
        response_model=None,
        responses=told("performance", "properties", "models", "items") | refusals(404, 503),
    )
    async def performance(model_type: ModelType) -> dict[str, Any]:
        """How fast a model has been here, stage by stage; without jobs, that it had none."""
        wanted = model_id(model_type)
        told = await parts.ask("performance")
        none = {"model": wanted, "jobs": 0, "peak_gb": None, "stages": []}
        return next((each for each in told["models"] if each["model"] == wanted), none)

    @routes.get(
        "/wan-models/compare/{model_a}/{model_b}",
        tags=["wan-models"],
        response_model=None,
        responses=told("compare") | refusals(404, 422, 503),
    )
    async def compare(model_a: ModelType, model_b: ModelType) -> dict[str, Any]:
        """Two models side by side, and the same job on both."""
        return await parts.ask("compare", model=model_id(model_a), other=model_id(model_b))

    @routes.get(
        "/wan-models/recommend",
        tags=["wan-models"],
        response_model=None,
        responses=told("recommend") | refusals(422, 503),
    )
    async def recommend(
        mode: Literal["image", "video"] = "video",
        priority: Literal["quality", "speed", "memory"] = "quality",
        size: Annotated[
            str | None, Query(description="As 832x480; left out: each model's own.")
        ] = None,
        num_frames: Annotated[int | None, Query(ge=1, le=961)] = None,
        num_inference_steps: Annotated[int | None, Query(ge=1, le=100)] = None,
        acceleration: Literal["exact", "cached", "turbo"] = "exact",
        image: Annotated[bool, Query(description="Whether a first frame is given.")] = False,
        last_image: Annotated[bool, Query(description="Whether a last frame is given.")] = False,
    ) -> dict[str, Any]:
        """Which model to take for a job on this machine: all of them, best first, with reasons."""
        wanted = {
            "mode": mode,
            "size": size,
            "num_frames": num_frames,
            "num_inference_steps": num_inference_steps,
            "acceleration": acceleration,
            "image_url": PICTURE if image else None,
            "last_image_url": PICTURE if last_image else None,
        }
        given = {name: value for name, value in wanted.items() if value is not None}
        return await parts.ask("recommend", request=given, priority=priority)

    @routes.get("/wan-models/dashboard", tags=["wan-models"], responses=refusals(503))
    async def dashboard() -> dict[str, Any]:
        """Every model with its state, what it can, and how fast it has been."""
        return {"models": await _models(parts)}


def _performance(routes: APIRouter, parts: Parts) -> None:
    @routes.get(
        "/performance/status",
        tags=["performance"],
        response_model=PerformanceStatus,
        responses=refusals(503),
    )
    async def status() -> Any:
        """The machine at this moment: what it is, and how much of it is taken."""
        health = await parts.ask("health")
        return {
            "busy": health["busy"],
            "hardware": health["hardware"],
            "loaded": health["loaded"],
            "load_average": os.getloadavg()[0],
            "free_bytes": _free_bytes(parts),
            "queue": parts.queue(),
        }

    @routes.get(
        "/performance/metrics",
        tags=["performance"],
        response_model=None,
        responses=told("performance") | refusals(503),
    )
    async def metrics() -> dict[str, Any]:
        """How fast this worker has been, what it took, and what failed."""
        return await parts.ask("performance")

    @routes.get("/performance/analysis", tags=["performance"], responses=refusals(503))
    async def analysis() -> dict[str, Any]:
        """Where the time of each model's jobs goes, and how many fail."""
        return _analysis(await parts.ask("performance"))


def _dashboard(routes: APIRouter, parts: Parts) -> None:
    @routes.get("/dashboard/overview", tags=["dashboard"], response_model=Overview)
    async def overview() -> Any:
        """The whole in a few figures."""
        health = await parts.ask_if_there("health")
        moving = parts.downloads.current
        return {
            "engine": parts.dispatcher.state,
            "hardware": health and health["hardware"],
            "models": health["models"] if health else [],
            "jobs": parts.ledger.counts(),
            "queue": parts.queue(),
            "download": moving and moving.public(),
            "alerts": [asdict(alert) for alert in await _alerts(parts)],
        }

    @routes.get("/dashboard/metrics", tags=["dashboard"], responses=refusals(503))
    async def metrics() -> dict[str, Any]:
        """Counts of jobs and what was measured of them."""
        return {"jobs": parts.ledger.counts(), "performance": await parts.ask("performance")}

    @routes.get("/dashboard/models", tags=["dashboard"], responses=refusals(503))
    async def models() -> dict[str, Any]:
        """Every model with its state, and the downloads."""
        downloads = [each.public() for each in parts.downloads.known()]
        return {"models": (await parts.ask("models"))["models"], "downloads": downloads}

    @routes.get("/dashboard/alerts", tags=["dashboard"], response_model=Alerts)
    async def alerts_now() -> Any:
        """What a person should look at, the worst first."""
        return {"alerts": [asdict(alert) for alert in await _alerts(parts)]}


async def _models(parts: Parts) -> list[dict[str, Any]]:
    status, measured = await asyncio.gather(parts.ask("models"), parts.ask("performance"))
    performance_of = {model["model"]: model for model in measured["models"]}
    abilities = await asyncio.gather(
        *(parts.ask("capabilities", model=model["id"]) for model in status["models"])
    )
    return [
        model | {"capabilities": ability, "performance": performance_of.get(model["id"])}
        for model, ability in zip(status["models"], abilities, strict=True)
    ]


async def _health_of(name: str, parts: Parts) -> dict[str, Any]:
    model = await parts.model(name)
    problems = [f"{component} is not here whole" for component in model["missing"]]
    verified = model.get("verified")
    if verified is not None and verified["result"] != "whole":
        problems.append("its weights differ from what they were made as; download it again")
    return {
        "model": model["id"],
        "healthy": model["status"] == "installed" and not problems,
        "status": model["status"],
        "loaded": model["loaded"],
        "weights": model["weights"],
        "verified": verified,
        "problems": problems,
    }


def _analysis(report: dict[str, Any]) -> dict[str, Any]:
    """Each stage's share of a model's time, and the share of jobs that failed."""
    models = []
    for model in report["models"]:
        seconds = {s["stage"]: s["seconds"] for s in model["stages"] if s["stage"] != "total"}
        whole = sum(seconds.values())
        shares = (
            {stage: round(value / whole, 3) for stage, value in seconds.items()} if whole else {}
        )
        slowest = max(shares, key=lambda stage: shares[stage], default=None)
        models.append(
            {
                "model": model["model"],
                "jobs": model["jobs"],
                "shares": shares,
                "slowest_stage": slowest,
            }
        )
    ended = report["jobs"]["completed"] + report["jobs"]["failed"]
    return {
        "models": models,
        "failure_rate": round(report["jobs"]["failed"] / ended, 3) if ended else None,
        "failures": report["failures"],
        "estimate_error": report["estimates"],
    }


async def _alerts(parts: Parts) -> list[Alert]:
    return alerts(
        Now(
            time=time.time(),
            engine=parts.dispatcher.state,
            problem=parts.dispatcher.problem,
            restarts=tuple(parts.dispatcher.restarted_at),
            queued=parts.ledger.counts()["queued"],
            queue_limit=parts.settings.queue_limit,
            health=await parts.ask_if_there("health"),
            ended=parts.ledger.ended(RECENT),
            free_bytes=_free_bytes(parts),
        )
    )


def _free_bytes(parts: Parts) -> dict[str, int]:
    """Free bytes of the file systems that jobs write to, by the folder's environment variable."""
    folders = {
        "OUTPUT_DIR": parts.settings.output_dir,
        "STATE_DIR": parts.settings.state_dir,
        "TMPDIR": Path(tempfile.gettempdir()),
    }
    found = {}
    for name, folder in folders.items():
        with suppress(OSError):
            existing = next(path for path in (folder, *folder.resolve().parents) if path.exists())
            found[name] = shutil.disk_usage(existing).free
    return found
