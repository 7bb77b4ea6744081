"""Promises about the code itself: imports go one way, start is cheap, libraries take our calls."""

import ast
import importlib
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from jsonschema import Draft202012Validator

from wan_worker import contract, formats, plan, request
from wan_worker.catalog import MODELS, OTHER_NAMES, Installed
from wan_worker.hardware import Hardware
from wan_worker.plan import Plan
from wan_worker.solver import scheduler

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "wan_worker"
ORDER = [
    *(
        "errors",
        "settings",
        "logs",
        "faults",
        "components",
        "turbo",
        "catalog",
        "magnitudes",
        "contract",
        "formats",
        "outputs",
        "adapters",
        "envelope",
        "request",
        "choose",
        "hardware",
        "tuning",
        "kernels",
        "activations",
        "memory",
        "flops",
        "peaks",
        "exact",
        "reuse",
        "accelerate",
        "settle",
        "plan",
        "chain",
        "recovery",
        "work",
        "estimate",
        "record",
        "progress",
    ),
    *("addresses", "net", "image_parts", "images", "references", "measure"),
    *("tensors", "weights", "lora_store", "tiny", "rrdbnet", "hub", "download", "judge", "prompt"),
    "embeddings",
    *(
        "ahead",
        "solver",
        "load",
        "quantize",
        "placing",
        "attention",
        "compiling",
        "pipelines",
        "lora",
        "residuals",
        "remember",
        "guidance",
        "conditions",
        "tiles",
        "crossing",
        "causal",
        "encoder",
        "decoder",
        "previews",
        "generate",
        "film",
    ),
    *("upscale", "encode", "containers", "reading", "artifact", "clips"),
    *(
        "caller_store",
        "buckets",
        "storage",
        "response",
        "delivery",
        "callback",
        "advise",
        "performance",
        "info",
        "metrics",
        "worker",
        "scratch",
        "job",
        "calibrate",
        "preload",
        "doctor",
    ),
    *(
        "line",
        "ledger",
        "watchers",
        "engine",
        "aftermath",
        "engine_process",
        "calibrations",
        "dispatch",
        "installer",
        "downloads",
    ),
    *(
        "refusals",
        "access",
        "bodies",
        "openapi",
        "api_parts",
        "api_generation",
        "api_assets",
        "live",
        "api_models",
        "alerts",
        "api_reports",
        "recommend",
        "api_tuning",
        "api_system",
        "page",
        "api",
    ),
]
SOURCES = {path.stem: path for path in PACKAGE.glob("*.py") if path.stem != "__init__"}

REQUEST_SCHEMA = json.loads((contract.SCHEMAS_DIR / "request.schema.json").read_text("utf-8"))
PRESETS = contract.load().presets


# --- Imports go one way ---


def walk_without_type_checking(node: ast.AST) -> Iterator[ast.AST]:
    """Every node that runs: the bodies of ``if TYPE_CHECKING:`` do not."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            for other in child.orelse:
                yield other
                yield from walk_without_type_checking(other)
            continue
        yield child
        yield from walk_without_type_checking(child)


def own_imports(source: str) -> set[str]:
    """Modules of this package that the source imports, at the top or inside a function."""
    found: set[str] = set()
    for node in walk_without_type_checking(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            names = [f"wan_worker.{node.module or alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "wan_worker":
            names = [f"wan_worker.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("wan_worker.")}
    return found


def test_the_import_reader_sees_every_way_to_import() -> None:
    source = (
        "from typing import TYPE_CHECKING\n"
        "import wan_worker.net\n"
        "from wan_worker import plan, request\n"
        "from wan_worker.errors import WorkerError\n"
        "from . import images\n"
        "from .storage import put\n"
        "def late():\n    from wan_worker import weights\n"
        "if TYPE_CHECKING:\n    from wan_worker.job import Worker\n"
        "else:\n    from wan_worker import encode\n"
    )
    assert own_imports(source) == {
        *("net", "plan", "request", "errors", "images", "storage", "weights", "encode"),
    }


def test_every_module_has_its_place_in_the_order() -> None:
    assert set(SOURCES) == set(ORDER)


@pytest.mark.parametrize("module", ORDER)
def test_a_module_imports_only_from_those_above_it(module: str) -> None:
    above = set(ORDER[: ORDER.index(module)])
    assert own_imports(SOURCES[module].read_text("utf-8")) <= above


@pytest.mark.parametrize("module", ORDER)
def test_every_module_says_what_it_is_for_and_what_it_does_not_cover(module: str) -> None:
    doc = ast.get_docstring(ast.parse(SOURCES[module].read_text("utf-8")))
    assert doc
    if module not in ("errors", "job"):  # a tree and the flow, which leave nothing out
        assert "Not covered" in doc


# --- Start is cheap ---


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_imports_where_the_model_libraries_are_absent() -> None:
    # One process each would cost seconds; a fresh wan_worker per module is as strict.
    code = f"""
