"""What do the HTTP API's bodies look like? The OpenAPI document is made from these models.

Not covered: requests for generation and their results, and the reports of ``mode: info``: the files
in schemas/ describe them.
"""

from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

Time = str | None


class Error(BaseModel):
    """Why a request, or a job, failed."""

    code: str = Field(description="Stands for the reason; docs/requests.md lists them.")
    message: str = Field(description="What is wrong and what to do, for a person.")
    field: str | None = Field(description="JSON pointer of the field at fault, if one is.")
    retryable: bool = Field(description="Whether the same request may succeed later.")
    stage: str = Field(description="What the job, or the server, was at.")


class Refused(BaseModel):
    """The body of every answer but 2xx and 3xx."""

    error: Error

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "error": {
                    "code": "INVALID_REQUEST",
                    "message": "Must look like 832x480",
                    "field": "/size",
                    "retryable": False,
                    "stage": "plan",
                }
            }
        }
    )


class Links(BaseModel):
    """Paths on this server."""

    self: str
    cancel: str
    events: str = Field(description="Server-sent events.")
    live: str = Field(description="The same by WebSocket.")


class Submitted(BaseModel):
    """A job that has been taken."""

    task_id: str
    status: Literal["queued", "running", "completed", "failed", "canceled"]
    position: int | None = Field(description="Jobs that wait before it; null when it runs.")
    links: Links


class Job(Submitted):
    """A job as it stands."""

    cancel_requested: bool = Field(
        description="It is to end, and has not ended yet: it does within a step."
    )
    submitted_at: str = Field(description="ISO 8601, as are the other times.")
    started_at: Time
    ended_at: Time
    progress: dict[str, Any] | None = Field(
        description="While it runs: stage, step, steps, seconds_left, message, number."
    )
    request: dict[str, Any] = Field(description="As submitted, with a word for each picture.")
    result: dict[str, Any] | None = Field(
        description="Of a completed job: schemas/response.schema.json, files by this server's URLs."
    )
    error: Error | None = Field(description="Of one that failed or was cancelled.")


class History(BaseModel):
    """Jobs, newest first."""

    jobs: list[Job] = Field(
        description="Without the bytes of files: each asset has a url and no data."
    )
    before: int | None = Field(description="Ask with this for the next page; null on the last.")


class ModelName(BaseModel):
    """Which model."""

    model: str = Field(
        max_length=100,
        description="An id, Wan's own task name, or the name of an extra such as an upscaler.",
    )

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"example": {"model": "wan2.1-t2v-1.3b"}}
    )


class Download(BaseModel):
    """The latest download of one model."""

    model: str
    status: Literal["downloading", "completed", "failed", "canceled"]
    bytes_done: int
    bytes_total: int
    message: str
    started_at: float
    ended_at: float | None
    error: Error | None


class Downloads(BaseModel):
    """All that were asked for since the server started."""

    downloads: list[Download]


class Verified(BaseModel):
    """Whether weights are what their manifests say."""

    model: str
    ok: bool
    problems: list[str]


class Queue(BaseModel):
    """How full the queue is."""

    queued: int
    running: int
    limit: int


class Health(BaseModel):
    """Whether jobs are being worked off."""

    status: str = Field(description="ok, or what the engine is at.")
    engine: Literal["starting", "ready", "restarting", "unfit", "stopped"]
    restarts: int = Field(description="Of the engine, since the server started.")
    queue: Queue


class Alert(BaseModel):
    """Something that a person should look at."""

    level: Literal["warning", "critical"]
    code: str
    message: str


class Alerts(BaseModel):
    """None where all is well."""

    alerts: list[Alert]


class ModelHealth(BaseModel):
    """Whether a model can serve jobs."""

    model: str
    healthy: bool
    status: Literal["installed", "damaged", "missing"]
    loaded: bool = Field(description="All of it is in memory.")
    weights: Literal["tiny", "full"] | None
    verified: dict[str, Any] | None = Field(
        description="When every byte was read, and what came of it; null where none was."
    )
    problems: list[str]


class Hardware(BaseModel):
    """The machine that generates."""

    device: str
    name: str
    memory_gb: float
    free_gb: float
    reason: str


class PerformanceStatus(BaseModel):
    """The machine at this moment."""

    busy: bool = Field(description="A job has the GPU.")
    hardware: Hardware
    loaded: list[str] = Field(description="Components in memory.")
    load_average: float = Field(description="Of the last minute: processes that wanted a core.")
    free_bytes: dict[str, int] = Field(description="Of the disks that jobs write to.")
    queue: Queue


class Overview(BaseModel):
    """The whole in a few figures."""

    engine: str
    hardware: Hardware | None = Field(description="null while the engine starts.")
    models: list[str] = Field(description="Those that are installed.")
    jobs: dict[str, int] = Field(description="By status.")
    queue: Queue
    download: Download | None
    alerts: list[Alert]


_REFUSALS: Final = {
    400: "The request is no HTTP or JSON that can be read",
    401: "No key, or a wrong one",
    403: "Not for you: another origin's page, or the admin key is needed",
    404: "There is no such thing",
    409: "Not as things stand",
    413: "The body is too large",
    415: "The body is not sent as JSON",
    416: "The file has no such part",
    422: "The request breaks a rule; `field` says where",
    429: "The queue is full; try again after Retry-After",
    502: "Somebody else's server does not answer as it should",
    503: "The engine is starting; try again after Retry-After",
    507: "The machine is too small, or too full, for it",
}

EVERYWHERE: Final = (400, 401, 403, 413, 415)
"""The refusals of access, which come before a route is found."""


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For ``responses``: these statuses, with the body that all refusals have."""
    return {
        status: {"model": Refused, "description": _REFUSALS[status]} for status in sorted(statuses)
    }


class Optimize(BaseModel):
    """Which model to measure."""

    model: str | None = Field(
        default=None, description="Left out: DEFAULT_MODEL, or the first that is installed."
    )

    model_config = ConfigDict(extra="forbid")


class Trial(BaseModel):
    """One way of computing, and how long it took."""

    way: str
    seconds: float = Field(description="Median, of denoising the same clip.")


class Calibration(BaseModel):
    """What came of measuring a model."""

    model: str
    machine: str
    torch: str = Field(description="Its version: another one's measurements are not used.")
    date: str
    clip: str
    trials: list[Trial] = Field(description="The first is how it was done before.")
    tuned: dict[str, Any] = Field(description="What plans take from it; nulls: the usual.")
    gain: float = Field(description="How many times as fast as before.")


class Order(BaseModel):
    """The measuring of a model."""

    model: str
    status: Literal["running", "completed", "failed", "canceled"]
    done: int = Field(description="Clips made so far.")
    of: int | None
    started_at: float = Field(description="Seconds since 1970, as is the other time.")
    ended_at: float | None
    calibration: Calibration | None
    error: Error | None


class Optimization(BaseModel):
    """The latest order, and all that was measured and not undone, oldest first."""

    latest: Order | None
    calibrations: list[Calibration]


class Call(BaseModel):
    """A request to this server."""

    method: str
    path: str
    body: dict[str, Any]


class Recommendation(BaseModel):
    """Something that would make this server faster."""

    id: str
    why: str
    how: str
    gain: str
    request: Call | None = Field(description="What does it, if the server itself can.")
    model: str | None


class Recommendations(BaseModel):
    """The most telling first."""

    recommendations: list[Recommendation]
