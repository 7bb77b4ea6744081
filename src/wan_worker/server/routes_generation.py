"""Routes: submit a job, see its state, cancel it.

Not covered: what a request means (request), what runs it (queue.dispatch), and the files that it
makes (routes_assets).
"""

import asyncio
import json
import time
import uuid
from datetime import UTC, datetime
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse
from starlette.convertors import StringConvertor, register_url_convertor

from wan_worker.catalog.models import MODELS
from wan_worker.errors import InvalidRequest
from wan_worker.planning.model_choice import accelerates
from wan_worker.queue.ledger import Entry, QueueFull, Status
from wan_worker.reports.model_advice import PICTURE
from wan_worker.request import parse as requests
from wan_worker.server.bodies import History, Job, refusals
from wan_worker.server.error_answers import (
    STATUS,
    Refusal,
    not_found,
    pointed,
    pointed_text,
    unreadable,
)
from wan_worker.server.openapi import ENHANCED, REQUEST, body_of, taken, told
from wan_worker.server.shared import AnsweredError, Parts
from wan_worker.settings import Settings

BASE: Final = "/api/v1/generation"

FORESEE_SECONDS: Final = 5.0
"""Time for the engine to plan a request; if that takes longer, the job is accepted unplanned."""

SHORT_CHARACTERS: Final = 1024
"""A picture value up to this length is sent for planning: long enough for a URL, not for a file."""


class _JobId(StringConvertor):
    """A job's id. It can't be the name of a route beside it: that route answers a wrong method."""

    regex = "(?!(?:submit|plan)$)[^/]+"


register_url_convertor("job", _JobId())


def router(parts: Parts) -> APIRouter:
    routes = APIRouter(prefix=BASE, tags=["generation"])
    ending: dict[str, Any] = {
        "status_code": 202,
        "responses": {202: {"model": Job}, **refusals(404, 409)},
    }

    @routes.post(
        "/submit",
        status_code=202,
        openapi_extra=body_of(REQUEST),
        responses={**taken(), **refusals(409, 422, 429, 507)},
    )
    async def submit(request: Request) -> JSONResponse:
        """Put a job into the queue.

        What would fail however often it is tried is refused at once: its plan is made first, where
        the engine is there to make it.
        """
        return await _submitted(_fields(await request.body()), parts)

    @routes.post(
        "/enhanced/submit",
        status_code=202,
        openapi_extra=body_of(ENHANCED),
        responses={**taken(), **refusals(409, 422, 429, 503, 507)},
    )
    async def submit_enhanced(request: Request) -> JSONResponse:
        """Put a job into the queue, made faster where its model allows it."""
        given = _fields(await request.body())
        wanted = given.pop("enable_optimization", True)
        if not isinstance(wanted, bool):
            raise InvalidRequest("Must be of type boolean", field="/input/enable_optimization")
        chosen = await _optimized(given, wanted, parts)
        return await _submitted(given | chosen, parts)

    @routes.post(
        "/plan",
        openapi_extra=body_of(REQUEST),
        response_model=None,
        responses={**told("plan"), **refusals(409, 422, 503, 507)},
    )
    async def plan(request: Request) -> JSONResponse:
        """What would be done for a request, why, and how long it would take; nothing is made."""
        given = _fields(await request.body())
        try:
            return JSONResponse(await parts.ask("plan", request=given))
        except AnsweredError as problem:
            raise AnsweredError(_as_request_error(problem.error)) from None

    @routes.get("", responses={200: {"model": History}, **refusals(422)})
    async def history(
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        status: Status | None = None,
        before: Annotated[int | None, Query(ge=1, le=2**62)] = None,
    ) -> JSONResponse:
        """The jobs, newest first.

        Files that are in an answer (`response_format: base64`) are left out of lists: an asset
        then has a `url` of this server in place of its `data`. Ask for the job to have all of it.
        """
        found = parts.ledger.history(limit, status, before)
        next_before = found[-1].place if len(found) == limit else None
        return JSONResponse(
            {"jobs": [shown(entry, parts) for entry in found], "before": next_before}
        )

    @routes.get("/{task_id:job}", responses={200: {"model": Job}, **refusals(404)})
    async def look(task_id: str) -> JSONResponse:
        """How a job is."""
        return JSONResponse(shown(entry_of(task_id, parts), parts))

    @routes.post("/{task_id}/cancel", **ending)
    @routes.delete("/{task_id:job}", **ending)
    async def cancel(task_id: str) -> JSONResponse:
        """End a job: at once where it waits, within one step where it runs."""
        entry = entry_of(task_id, parts)
        if not parts.dispatcher.cancel(entry):
            raise Refusal(409, "CONFLICT", f"The job has ended: it is {entry.status}")
        return JSONResponse(shown(entry_of(task_id, parts), parts), 202)

    return routes


def _fields(body: bytes) -> dict[str, Any]:
    """The request's fields; mode video if they do not say what to make.

    Raises:
        Refusal: 400, if the body is not JSON.
        InvalidRequest: it is not an object, or it has fields that only RunPod takes.
    """
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise unreadable() from None
    if not isinstance(given, dict):
        raise InvalidRequest("The body must be a JSON object with the request's fields")
    for name, why in _RUNPOD_ONLY.items():
        if name in given:
            raise InvalidRequest(why, field=f"/input/{name}")
    if given.get("mode") == "info":
        raise InvalidRequest(_NOT_A_JOB, field="/input/mode")
    return given if {"mode", "job_type"} & given.keys() else given | {"mode": "video"}