import importlib, sys
for name in ("torch", "diffusers", "transformers", "peft"):
    sys.modules[name] = None
for module in {ORDER!r}:
    for known in [n for n in sys.modules if n.startswith("wan_worker")]:
        del sys.modules[known]
    importlib.import_module("wan_worker." + module)
    print(module)
"""
    assert run_python(code).split() == ORDER


def test_a_worker_that_has_no_job_yet_has_not_imported_what_only_jobs_need() -> None:
    code = """
import sys
import wan_worker.job
print([n for n in ("torch", "diffusers", "transformers", "boto3") if n in sys.modules])
"""
    assert run_python(code).strip() == "[]"


def test_planning_a_job_imports_no_model_library() -> None:
    code = """
import sys
from wan_worker import catalog, contract, hardware, plan, request
asked = request.parse({"input": {"mode": "video", "prompt": "x"}}, contract.load())
here = {"wan2.1-t2v-1.3b": catalog.Installed({"a": 1}, True)}
plan.make(asked, hardware.detect(), here)
print([n for n in ("torch", "diffusers", "transformers", "boto3") if n in sys.modules])
"""
    assert run_python(code).strip() == "[]"


# --- The libraries take what we pass ---


def keywords_of_calls(module: str, callee: str) -> list[set[str]]:
    """Names of the keyword arguments of each call whose callee is written so."""
    return [
        {keyword.arg for keyword in node.keywords if keyword.arg is not None}
        for node in ast.walk(ast.parse(SOURCES[module].read_text("utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == callee
    ]


def keys_of_dicts(module: str, function: str, name: str) -> set[str]:
    """String keys of the dict literals that a function assigns to ``name`` (for ``**name``)."""
    tree = ast.parse(SOURCES[module].read_text("utf-8"))
    (definition,) = [
        n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == function
    ]
    return {
        key.value
        for node in ast.walk(definition)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name
        for literal in ast.walk(node.value)
        if isinstance(literal, ast.Dict)
        for key in literal.keys
        if isinstance(key, ast.Constant) and isinstance(key.value, str)
    }


def parameters(function: Any) -> set[str]:
    names = inspect.signature(function).parameters
    assert not any(p.kind is p.VAR_KEYWORD for p in names.values()), (
        "takes anything, proves nothing"
    )
    return set(names)


def library_class(name: str, library: str = "diffusers") -> Any:
    return getattr(importlib.import_module(library), name)


PIPELINES = sorted(
    {p for m in MODELS.values() for p in (m.text_pipeline, m.image_pipeline) if p is not None}
)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_the_pipelines_call_takes_every_argument_that_we_pass(pipeline: str) -> None:
    (passed,) = keywords_of_calls("generate", "pipeline")
    assert {"prompt_embeds", "callback_on_step_end", "output_type"} <= passed
    assert passed <= parameters(library_class(pipeline).__call__)


def test_a_pipeline_takes_its_pictures_as_we_pass_them() -> None:
    takers = {
        "WanImageToVideoPipeline": {"image", "last_image"},
        "WanVACEPipeline": {"video", "mask"},
        "WanPipeline": {"latents"},
    }
    assert keys_of_dicts("conditions", "arguments", "extra") == set.union(*takers.values())
    for pipeline, extra in takers.items():
        assert extra <= parameters(library_class(pipeline).__call__)
    assert {m.image_pipeline for m in MODELS.values() if m.image != "none"} <= {
        "WanImageToVideoPipeline",
        "WanVACEPipeline",
    }
    assert all(m.image == "none" for m in MODELS.values() if m.image_pipeline is None)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_the_prompt_encoder_takes_every_argument_that_we_pass(pipeline: str) -> None:
    (passed,) = keywords_of_calls("generate", "pipeline.encode_prompt")
    assert "max_sequence_length" in passed
    assert passed <= parameters(library_class(pipeline).encode_prompt)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_the_pipeline_has_every_other_method_that_we_call(pipeline: str) -> None:
    called = {
        node.func.attr
        for module in ("generate", "pipelines", "placing")
        for node in ast.walk(ast.parse(SOURCES[module].read_text("utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func.value) == "pipeline"
    }
    assert {"maybe_free_model_hooks", "enable_model_cpu_offload"} <= called
    # The tokenizer is a component: there once the pipeline is built.
    assert all(hasattr(library_class(pipeline), name) for name in called - {"tokenizer"})


@pytest.mark.parametrize(
    ("model_id", "pipeline"),
    [
        (m.id, p)
        for m in MODELS.values()
        for p in (m.text_pipeline, m.image_pipeline)
        if p is not None
    ],
)
def test_a_models_components_are_what_its_pipeline_is_built_from(
    model_id: str, pipeline: str
) -> None:
    model = MODELS[model_id]
    signature = inspect.signature(library_class(pipeline).__init__).parameters
    roles = {component.role for component in model.components} | {"scheduler"}
    required = {n for n, p in signature.items() if p.default is p.empty and n != "self"}
    assert required <= roles <= set(signature)


@pytest.mark.parametrize(
    ("name", "class_name"),
    sorted({(c.name, c.class_name) for m in MODELS.values() for c in m.components}),
)
def test_a_components_class_is_in_the_installed_library(name: str, class_name: str) -> None:
    library, cls = class_name.split(":")
    assert hasattr(library_class(cls, library), "from_pretrained")


def test_undoing_patches_takes_every_argument_that_we_pass() -> None:
    from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

    (passed,) = keywords_of_calls("generate", "unpatchify")
    assert passed <= parameters(unpatchify)


SCHEDULERS = {
    "unipc": "UniPCMultistepScheduler",
    "euler": "FlowMatchEulerDiscreteScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
}


def planned(solver: str, flow_shift: float) -> Plan:
    given = {"mode": "video", "prompt": "x", "solver": solver, "flow_shift": flow_shift}
    asked = request.parse({"input": given}, contract.load())
    here = dict.fromkeys(MODELS, Installed({"a": 1}, True))
    return plan.make(asked, Hardware("cpu", "CPU", 1024**3, None, "for a test"), here)


def test_there_is_a_scheduler_for_every_solver_of_the_schema() -> None:
    assert set(REQUEST_SCHEMA["properties"]["solver"]["enum"]) == set(SCHEDULERS)


@pytest.mark.parametrize("solver", SCHEDULERS)
@pytest.mark.parametrize("flow_shift", [2.5, 5.0])
def test_a_scheduler_takes_our_arguments_and_the_shift_has_its_effect(
    solver: str, flow_shift: float
) -> None:
    made = scheduler(planned(solver, flow_shift))
    assert SCHEDULERS[solver] in [cls.__name__ for cls in type(made).__mro__]
    calls = keywords_of_calls("solver", SCHEDULERS[solver])
    passed = set().union(*calls) | (
        keys_of_dicts("solver", "_flow", "flow") if solver != "euler" else set()
    )
    assert {"num_train_timesteps", "shift" if solver == "euler" else "flow_shift"} <= passed
    assert passed <= parameters(type(made).__init__)
    made.set_timesteps(4, device="cpu")
    # The sigma in the middle of the schedule: shift * s / (1 + (shift - 1) * s), near s = 1/2.
    middle = sorted(float(sigma) for sigma in made.sigmas)[2]
    assert 0.5 < middle < 1
    other = scheduler(planned(solver, flow_shift * 2))
    other.set_timesteps(4, device="cpu")
    assert sorted(float(sigma) for sigma in other.sigmas)[2] > middle


def test_a_solver_that_we_do_not_know_is_an_error_and_not_a_default() -> None:
    from dataclasses import replace

    with pytest.raises(ValueError, match="unknown solver"):
        scheduler(replace(planned("euler", 3.0), solver="heun"))


# --- The schema and the tables agree ---


def preset_sets() -> dict[str, dict[str, Any]]:
    """Every set of preset values by ``job_type`` or ``job_type.profile``."""
    found = {}
    for job_type, preset in PRESETS.items():
        if "values" in preset:
            found[job_type] = preset["values"]
        for profile, values in preset.get("profiles", {}).items():
            found[f"{job_type}.{profile}"] = values
    return found


@pytest.mark.parametrize("name", preset_sets())
def test_a_presets_values_are_fields_that_the_schema_would_accept(name: str) -> None:
    values = preset_sets()[name]
    assert set(values) <= set(REQUEST_SCHEMA["properties"])
    assert not set(values) & set(contract.load().aliases)
    assert [e.message for e in Draft202012Validator(REQUEST_SCHEMA).iter_errors(values)] == []


@pytest.mark.parametrize("name", preset_sets())
def test_a_preset_asked_for_field_by_field_is_a_valid_request(name: str) -> None:
    job_type, _, profile = name.partition(".")
    values = preset_sets()[name] | {"prompt": "x", "seed": 1}
    rules = contract.load()
    by_hand = request.parse({"input": {"mode": PRESETS[job_type]["mode"]} | values}, rules)
    chosen = {"job_type": job_type, "prompt": "x", "seed": 1}
    by_name = request.parse({"input": chosen | ({"profile": profile} if profile else {})}, rules)
    differing = {n for n in vars(by_hand) if getattr(by_hand, n) != getattr(by_name, n)}
    assert differing == {"job_type", "size_is_explicit", "where"}


def test_the_schemas_job_types_and_profiles_are_exactly_the_presets() -> None:
    properties = REQUEST_SCHEMA["properties"]
    assert properties["job_type"]["enum"] == list(PRESETS)
    profiles = [name for preset in PRESETS.values() for name in preset.get("profiles", {})]
    assert properties["profile"]["enum"] == list(dict.fromkeys(profiles))
    assert {preset["mode"] for preset in PRESETS.values()} <= set(properties["mode"]["enum"])


def test_the_schemas_models_are_exactly_the_catalogs() -> None:
    assert REQUEST_SCHEMA["properties"]["model"]["enum"] == ["auto", *MODELS]


def test_the_schemas_strength_is_the_codes() -> None:
    assert REQUEST_SCHEMA["properties"]["strength"]["default"] == request.STRENGTH


def test_the_schemas_formats_are_exactly_the_codes() -> None:
    named = REQUEST_SCHEMA["properties"]["output_format"]["enum"]
    assert named == [*formats.VIDEO_FORMATS, *formats.IMAGE_FORMATS]
    assert REQUEST_SCHEMA["properties"]["mode"]["enum"] == [
        *sorted(get_args(formats.Mode)),
        "info",
    ]


def test_the_schema_refuses_unknown_fields() -> None:
    assert REQUEST_SCHEMA["additionalProperties"] is False


def fields_of(schema: dict[str, Any], pointer: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field at any depth."""
    for name, field in schema.get("properties", {}).items():
        yield f"{pointer}/{name}", field
        yield from fields_of(field, f"{pointer}/{name}")


def test_every_field_of_the_schema_is_described() -> None:
    fields = dict(fields_of(REQUEST_SCHEMA))
    assert "/config/first_frame" in fields
    assert [p for p, field in fields.items() if len(field.get("description", "")) < 10] == []


def test_every_alias_points_to_its_field_twice_the_same() -> None:
    properties = REQUEST_SCHEMA["properties"]
    aliases = {name: field for name, field in properties.items() if "x-alias-of" in field}
    assert aliases
    names = aliases.pop("model_type")["enum"]  # takes Wan's own names too
    assert names == [*properties["model"]["enum"], *OTHER_NAMES]
    for name, field in aliases.items():
        assert field["$ref"] == f"#/properties/{field['x-alias-of']}", name
        assert "x-alias-of" not in properties[field["x-alias-of"]], name


@pytest.mark.parametrize("name", ["request.schema.json", "response.schema.json"])
def test_a_schema_file_is_valid_draft_2020_12(name: str) -> None:
    schema = json.loads((contract.SCHEMAS_DIR / name).read_text("utf-8"))
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    Draft202012Validator.check_schema(schema)
