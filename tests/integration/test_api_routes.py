"""Every route against the running server, each answer held to what the server's document says."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from jsonschema import Draft202012Validator
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import QUICK
from tests.integration.http_api import GENERATION, HttpApi, Reply
from tests.integration.worker import free_port

Check = Callable[[Any], object]

SMALL = {"size": "64x48", "num_frames": 5, "num_inference_steps": 2}


class Route(NamedTuple):
    """A route, one call of it, and what its answer must hold."""

    method: str
    template: str
    """As the document has it."""
    check: Check
    values: dict[str, str] = {}
    body: Any = None
    status: int = 200

    @property
    def path(self) -> str:
        return self.template.partition("?")[0]

    def __str__(self) -> str:
        return f"{self.method} {self.template}"


A14B = {"model_type": "T2V-A14B"}
T2V = {"model_type": "t2v-1.3B"}

# The service that users of the older one know, in its order; then what came after.
ROUTES = [
    Route("POST", f"{GENERATION}/submit", lambda told: told["task_id"],
          body=SMALL | {"model_type": "T2V-1.3B", "prompt": "A cat walking in a garden"},
          status=202),
    Route("POST", f"{GENERATION}/enhanced/submit", lambda told: told["task_id"],
          body=SMALL | {"model_type": "T2V-1.3B", "prompt": "Sunset over mountains",
                        "enable_optimization": True}, status=202),
    Route("GET", f"{GENERATION}/{{task_id}}", lambda told: told["status"] == "completed"),
    Route("GET", "/v2/health", lambda told: told["status"] == "ok"),
    Route("GET", "/api/v1/models/status", lambda told: len(told["models"]) == 9),
    Route("GET", "/api/v1/models/status/{model_type}", lambda told: told["status"] == "missing",
          A14B),
    Route("POST", "/api/v1/models/download", lambda told: told["status"] == "downloading",
          body={"model": "TI2V-5B"}, status=202),
    Route("GET", "/api/v1/models/download/progress",
          lambda told: told["downloads"][0]["model"] == "wan2.2-ti2v-5b"),
    Route("DELETE", "/api/v1/models/download/{model}", lambda told: told["status"] == "canceled",
          {"model": "ti2v-5b"}),
    Route("POST", "/api/v1/models/verify/{model_type}", lambda told: told["ok"] is True, T2V),
    Route("GET", "/api/v1/models/health", lambda told: told["ready"] is True),
    Route("GET", "/api/v1/wan-models/capabilities/{model_type}",
          lambda told: told["id"] == "wan2.2-t2v-a14b" and told["max_pixels"] >= 1280 * 720, A14B),
    Route("GET", "/api/v1/wan-models/health/{model_type}",
          lambda told: told["healthy"] is False and told["problems"], A14B),
    Route("GET", "/api/v1/wan-models/performance/{model_type}",
          lambda told: told["jobs"] >= 1 and told["stages"], T2V),
    Route("GET", "/api/v1/wan-models/compare/{model_a}/{model_b}",
          lambda told: "wan2.2-ti2v-5b" in json.dumps(told),
          {"model_a": "T2V-A14B", "model_b": "TI2V-5B"}),
    Route("GET", "/api/v1/wan-models/recommend?image=true&priority=speed",
          lambda told: "wan2.1-i2v-14b-480p" in json.dumps(told)),
    Route("GET", "/api/v1/wan-models/dashboard",
          lambda told: {m["capabilities"]["id"] for m in told["models"]} >= {"wan2.2-ti2v-5b"}),
    Route("GET", "/api/v1/performance/status", lambda told: told["hardware"]["name"]),
    Route("GET", "/api/v1/performance/metrics", lambda told: told["jobs"]["completed"] >= 1),
    Route("GET", "/api/v1/performance/analysis",
          lambda told: told["models"][0]["shares"] and told["failure_rate"] == 0),
    Route("GET", "/api/v1/performance/recommendations",
          lambda told: [each["id"] for each in told["recommendations"]
                        if each["id"] == "measure:wan2.1-t2v-1.3b"]),
    Route("POST", "/api/v1/performance/optimize",
          lambda told: told["latest"]["status"] == "running", body={}, status=202),
    Route("GET", "/api/v1/performance/optimize", lambda told: told["latest"]["done"] >= 0),
    Route("DELETE", "/api/v1/performance/optimize", lambda told: told["calibrations"] == []),
    Route("GET", "/api/v1/dashboard/overview",
          lambda told: "wan2.1-t2v-1.3b" in told["models"] and told["jobs"]["completed"] >= 1),
    Route("GET", "/api/v1/dashboard/metrics", lambda told: told["performance"]["models"]),
    Route("GET", "/api/v1/dashboard/models", lambda told: len(told["models"]) == 9),
    Route("GET", "/api/v1/dashboard/alerts", lambda told: told == {"alerts": []}),
    # What came after.
    Route("GET", GENERATION, lambda told: len(told["jobs"]) >= 1),
    Route("GET", f"{GENERATION}?limit=1&status=completed", lambda told: len(told["jobs"]) == 1),
    Route("POST", f"{GENERATION}/plan", lambda told: told["model"] == "wan2.1-t2v-1.3b",
          body=QUICK),
    Route("GET", "/health", lambda told: told["queue"]["limit"] == 100),
    Route("GET", "/api/v1/schema", lambda told: told["request"]["properties"]["prompt"]),
]  # fmt: skip

PAGES = [
    ("/api/v1/dashboard/html", "text/html"),
    ("/", "text/html"),
    ("/docs", "text/html"),
    ("/openapi.json", "application/json"),
]


@pytest.fixture(scope="module")
def api(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpApi]:
    # Nobody listens where downloads would come from.
    env = {"HF_ENDPOINT": f"http://127.0.0.1:{free_port()}"}
    with HttpApi(tmp_path_factory.mktemp("api"), models_dir, env=env) as server:
        server.wait_ready()
        yield server


@pytest.fixture(scope="module")
def done(api: HttpApi) -> str:
    """The id of a job that has completed."""
    job = api.wait(api.submit(QUICK))
    assert job["status"] == "completed"
    return str(job["task_id"])


@pytest.fixture(scope="module")
def document(api: HttpApi) -> dict[str, Any]:
    found: dict[str, Any] = api.get("/openapi.json").json
    return found


def held_to(document: dict[str, Any], route: Route, reply: Reply) -> None:
    """Fails where the answer is not what the document says."""
    operation = document["paths"][route.path][route.method.lower()]
    content = operation["responses"][str(reply.status)]["content"]["application/json"]
    schema = {"components": document["components"]} | content["schema"]
    problems = [
        f"{e.json_path}: {e.message}" for e in Draft202012Validator(schema).iter_errors(reply.json)
    ]
    assert problems == []


@pytest.mark.parametrize("route", ROUTES, ids=str)
def test_a_route_answers_as_its_document_says(
    api: HttpApi, done: str, document: dict[str, Any], route: Route
) -> None:
    path = route.template.format(**{"task_id": done} | route.values)
    reply = api.call(route.method, path, route.body)
    assert reply.status == route.status, reply.body
    assert route.check(reply.json), reply.json
    held_to(document, route, reply)


@pytest.mark.parametrize(("path", "kind"), PAGES)
def test_a_page_is_there(api: HttpApi, path: str, kind: str) -> None:
    page = api.get(path)
    assert (page.status, page.headers["content-type"].partition(";")[0]) == (200, kind)


def test_prometheus_reads_the_queue_the_machine_and_the_jobs(api: HttpApi, done: str) -> None:
    reply = api.get("/metrics")
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = {family.name for family in text_string_to_metric_families(reply.body.decode())}
    assert families >= {"wan_queue_jobs", "wan_engine_up", "wan_ready", "wan_job_stage_seconds"}
    assert 'wan_jobs_total{status="completed"}' in reply.body.decode()


def test_the_tables_routes_are_all_that_there_are(document: dict[str, Any]) -> None:
    there = {
        (method.upper(), path)
        for path, operations in document["paths"].items()
        for method in operations
    }
    elsewhere = {
        ("GET", "/ping"),
        ("GET", "/metrics"),
        ("GET", "/api/v1/dashboard/html"),
        ("GET", f"{GENERATION}/{{task_id}}/events"),
        ("GET", f"{GENERATION}/{{task_id}}/assets/{{index}}"),
        ("POST", f"{GENERATION}/{{task_id}}/cancel"),
        ("DELETE", f"{GENERATION}/{{task_id}}"),
    }
    assert {(r.method, r.path) for r in ROUTES} | elsewhere == there


def test_the_documents_requests_and_results_are_those_of_schemas(
    api: HttpApi, done: str, document: dict[str, Any]
) -> None:
    components = document["components"]

    def valid(name: str, value: Any) -> bool:
        schema = {"components": components, "$ref": f"#/components/schemas/{name}"}
        Draft202012Validator.check_schema(schema)
        return Draft202012Validator(schema).is_valid(value)

    assert valid("GenerationRequest", QUICK | {"steps": 5, "model_type": "T2V-A14B"})
    assert not valid("GenerationRequest", QUICK | {"enable_optimization": True})
    assert not valid("GenerationRequest", {"mode": "info"})
    assert not valid("GenerationRequest", QUICK | {"report": "health"})
    assert valid("EnhancedRequest", QUICK | {"enable_optimization": True})
    assert valid("GenerationResult", api.look(done)["result"])


def test_everything_in_the_document_is_described_and_every_reference_leads_somewhere(
    document: dict[str, Any],
) -> None:
    operations = [o for each in document["paths"].values() for o in each.values()]
    assert [o["operationId"] for o in operations if not o.get("description")] == []
    assert [o["operationId"] for o in operations if not o.get("tags")] == []

    def references(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                yield value["$ref"]
            for inner in value.values():
                yield from references(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from references(inner)

    for reference in set(references(document)):
        found: Any = document
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]


def test_what_the_document_allows_and_what_it_does_not_never_breaks_the_server(
    tmp_path: Path,
) -> None:
    # Without weights: a request that is valid must not draw a film for an hour.
    env = {"HF_ENDPOINT": f"http://127.0.0.1:{free_port()}", "QUEUE_LIMIT": "10000"}
    with HttpApi(tmp_path, tmp_path / "models", env=env) as server:
        server.wait_ready()
        done = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "run"),
                f"http://127.0.0.1:{server.port}/openapi.json",
                *(
                    "--phases",
                    "examples,coverage,fuzzing,stateful",
                    "--max-examples",
                    "8",
                    "--seed",
                    "1",
                ),
                "--generation-deterministic",
                *("--request-timeout", "30", "--workers", "1", "--no-color"),
                # Rules across fields (two names for one thing) are in no schema.
                *("--exclude-checks", "positive_data_acceptance"),
                *("--suppress-health-check", "all"),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout[-6_000:] + done.stderr[-2_000:]
        assert server.get("/health").json["engine"] == "ready"
        assert "Traceback" not in server.log()