_NOT_A_JOB: Final = (
    f"mode info is no job here: POST the request to {BASE}/plan, or see /docs for the other "
    "questions"
)
_RUNPOD_ONLY: Final = {
    "input": "Send what is inside input as the body itself",
    "s3Config": "s3Config works on RunPod only; here files go to the server's own bucket or folder",
}
"""Fields that stand around a request on RunPod only, with the message that refuses them."""


def _as_request_error(error: dict[str, Any]) -> dict[str, Any]:
    """An error about the request inside a question, changed to one about the request itself."""
    field = (error["field"] or "").replace("/input/request", "/input", 1) or None
    return error | {"field": field, "message": error["message"].replace("/input/request", "/input")}


async def _submitted(given: dict[str, Any], parts: Parts) -> JSONResponse:
    task_id = uuid.uuid4().hex
    # In threads, because pictures in the request may have megabytes.
    await asyncio.to_thread(requests.request, {"id": task_id, "input": given}, parts.contract)
    await _check_plan(given, parts)
    try:
        await asyncio.to_thread(parts.ledger.submit, task_id, given, parts.settings.queue_limit)
    except QueueFull:
        raise Refusal(
            429,
            "QUEUE_FULL",
            f"{parts.settings.queue_limit} jobs are waiting; try again later",
            retry_after=10,
        ) from None
    parts.dispatcher.submitted()
    entry = entry_of(task_id, parts)
    body = {name: value for name, value in shown(entry, parts).items() if name in _SUBMITTED}
    return JSONResponse(body, 202, {"Location": f"{BASE}/{task_id}"})


async def _check_plan(given: dict[str, Any], parts: Parts) -> None:
    """If the engine can be asked, refuse a request that can't be planned; else the job will fail.

    Raises:
        AnsweredError: the error with which the job would fail.
    """
    try:
        async with asyncio.timeout(FORESEE_SECONDS):
            await parts.ask("plan", request=_without_pictures(given, parts))
    except (Refusal, TimeoutError):
        return
    except AnsweredError as problem:
        if problem.error["code"] in STATUS:
            raise AnsweredError(_as_request_error(problem.error)) from None


def _without_pictures(given: dict[str, Any], parts: Parts) -> dict[str, Any]:
    """The request with a stand-in for each long picture: planning needs only its presence."""
    return {
        name: PICTURE
        if parts.contract.aliases.get(name, name) in requests.REFERENCES
        and len(str(value)) > SHORT_CHARACTERS
        else value
        for name, value in given.items()
    }


_SUBMITTED: Final = ("task_id", "status", "position", "links")


async def _optimized(given: dict[str, Any], wanted: bool, parts: Parts) -> dict[str, Any]:
    """``acceleration: cached``, if the request names none and the job's model has it."""
    if not wanted or "acceleration" in given:
        return {}
    try:
        plan = await parts.ask("plan", request=_without_pictures(given, parts))
    except AnsweredError:  # submitting gives the same error
        return {}
    return {"acceleration": "cached"} if accelerates(MODELS[plan["model"]], "cached") else {}


def entry_of(task_id: str, parts: Parts) -> Entry:
    entry = parts.ledger.find(task_id)
    if entry is None:
        raise not_found("No such job")
    return entry


def shown(entry: Entry, parts: Parts) -> dict[str, Any]:
    # The engine records the end before it reports it.
    progress = None if entry.ended else parts.watchers.latest(entry.id, "progress")
    left_out = ("type", "task_id", "status", "position")
    return {
        "task_id": entry.id,
        "status": entry.status,
        "position": parts.ledger.ahead(entry),
        "cancel_requested": not entry.ended and parts.dispatcher.canceling(entry.id),
        "submitted_at": _time(entry.submitted_at),
        "started_at": _time(entry.started_at),
        "ended_at": _time(entry.ended_at),
        "progress": progress
        and {name: value for name, value in progress.items() if name not in left_out},
        "request": entry.shown,
        "result": None if entry.answer is None else _result(entry, parts.settings),
        "error": None if entry.error is None else pointed(entry.error),
        "links": {
            "self": f"{BASE}/{entry.id}",
            "cancel": f"{BASE}/{entry.id}/cancel",
            "events": f"{BASE}/{entry.id}/events",
            "live": f"{BASE}/{entry.id}/live",
        },
    }


def _result(entry: Entry, settings: Settings) -> dict[str, Any]:
    """The response, with a URL of this server for each file that its recorded URL can't give.

    These are files in a folder, inline files that are left out of a list, and files in the
    operator's bucket whose signature has expired: this server signs a new URL on request.
    """
    expired = (
        settings.bucket is not None
        and settings.bucket.public_url is None
        and time.time() > (entry.ended_at or 0) + settings.url_expiry_seconds
    )
    answer = dict(entry.answer or {})
    answer["assets"] = [
        asset
        if "data" in asset or not (expired or asset.get("url", "file:").startswith("file:"))
        else {"url": f"{BASE}/{entry.id}/assets/{index}"}
        | {name: value for name, value in asset.items() if name != "url"}
        for index, asset in enumerate(answer["assets"])
    ]
    answer["warnings"] = [
        warning | {"message": pointed_text(warning["message"])}
        for warning in answer.get("warnings", [])
    ]
    return answer


def _time(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
