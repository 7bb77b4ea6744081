"""What is in the OpenAPI document? FastAPI's own, plus the files of schemas/ and the API key.

Requests for generation and their results are described only once, in schemas/, and used here too.
Not covered: the other bodies (bodies), and the page that shows the document (routes_page).
"""

import copy
import json
from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from wan_worker.reports import info
from wan_worker.request.schema import SCHEMAS_DIR
from wan_worker.server.bodies import Submitted, refusals

DESCRIPTION: Final = """
Makes videos and images with the Wan models, one job after the other.

Submit a request, look how its job is (or watch it by server-sent events or WebSocket), and fetch
the files. Every failure has one form: `{"error": {code, message, field, retryable, stage}}`.
"""

TAGS: Final = (
    ("generation", "Jobs: submit, look, watch, cancel, fetch."),
    ("models", "Which models are here and whole, and getting the others."),
    ("wan-models", "What each model can do, and which one to take."),
    ("performance", "How fast this worker is."),
    ("dashboard", "All that a dashboard shows, and the page that is one."),
    ("system", "Is the server up?"),
)

REQUEST: Final = "GenerationRequest"
ENHANCED: Final = "EnhancedRequest"
RESULT: Final = "GenerationResult"

OPTIMIZE: Final = {
    "type": "boolean",
    "default": True,
    "description": "Take acceleration cached where the job's model has it, and the request names "
    "none.",
}

MODE: Final = (
    "What to make: a still image or a video clip. May be left out: job_type says it then, and "
    "without one it is video."
)

EXAMPLE: Final = {
    "model_type": "T2V-1.3B",
    "prompt": "A cat walking in a garden, cinematic lighting",
    "width": 832,
    "height": 480,
    "num_frames": 33,
    "fps": 16,
}


def body_of(name: str) -> dict[str, Any]:
    """For ``openapi_extra``: the request's body has this schema."""
    content = {"schema": _reference(name), "example": EXAMPLE}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def _holding(schema: dict[str, Any]) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}


def taken() -> dict[int | str, dict[str, Any]]:
    """For ``responses``: an accepted job, with links to the routes about it."""
    parameters = {"task_id": "$response.body#/task_id"}
    links = {
        name: {
            "operationRef": f"#/paths/{path.replace('/', '~1')}/{method}",
            "parameters": parameters,
        }
        for name, path, method in (
            ("look", "/api/v1/generation/{task_id}", "get"),
            ("watch", "/api/v1/generation/{task_id}/events", "get"),
            ("cancel", "/api/v1/generation/{task_id}/cancel", "post"),
        )
    }
    return {202: {"model": Submitted, "description": "The job waits", "links": links}}


def told(report: str, *path: str) -> dict[int | str, dict[str, Any]]:
    """For ``responses``: the answer of ``mode: info`` with this report, or a part of it."""
    schema = {"$ref": "/".join([_reference(_report(report))["$ref"], *path])}
    return {200: {"description": "OK"} | _holding(schema)}


def install(app: FastAPI) -> None:
    """Make the application serve the whole document."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title=app.title,
        version=app.version,
        description=DESCRIPTION.strip(),
        routes=app.routes,
        tags=[{"name": name, "description": description} for name, description in TAGS],
    )
    components = document.setdefault("components", {})
    components["schemas"] = {**components.get("schemas", {}), **_schemas()}
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's form, which we don't use
        components["schemas"].pop(name, None)
    for operations in document["paths"].values():
        for operation in operations.values():
            if "422" in operation["responses"]:
                operation["responses"]["422"] = refusals(422)[422] | _holding(_reference("Refused"))
                del operation["responses"]["422"]["model"]
    components["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    # The empty entry: no key is needed if the server has none.
    document["security"] = [{}, {"bearer": []}, {"key": []}]
    return document


def _schemas() -> dict[str, Any]:
    """The files of schemas/ as components."""
    request = json.loads((SCHEMAS_DIR / "request.schema.json").read_text("utf-8"))
    response = json.loads((SCHEMAS_DIR / "response.schema.json").read_text("utf-8"))
    question_fields = {"report"}.union(*info.TAKES.values()) - {"model"}
    for name in question_fields:
        del request["properties"][name]
    request["properties"]["mode"] |= {"enum": ["image", "video"], "description": MODE}
    enhanced = copy.deepcopy(request)
    enhanced["properties"]["enable_optimization"] = OPTIMIZE
    return {
        REQUEST: _moved(request, REQUEST),
        ENHANCED: _moved(enhanced, ENHANCED),
        RESULT: _moved({k: v for k, v in response.items() if k != "$defs"}, RESULT),
        **{
            _report(name): _moved(definition, RESULT)
            for name, definition in response["$defs"].items()
        },
    }


def _moved(schema: Any, name: str) -> Any:
    """The schema as a component, with its references changed to match."""
    if isinstance(schema, list):
        return [_moved(item, name) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    moved = {
        key: _moved(value, name) for key, value in schema.items() if key not in ("$schema", "$id")
    }
    pointer = schema.get("$ref")
    if isinstance(pointer, str):
        kind, _, rest = pointer.removeprefix("#/").partition("/")
        inside = f"{_reference(name)['$ref']}/{kind}/{rest}"
        moved["$ref"] = _reference(_report(rest))["$ref"] if kind == "$defs" else inside
    return moved


def _report(name: str) -> str:
    return f"Report{name.capitalize()}"


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}
