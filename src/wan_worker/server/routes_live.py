"""Routes: watch a running job, by WebSocket or by server-sent events.

Both carry the same messages, JSON objects with a ``type``: ``progress``, ``preview`` and, as the
last one, ``ended``. A late watcher first gets the latest message of each type. A slow reader misses
outdated messages. For an ended job, the only message says how it ended.
Not covered: who may watch (access), where messages come from (queue.watchers, queue.dispatch).
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
"""After this time without a message, an event stream sends a comment, because proxies close silent
connections. For a WebSocket, uvicorn sends pings."""

LAST: Final = "ended"
"""The id of a stream's last event. A browser that reconnects with it gets the answer to stop."""


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
        sending = asyncio.create_task(_send_messages(socket, task_id, parts))
        receiving = asyncio.create_task(_wait_for_close(socket))
        try:
            await asyncio.wait({sending, receiving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sending.cancel()
            receiving.cancel()
            await asyncio.gather(sending, receiving, return_exceptions=True)

    return routes


async def messages(task_id: str, parts: Parts) -> AsyncGenerator[Message, None]:
    """All messages about a job; ``ended`` is the last."""
    entry = entry_of(task_id, parts)  # still current below: nothing is awaited until ``follow``
    if entry.status == "queued":
        parts.dispatcher.tell_position(entry)
    if not entry.ended:
        async with aclosing(parts.watchers.follow(task_id)) as following:
            async for message in following:
                if message["type"] != ENDED:
                    yield message
    entry = entry_of(task_id, parts)
    job = shown(entry, parts)
    outcome = "result" if entry.answer is not None else "error"
    yield {"type": ENDED, "task_id": task_id, "status": entry.status, outcome: job[outcome]}


async def _send_messages(socket: WebSocket, task_id: str, parts: Parts) -> None:
    async with aclosing(messages(task_id, parts)) as following:
        async for message in following:
            await socket.send_text(json.dumps(message))
    await socket.close()


async def _wait_for_close(socket: WebSocket) -> None:
    """Return when the other end has closed; its messages are ignored."""
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass


async def _as_events(following: AsyncGenerator[Message, None]) -> AsyncGenerator[str, None]:
    """Each message as an event, and a comment after a long silence."""
    next_message: asyncio.Task[Any] | None = None
    try:
        yield "retry: 2000\n\n"
        while True:
            next_message = next_message or asyncio.ensure_future(anext(following))
            done, _ = await asyncio.wait({next_message}, timeout=QUIET_SECONDS)
            if not done:
                yield ": still here\n\n"
                continue
            try:
                message = next_message.result()
            except StopAsyncIteration:
                return
            next_message = None
            name = f"id: {LAST}\n" if message["type"] == ENDED else ""
            yield f"{name}data: {json.dumps(message)}\n\n"
    finally:
        if next_message is not None:
            next_message.cancel()
            await asyncio.gather(next_message, return_exceptions=True)
        await following.aclose()
