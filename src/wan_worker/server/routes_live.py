"""Routes: watch a job as it goes, by WebSocket or by server-sent events.

Both carry the same messages, JSON objects with a ``type``: ``progress``, ``preview`` and, as the
last one, ``ended``. Who comes late gets the latest of each first, who reads slowly misses what is
out of date, and who asks about a job that has ended is told how.
Not covered: who may watch (access), and where the messages come from (watchers, dispatch).
"""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from starlette.websockets import WebSocket

from wan_worker.queue.watchers import ENDED, Message
from wan_worker.server.bodies import refusals
from wan_worker.server.error_answers import Refusal
from wan_worker.server.routes_generation import BASE, entry_of, shown
from wan_worker.server.shared import Parts

QUIET_SECONDS: Final = 15.0
"""After so long without a message an event stream says that it is still there: proxies close what
is silent. A WebSocket is pinged by the server itself."""

LAST: Final = "ended"
"""The id of a stream's last event: a browser that connects again with it is told to stop."""


def router(parts: Parts) -> APIRouter:
    routes = APIRouter(prefix=BASE, tags=["generation"])

    @routes.get(
        "/{task_id}/events",
        response_class=StreamingResponse,
        responses={
            200: {"description": "The stream", "content": {"text/event-stream": {}}},
            204: {"description": "The stream has ended: connect no more"},
            **refusals(404),
        },
    )
    async def events(task_id: str, request: Request) -> Response:
        """Server-sent events: each one's data is a message."""
        entry = entry_of(task_id, parts)
        if request.headers.get("last-event-id") == LAST:
            return Response(status_code=204)
        return StreamingResponse(
            _as_events(messages(entry.id, parts)),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    @routes.websocket("/{task_id}/live")
    async def live(socket: WebSocket, task_id: str) -> None:
        try:
            entry_of(task_id, parts)
        except Refusal as refusal:
            await socket.send_denial_response(refusal.response())
            return
        await socket.accept()
        telling = asyncio.create_task(_tell(socket, task_id, parts))
        leaving = asyncio.create_task(_until_gone(socket))
        try:
            await asyncio.wait({telling, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            telling.cancel()
            leaving.cancel()
            await asyncio.gather(telling, leaving, return_exceptions=True)

    return routes


async def messages(task_id: str, parts: Parts) -> AsyncGenerator[Message, None]:
    """All that there is to hear about a job, ``ended`` at last."""
    entry = entry_of(task_id, parts)  # as it is now: nothing is awaited before it is followed
    if entry.status == "queued":
        parts.dispatcher.tell_position(entry)
    if not entry.ended:
        async with aclosing(parts.watchers.follow(task_id)) as following:
            async for message in following:
                if message["type"] != ENDED:
                    yield message
    entry = entry_of(task_id, parts)
    job = shown(entry, parts)
    how = "result" if entry.answer is not None else "error"
    yield {"type": ENDED, "task_id": task_id, "status": entry.status, how: job[how]}


async def _tell(socket: WebSocket, task_id: str, parts: Parts) -> None:
    async with aclosing(messages(task_id, parts)) as following:
        async for message in following:
            await socket.send_text(json.dumps(message))
    await socket.close()


async def _until_gone(socket: WebSocket) -> None:
    """Return when the other end has closed; what it says is nothing to us."""
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass


async def _as_events(following: AsyncGenerator[Message, None]) -> AsyncGenerator[str, None]:
    """Each message as an event; a comment where none comes for long."""
    coming: asyncio.Task[Any] | None = None
    try:
        yield "retry: 2000\n\n"
        while True:
            coming = coming or asyncio.ensure_future(anext(following))
            done, _ = await asyncio.wait({coming}, timeout=QUIET_SECONDS)
            if not done:
                yield ": still here\n\n"
                continue
            try:
                message = coming.result()
            except StopAsyncIteration:
                return
            coming = None
            name = f"id: {LAST}\n" if message["type"] == ENDED else ""
            yield f"{name}data: {json.dumps(message)}\n\n"
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
        await following.aclose()
