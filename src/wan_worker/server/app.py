"""The HTTP server: FastAPI and uvicorn, with the ledger, the dispatcher and the engine.

    python -m wan_worker.api         or `make api`; with src on PYTHONPATH

This process never imports torch: jobs run in another process (queue.engine).
Not covered: what the routes answer (the modules whose names begin with routes_).
"""

import asyncio
import errno
import logging
import os
import socket
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

import uvicorn
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Match, Route

from wan_worker import logs
from wan_worker.errors import ConfigInvalid, WorkerError
from wan_worker.queue.dispatch import Dispatcher
from wan_worker.queue.downloads import Downloads
from wan_worker.queue.ledger import FILE, Ledger, locked
from wan_worker.queue.watchers import Watchers
from wan_worker.request import schema
from wan_worker.server import (
    openapi,
    routes_assets,
    routes_generation,
    routes_live,
    routes_models,
    routes_page,
    routes_reports,
    routes_system,
    routes_tuning,
)
from wan_worker.server.access import Access
from wan_worker.server.bodies import EVERYWHERE, refusals
from wan_worker.server.error_answers import Refusal, failed, refused, unreadable
from wan_worker.server.shared import AnsweredError, Parts
from wan_worker.settings import Settings, from_env

log = logging.getLogger(__name__)

GRACE_SECONDS = 3
"""Time for open connections to finish, when the server stops."""


FAMILIES: Final = (
    *(routes_generation, routes_assets, routes_live),
    *(routes_models, routes_reports, routes_tuning, routes_system, routes_page),
)


def make_parts(settings: Settings) -> Parts:
    """The server's parts. The engine starts later, with the application.

    Raises:
        ConfigInvalid: the schemas are broken, or the ledger can't be opened.
    """
    ledger, watchers = Ledger(settings.state_dir / FILE), Watchers()
    dispatcher = Dispatcher(settings, ledger, watchers)
    downloads = Downloads(settings.models_dir)
    return Parts(settings, schema.load(), ledger, watchers, dispatcher, downloads)


Running = asyncio.Task[None]
"""The dispatcher's task."""


def create_app(parts: Parts, over: Callable[[Running], object] = lambda _: None) -> FastAPI:
    """The application with all routes, behind the access rules.

    Args:
        over: called with the dispatcher's task when it has ended.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        running = asyncio.create_task(parts.dispatcher.run())
        running.add_done_callback(over)
        try:
            yield
        finally:
            await parts.downloads.stop()
            await parts.dispatcher.stop()
            await asyncio.gather(running, return_exceptions=True)
            parts.ledger.close()

    app = FastAPI(
        title="Wan worker",
        version="1",
        lifespan=lifespan,
        redirect_slashes=False,  # a redirect would go to any host that the Host header names
        responses=refusals(*EVERYWHERE),
        docs_url=None,  # FastAPI's reference needs another host's files; routes_page has ours
        redoc_url=None,
    )
    openapi.install(app)
    routers = [family.router(parts) for family in FAMILIES]
    for router in routers:
        app.include_router(router)
    _add_error_handlers(app, routers)
    app.add_middleware(Access, settings=parts.settings)
    if parts.settings.api_cors_origins:  # outside Access: a browser's preflight has no key
        app.add_middleware(
            CORSMiddleware,
            allow_origins=parts.settings.api_cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "X-API-Key", "Content-Type", "Range"],
            expose_headers=["Content-Range", "Location", "Retry-After"],
        )
    return app


def _add_error_handlers(app: FastAPI, routers: Sequence[APIRouter]) -> None:
    """Give every failure the same form."""

    @app.exception_handler(Refusal)
    async def _(_: Request, problem: Refusal) -> JSONResponse:
        return problem.response()

    @app.exception_handler(WorkerError)
    async def _(_: Request, problem: WorkerError) -> JSONResponse:
        return refused(problem)

    @app.exception_handler(AnsweredError)
    async def _(_: Request, problem: AnsweredError) -> JSONResponse:
        return failed(problem.error)

    @app.exception_handler(sqlite3.Error)
    async def _(_: Request, problem: sqlite3.Error) -> JSONResponse:
        log.error("the ledger: %s", problem)
        return Refusal(507, "DISK_FULL", "The server's ledger can't be written").response()

    @app.exception_handler(Exception)
    async def _(_: Request, problem: Exception) -> JSONResponse:  # uvicorn logs it
        what = f"The server failed unexpectedly ({type(problem).__name__}); its log says how"
        return Refusal(500, "INTERNAL", what).response()

    @app.exception_handler(RequestValidationError)
    async def _(_: Request, problem: RequestValidationError) -> JSONResponse:
        first = problem.errors()[0]
        if first["type"] == "json_invalid":
            return unreadable().response()
        where = first["loc"][1:] if first["loc"][0] == "body" else first["loc"]
        field = "".join(f"/{part}" for part in where)
        return Refusal(422, "INVALID_REQUEST", str(first["msg"]), field=field).response()

    @app.exception_handler(HTTPException)
    async def _(request: Request, problem: HTTPException) -> JSONResponse:
        code = {404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED"}.get(problem.status_code, "HTTP")
        headers = dict(problem.headers or {})
        if problem.status_code == 405:
            headers["Allow"] = ", ".join(sorted(_methods(request, routers)))
        return Refusal(problem.status_code, code, problem.detail, headers=headers).response()


def _methods(request: Request, routers: Sequence[APIRouter]) -> set[str]:
    """The methods of a path. Starlette itself names only those of the first matching route."""
    matching = [
        route
        for router in routers
        for route in router.routes
        if isinstance(route, Route) and route.matches(request.scope)[0] != Match.NONE
    ]
    # A route with exactly this path wins over routes that would take its name for an id.
    exact = [route for route in matching if route.path == request.scope["path"]]
    return set().union(*(route.methods or () for route in exact or matching))


def main() -> int:
    """Serve until SIGTERM or SIGINT."""
    try:
        settings = from_env(os.environ)
        logs.start(settings.log_level, settings.log_format)
        with locked(settings.state_dir):
            serve(settings)
    except ConfigInvalid as problem:
        sys.exit(f"{problem.code}: {problem.message}")
    except Exception:
        log.exception("the server failed")
        return 1
    return 0


def listening(host: str, port: int) -> list[socket.socket]:
    """Sockets on every address of a host.

    Raises:
        ConfigInvalid: another program listens there, or the address can't be used.
    """
    found: list[socket.socket] = []
    try:
        for family, *_, address in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            found.append(socket.create_server(address[:2], family=family))
    except OSError as problem:
        for opened in found:
            opened.close()
        if problem.errno == errno.EADDRINUSE:
            raise ConfigInvalid(f"API_PORT: {port} is taken; set another") from problem
        raise ConfigInvalid(
            f"API_HOST, API_PORT: they can't be listened on ({problem.strerror})"
        ) from problem
    return found


def serve(settings: Settings) -> None:
    """Run the server until it is told to stop.

    Raises:
        ConfigInvalid: the environment is wrong, for the server or for its engine.
        Exception: the failure of the dispatcher.
    """
    sockets = listening(settings.api_host, settings.api_port)
    ended: list[Running] = []

    def over(running: Running) -> None:
        ended.append(running)
        server.should_exit = True

    app = create_app(make_parts(settings), over)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
    )
    with suppress(KeyboardInterrupt):  # uvicorn raises it again after the shutdown
        server.run(sockets)
    for running in ended:
        running.result()


if __name__ == "__main__":
    sys.exit(main())
