"""Routes: which models are here, what can one do, and is it well?

Not covered: the answers themselves (info).
"""

from typing import Any

from fastapi import APIRouter

from wan_worker.api_parts import Parts, model_id


def router(parts: Parts) -> APIRouter:
    routes = APIRouter(prefix="/api/v1")

    @routes.get("/models/status", tags=["models"])
    async def status() -> dict[str, Any]:
        """Every model: installed or not, and what it takes."""
        return await parts.ask("models")

    @routes.get("/models/status/{model_type}", tags=["models"])
    async def status_of(model_type: str) -> dict[str, Any]:
        """One model: installed or not, and what it takes."""
        return await _status(model_type, parts)

    @routes.get("/models/health", tags=["models"])
    async def health() -> dict[str, Any]:
        """The machine and the weights on it."""
        return await parts.ask("health")

    @routes.get("/wan-models/capabilities/{model_type}", tags=["wan-models"])
    async def capabilities(model_type: str) -> dict[str, Any]:
        """What a model can do, and what it is best at."""
        return await parts.ask("capabilities", model=model_id(model_type))

    return routes


async def _status(name: str, parts: Parts) -> dict[str, Any]:
    wanted = model_id(name)
    told = await parts.ask("models")
    found: dict[str, Any] = next(model for model in told["models"] if model["id"] == wanted)
    return found
