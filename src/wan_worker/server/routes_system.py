"""Routes: is the server up, and what is it doing?

Not covered: the state of the models (routes_models).
"""

import asyncio
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response

from wan_worker.reports import metrics
from wan_worker.server.bodies import Health
from wan_worker.server.shared import Parts


def router(parts: Parts) -> APIRouter:
    routes = APIRouter(tags=["system"])

    @routes.get("/health", response_model=Health)
    @routes.get("/v2/health", response_model=Health)
    async def health() -> Any:
        """Whether jobs are being worked off."""
        state = parts.dispatcher.state
        return {
            "status": "ok" if state == "ready" else state,
            "engine": state,
            "restarts": parts.dispatcher.restarts,
            "queue": parts.queue(),
        }

    @routes.get(
        "/ping", response_class=Response, responses={204: {"description": "The engine is starting"}}
    )
    async def ping() -> Response:
        """200 where jobs can be worked off, 204 while the engine starts."""
        return Response(status_code=200 if parts.dispatcher.state == "ready" else 204)

    @routes.get(
        "/metrics",
        response_class=Response,
        responses={200: {"description": "Metrics", "content": {"text/plain": {}}}},
    )
    async def prometheus() -> Response:
        """For a Prometheus server: the queue, the machine and what was measured."""
        health, performance = await asyncio.gather(
            parts.ask_if_there("health"), parts.ask_if_there("performance")
        )
        up = parts.dispatcher.state == "ready"
        server = metrics.Server(**parts.queue(), engine_up=up, restarts=parts.dispatcher.restarts)
        body = metrics.render(health, performance, server)
        return Response(body, media_type=metrics.CONTENT_TYPE)

    return routes
