"""How does the HTTP API refuse? Each failure of the worker has a status; HTTP adds its own.

The body always has the same form: ``{"error": {code, message, field, retryable, stage}}``.
Not covered: how a job ended; a request that asks about a failed job does not itself fail.
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
"""The status of each code; other codes have 500."""


class Refusal(Exception):
    """The server refuses a request with a status of HTTP's own."""

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
    """The response when the worker has answered with an error."""
    return JSONResponse({"error": pointed(error)}, STATUS.get(error["code"], 500))


def refused(error: WorkerError, stage: str = "plan") -> JSONResponse:
    """The response to a request that the worker refuses."""
    return failed(public(error, stage))


def pointed(error: dict[str, Any]) -> dict[str, Any]:
    """The error with pointers into the HTTP body, which corresponds to ``input`` on RunPod."""
    field = error["field"]
    if field is not None and (field + "/").startswith("/input/"):
        field = field.removeprefix("/input")
    return error | {"field": field, "message": pointed_text(error["message"])}


def pointed_text(message: str) -> str:
    """A message whose pointers are changed in the same way as by ``pointed``."""
    return _POINTER.sub("/", message)


_POINTER: Final = re.compile(r"(?<![^\s(])/input/")
"""Only at the start of a word, so not inside a longer path."""


def unreadable() -> Refusal:
    return Refusal(400, "INVALID_REQUEST", "The body is no JSON that can be read")


def not_found(what: str) -> Refusal:
    return Refusal(404, "NOT_FOUND", what)


def not_ready() -> Refusal:
    return Refusal(
        503, "NOT_READY", "The worker is starting; ask again in a few seconds", retry_after=5
    )
