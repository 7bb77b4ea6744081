"""Routes: which models are installed and whole, and downloading the others.

Not covered: what a model can do, and which one to take (routes_reports).
"""

import asyncio
from typing import Any

from fastapi import APIRouter, Body, Depends
from fastapi.responses import JSONResponse

from wan_worker.catalog.models import EXTRAS, components_of
from wan_worker.errors import ModelCorrupt
from wan_worker.queue.downloads import Busy
from wan_worker.server.access import admin_only
from wan_worker.server.bodies import Download as DownloadBody
from wan_worker.server.bodies import Downloads, ModelName, Verified, refusals
from wan_worker.server.error_answers import Refusal
from wan_worker.server.openapi import told
from wan_worker.server.shared import ModelType, Parts, model_id
from wan_worker.weights import store

ADMIN = [Depends(admin_only)]


def router(parts: Parts) -> APIRouter:
    routes = APIRouter(prefix="/api/v1/models", tags=["models"])
    verifying = asyncio.Lock()

    @routes.get("/status", response_model=None, responses=told("models") | refusals(503))
    async def status() -> dict[str, Any]:
        """Every model: installed or not, and what it takes."""
        return await parts.ask("models")

    @routes.get(
        "/status/{model_type}",
        response_model=None,
        responses=told("models", "properties", "models", "items") | refusals(404, 503),
    )
    async def status_of(model_type: ModelType) -> dict[str, Any]:
        """One model: installed or not, and what it takes."""
        return await parts.model(model_type)

    @routes.get("/health", response_model=None, responses=told("health") | refusals(503))
    async def health() -> dict[str, Any]:
        """The machine, and the weights on it."""
        return await parts.ask("health")

    @routes.post(
        "/download",
        status_code=202,
        dependencies=ADMIN,
        response_model=DownloadBody,
        responses=refusals(404, 409, 422),
    )
    async def download(wanted: ModelName = Body()) -> Any:  # noqa: B008 (FastAPI's way)
        """Download a model, or go on where a download of it was broken off. One at a time."""
        try:
            return parts.downloads.start(_downloadable(wanted.model)).public()
        except Busy as busy:
            raise Refusal(
                409, "CONFLICT", f"{busy.model} is being downloaded; one at a time"
            ) from None

    @routes.get("/download/progress", response_model=Downloads)
    async def progress() -> Any:
        """How far the downloads are that were asked for since the server started."""
        return {"downloads": [each.public() for each in parts.downloads.known()]}

    @routes.delete(
        "/download/{model}",
        dependencies=ADMIN,
        response_model=DownloadBody,
        responses=refusals(404, 409),
    )
    async def cancel(model: ModelType) -> Any:
        """End a download; what has arrived is kept for the next try."""
        ended = parts.downloads.cancel(_downloadable(model))
        if ended is None:
            raise Refusal(409, "CONFLICT", "That model is not being downloaded")
        return ended.public()

    @routes.post(
        "/verify/{model_type}",
        responses={200: {"model": Verified}, **refusals(404, 409)},
    )
    async def verify(model_type: ModelType) -> JSONResponse:
        """Read every byte of a model's weights against their hashes; may take minutes."""
        model = _downloadable(model_type)
        if verifying.locked():
            raise Refusal(409, "CONFLICT", "Another model is being verified; try again later")
        async with verifying:
            problems = await asyncio.to_thread(_problems, model, parts)
        return JSONResponse({"model": model, "ok": not problems, "problems": problems})

    return routes


def _downloadable(name: str) -> str:
    """The id of a model, or the name of an extra that can be downloaded by itself.

    Raises:
        Refusal: 404.
    """
    return name.lower() if name.lower() in EXTRAS else model_id(name)


def _problems(model: str, parts: Parts) -> list[str]:
    found = []
    for component in components_of([model]):
        try:
            store.verify(parts.settings.models_dir, component)
        except ModelCorrupt as problem:
            found.append(problem.message)
        except OSError as problem:
            found.append(f"{component.name} can't be read ({type(problem).__name__})")
    return found
