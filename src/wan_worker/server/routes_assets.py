"""Routes: fetch the files that a job made.

Not covered: where files are stored (delivery), and how a job's result names them
(routes_generation).
"""

import asyncio
import base64
from typing import Any, Final

from fastapi import APIRouter
from fastapi.responses import FileResponse, RedirectResponse, Response
from starlette.types import Message, Receive, Scope, Send

from wan_worker.delivery import s3
from wan_worker.server.bodies import refusals
from wan_worker.server.error_answers import Refusal, not_found
from wan_worker.server.routes_generation import BASE, entry_of
from wan_worker.server.shared import Parts
from wan_worker.settings import Settings


def router(parts: Parts) -> APIRouter:
    routes = APIRouter(prefix=BASE, tags=["generation"])
    path = "/{task_id}/assets/{index}"

    @routes.head(path, include_in_schema=False)
    @routes.get(
        path, response_class=FileResponse, responses=_FILE | refusals(400, 404, 409, 416, 422)
    )
    async def asset(task_id: str, index: int) -> Response:
        """One file of a job that completed; takes range requests."""
        entry = entry_of(task_id, parts)
        if not entry.ended:
            raise Refusal(
                409,
                "CONFLICT",
                f"The job is not finished yet: it is {entry.status}; its file is there when it is "
                "completed",
                retry_after=5,
            )
        assets = (entry.answer or {}).get("assets", [])
        if not 0 <= index < len(assets):
            raise not_found("The job has no such file")
        return await asyncio.to_thread(_file, assets[index], parts.settings)

    return routes


_FILE: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The file",
        "content": {
            kind: {"schema": {"type": "string", "format": "binary"}}
            for kind in ("video/*", "image/*")
        },
    },
    206: {"description": "The part of it that was asked for"},
    307: {"description": "It lies in a bucket: there"},
}


class _File(FileResponse):
    """A file response whose refusals of a bad range have the same form as all others."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = False

        async def send_unless_refused(message: Message) -> None:
            nonlocal refused
            status = message.get("status")
            if status in _BAD_RANGE:
                refused = True
                size = dict(message["headers"]).get(b"content-range")
                headers = {} if size is None else {"Content-Range": size.decode("latin-1")}
                refusal = Refusal(status, "INVALID_REQUEST", _BAD_RANGE[status], headers=headers)
                await refusal.response()(scope, receive, send)
            elif not refused:
                await send(message)

        await super().__call__(scope, receive, send_unless_refused)


_BAD_RANGE: Final = {
    400: "The header Range is none that can be read: send bytes=FIRST-LAST",
    416: "The file has no such part",
}


def _file(asset: dict[str, Any], settings: Settings) -> Response:
    if "data" in asset:
        return Response(base64.b64decode(asset["data"]), media_type=asset["content_type"])
    if "url" not in asset:
        raise not_found("The file was in the answer, which is too old to hold it still")
    if not asset["url"].startswith("file:"):
        if settings.bucket is None:  # the file is in the caller's bucket, or in an earlier one
            return RedirectResponse(asset["url"])
        bucket = s3.S3(settings.bucket, settings.url_expiry_seconds)
        return RedirectResponse(s3.address(asset["key"], bucket))
    root = settings.output_dir.resolve()
    path = (root / asset["key"]).resolve()
    if not path.is_relative_to(root) or not path.is_file():
        raise not_found("The file is no longer there")
    return _File(
        path, media_type=asset["content_type"], headers={"X-Content-Type-Options": "nosniff"}
    )
