"""What must agree and can't be generated: fields and their readers, settings and their documents.

Each rule is a function of what it compares, and returns a sentence for each problem that says what
to do. ``broken`` asks all of them about this repository, as `make check` does.
Not covered: files that are generated (registry).
"""

import ast
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from docs.generate.tables import MEANINGS, leaves

from wan_worker import errors, settings
from wan_worker.planning.solvers import SOLVERS, Solver

ROOT = Path(__file__).resolve().parents[2]

READERS: Final = ("request/*.py", "reports/info.py")
"""Modules of the worker that read a request's fields."""

NOT_A_REQUEST: Final = ("where", "preset", "presets")
"""What these modules call things that have the fields' names and are not the caller's input."""

SERVER_ONLY: Final = frozenset({
    "API_HOST", "API_PORT", "API_KEY", "API_ADMIN_KEY", "API_CORS_ORIGINS", "API_MAX_BODY_BYTES",
    "QUEUE_LIMIT", "HF_TOKEN",
})  # fmt: skip
"""Settings of the HTTP API, which downloads models too. It runs on no serverless endpoint."""

PRESET_KEYS: Final = ("mode", "extends", "values", "profiles")
"""What a preset says beside fields."""

PLATFORM: Final = frozenset({"RUNPOD_WEBHOOK_GET_JOB"})
"""What RunPod sets itself."""


def broken() -> Iterator[str]:
    """Every problem of this repository."""
    schema = json.loads((ROOT / "schemas" / "request.schema.json").read_text("utf-8"))
    presets = json.loads((ROOT / "schemas" / "presets.json").read_text("utf-8"))
    listing = json.loads((ROOT / ".runpod" / "hub.json").read_text("utf-8"))
    operating = (ROOT / "docs" / "operating.md").read_text("utf-8")
    package = ROOT / "src" / "wan_worker"
    sources = [path.read_text("utf-8") for reader in READERS for path in package.glob(reader)]
    read = variables_read(settings.from_env)
    yield from unread_fields(schema, sources)
    yield from wrong_presets(presets, schema)
    yield from unknown_solvers(SOLVERS)
    yield from undocumented_settings(read, operating)
    yield from settings_not_offered(read, listing)
    yield from codes_without_meaning({kind.code for kind in leaves(errors.WorkerError)}, MEANINGS)


def unread_fields(schema: Mapping[str, Any], sources: Iterable[str]) -> Iterator[str]:
    """Fields that a request may give and nothing looks at. Aliases are read under their field's
    name."""
    read = {name for source in sources for name in _names_read(source)}
    for pointer, name, field in _fields(schema):
        if "x-alias-of" not in field and name not in read:
            yield (
                f"schemas/request.schema.json: nothing reads {pointer}; read it in "
                "src/wan_worker/request/parse.py (of mode info: reports/info.py), or take it out"
            )


def _fields(schema: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str, Any]]:
    for name, field in schema.get("properties", {}).items():
        yield f"{above}/{name}", name, field
        yield from _fields(field, f"{above}/{name}")
        yield from _fields(field.get("items", {}), f"{above}/{name}/0")


def _names_read(source: str) -> Iterator[str]:
    """Names that a module looks up: ``x.get("name")``, ``x["name"]``, ``pick("name")``."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Name(), args=[ast.Constant(value=str(name)), *_]):
                yield name
            case (
                ast.Call(
                    func=ast.Attribute(value=looked_in), args=[ast.Constant(value=str(name)), *_]
                )
                | ast.Subscript(
                    value=looked_in, slice=ast.Constant(value=str(name)), ctx=ast.Load()
                )
            ):
                if ast.unparse(looked_in) not in NOT_A_REQUEST:
                    yield name


def wrong_presets(presets: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[str]:
    """Presets with a field that no request has, or in another order than the schema's."""
    fields = [name for name, field in schema["properties"].items() if "x-alias-of" not in field]
    for name, preset in presets.items():
        own = {key: value for key, value in preset.items() if key not in PRESET_KEYS}
        sets = {
            name: {**preset.get("values", {}), **own},
            **{f"{name}.{of}": values for of, values in preset.get("profiles", {}).items()},
        }
        for title, values in sets.items():
            foreign = [field for field in values if field not in fields]
            for field in foreign:
                yield (
                    f"schemas/presets.json: {title} sets {field}, which the schema lacks (aliases "
                    "don't count); add it to schemas/request.schema.json, or take it out"
                )
            given = [field for field in values if field not in foreign]
            if given != sorted(given, key=fields.index):
                yield (
                    f"schemas/presets.json: {title} has its fields in another order than the "
                    f"schema; write them as {', '.join(sorted(given, key=fields.index))}"
                )


def unknown_solvers(solvers: Mapping[str, Solver]) -> Iterator[str]:
    """Solvers that a plan with ``acceleration: cached`` would fail on."""
    for name, solver in solvers.items():
        if solver.levels is None:
            yield (
                f"src/wan_worker/planning/solvers.py: the step cache does not know {name}; give it "
                f"the noise levels that {solver.scheduler} sets"
            )


def variables_read(from_env: Callable[[Mapping[str, str]], object]) -> set[str]:
    """Names of the variables that the settings are read from."""
    read = set()

    class Environment(dict[str, str]):
        def get(self, name: str, default: Any = None) -> Any:
            read.add(name)
            return super().get(name, default)

    # With a bucket: the rest of its variables is read only then.
    from_env(
        Environment(
            BUCKET_ENDPOINT_URL="https://s3.example.com",
            BUCKET_ACCESS_KEY_ID="key",
            BUCKET_SECRET_ACCESS_KEY="secret",  # noqa: S106 (an example)
            BUCKET_NAME="bucket",
        )
    )
    return read


def undocumented_settings(read: Iterable[str], operating: str) -> Iterator[str]:
    """Variables that an operator can't know of."""
    for name in sorted(set(read) - PLATFORM):
        if f"`{name}`" not in operating:
            yield f"docs/operating.md: {name} is read and not documented; tell what it is for"


def settings_not_offered(read: Iterable[str], listing: Mapping[str, Any]) -> Iterator[str]:
    """Variables that RunPod's form lacks, or has in vain."""
    offered = [variable["key"] for variable in listing["config"]["env"]]
    for name in sorted(set(read) - PLATFORM - SERVER_ONLY - set(offered)):
        yield (
            f".runpod/hub.json: {name} is read and not offered; add it to config.env, or to "
            "SERVER_ONLY in docs/generate/rules.py where an endpoint has no use for it"
        )
    for name in sorted(set(offered) - set(read)):
        yield f".runpod/hub.json: {name} is offered and nothing reads it; take it out"
    for name in sorted({name for name in offered if offered.count(name) > 1}):
        yield f".runpod/hub.json: {name} is offered twice; take one out"


def codes_without_meaning(codes: Iterable[str], meanings: Mapping[str, str]) -> Iterator[str]:
    """Error codes that the table in docs/requests.md can't explain."""
    for code in sorted(set(codes) - set(meanings)):
        yield f"docs/generate/tables.py: MEANINGS lacks the error code {code}; say what it means"
    for code in sorted(set(meanings) - set(codes)):
        yield f"docs/generate/tables.py: MEANINGS has {code}, which is no error code; take it out"
