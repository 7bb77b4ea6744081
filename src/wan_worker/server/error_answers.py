"""How does the HTTP API say no? Every failure of the worker as a status, and HTTP's own besides.

The body is the same everywhere: ``{"error": {code, message, field, retryable, stage}}``.
Not covered: how a job ended, which is no failure of the request that asks about it.
"""

import re
from typing import Any, Final

from starlette.responses import JSONResponse

from wan_worker.errors import WorkerError, public

STATUS: Final = {
    "INVALID_REQUEST": 422,
    "UNSUPPORTED": 422,
    "URL_BLOCKED": 422,
    "IMAGE_REJECTED": 422,
    "OUTPUT_TOO_LARGE": 422,
    "FETCH_FAILED": 502,
    "STORAGE_FAILED": 502,
    "OUT_OF_MEMORY": 507,
    "DISK_FULL": 507,
    "DEADLINE": 504,
    "MODEL_UNAVAILABLE": 409,
    "MODEL_CORRUPT": 409,
    "CANCELED": 409,
}
"""Of each code; of any other 500."""


class Refusal(Exception):
    """A request that HTTP itself has an answer to."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        field: str | None = None,
        retry_after: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(retry_after)
        self.error: dict[str, Any] = {
            "code": code,
            "message": message,
            "field": field,
            "retryable": retry_after is not None,
            "stage": "request",
        }

    def response(self) -> JSONResponse:
        return JSONResponse({"error": self.error}, self.status, self.headers)


def failed(error: dict[str, Any]) -> JSONResponse:
    """The response where the worker has answered with an error of its own."""
    return JSONResponse({"error": pointed(error)}, STATUS.get(error["code"], 500))


def refused(error: WorkerError, stage: str = "plan") -> JSONResponse:
    """The response to a request that the worker would not serve."""
    return failed(public(error, stage))


def pointed(error: dict[str, Any]) -> dict[str, Any]:
    """The error with its pointers into the body, which is what RunPod has below ``input``."""
    field = error["field"]
    if field is not None and (field + "/").startswith("/input/"):
        field = field.removeprefix("/input")
    return error | {"field": field, "message": pointed_text(error["message"])}


def pointed_text(message: str) -> str:
    """A message with the pointers in it as ``pointed`` has them."""
    return _POINTER.sub("/", message)


_POINTER: Final = re.compile(r"(?<![^\s(])/input/")
"""At the start of a word: not inside a longer path."""


def unreadable() -> Refusal:
    return Refusal(400, "INVALID_REQUEST", "The body is no JSON that can be read")


def not_found(what: str) -> Refusal:
    return Refusal(404, "NOT_FOUND", what)


def not_ready() -> Refusal:
    return Refusal(
        503, "NOT_READY", "The worker is starting; ask again in a few seconds", retry_after=5
    )
