"""The image's recipe, its variants, its workflows and RunPod's listing say what the code says.

What the catalog decides in them is written by `make docs`, and `make check` sees to it.
Not covered: that the image builds and serves (tests/image/run.py, `make image-test`).
"""

import ast
import json
import re
from pathlib import Path
from typing import Any

import grimp
import pytest
from docs.generate.catalog_files import layered
from jsonschema import Draft202012Validator

from wan_worker import settings
from wan_worker.catalog.image_variants import DEFAULT, IMAGE_VARIANTS
from wan_worker.catalog.models import EXTRAS, MODELS, components_of
from wan_worker.errors import ConfigInvalid
from wan_worker.request import parse
from wan_worker.request import schema as contract

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
HUB = json.loads((ROOT / ".runpod" / "hub.json").read_text("utf-8"))
HUB_TESTS = json.loads((ROOT / ".runpod" / "tests.json").read_text("utf-8"))
INPUTS = {variable["key"]: variable["input"] for variable in HUB["config"]["env"]}


# --- Dockerfile and variants ---


def test_the_weights_stage_gets_what_the_tool_imports_and_nothing_more() -> None:
    tool = ast.parse((ROOT / "download_weights.py").read_text("utf-8"))
    graph = grimp.build_graph("wan_worker")
    needed = set()
    for node in ast.walk(tool):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("wan_worker"):
            names = {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
            needed |= names & graph.modules
    for name in tuple(needed):
        needed |= graph.find_upstream_modules(name)
    faces = {name.rpartition(".")[0] for name in needed} - {""}
    stage = DOCKERFILE[DOCKERFILE.index(" AS weights") : DOCKERFILE.index("ARG MODELS=")]
    copied = re.findall(r"src/(wan_worker/\S+)\.py", stage)
    assert {name.replace("/", ".").removesuffix(".__init__") for name in copied} == needed | faces


def test_every_component_is_a_layer_of_its_own_and_the_shared_ones_come_first() -> None:
    names = [component.name for component in layered()]
    assert sorted(names) == sorted(c.name for c in components_of([*MODELS, *EXTRAS]))
    assert names[:3] == ["umt5-tokenizer", "umt5-xxl", "wan2.1-vae"]
    first_own = names.index(f"{next(iter(MODELS))}.transformer")
    holders = {n: sum(n in m.component_names for m in MODELS.values()) for n in names}
    assert [name for name in names[first_own:] if holders[name] > 1] == []


def test_the_variants_hold_models_of_the_catalog_and_one_is_the_default() -> None:
    assert {model for variant in IMAGE_VARIANTS for model in variant.models} <= set(MODELS)
    names = [variant.name for variant in IMAGE_VARIANTS]
    assert names.count(DEFAULT) == 1
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("path", sorted((ROOT / ".github/workflows").glob("*.yml")), ids=str)
def test_every_action_is_pinned_to_a_commit_with_its_version_beside_it(path: Path) -> None:
    used = re.findall(r"uses: (.*)", path.read_text("utf-8"))
    assert used
    assert [
        use for use in used if not re.fullmatch(r"\S+@[0-9a-f]{40} # v\d+\.\d+\.\d+", use)
    ] == []


# --- RunPod's Hub ---


@pytest.mark.parametrize("name", ["hub", "tests"])
def test_the_listing_is_valid(name: str) -> None:
    schema = json.loads((ROOT / f"tests/runpod_{name}.schema.json").read_text("utf-8"))
    Draft202012Validator.check_schema(schema)
    listing = json.loads((ROOT / f".runpod/{name}.json").read_text("utf-8"))
    assert [e.message for e in Draft202012Validator(schema).iter_errors(listing)] == []


def as_text(key: str, value: Any) -> str:
    """What RunPod puts into the environment for a value of the form."""
    if isinstance(value, bool):
        return str(INPUTS[key]["trueValue" if value else "falseValue"])
    return str(value)


def test_the_listings_defaults_are_the_workers_own() -> None:
    env = {key: as_text(key, entry.get("default", "")) for key, entry in INPUTS.items()}
    # The image's folder, where the code's own default suits a checkout.
    assert env.pop("MODELS_DIR") == "/models"
    assert "MODELS_DIR=/models" in DOCKERFILE
    assert settings.from_env(env) == settings.from_env({})


@pytest.mark.parametrize("key", [key for key, entry in INPUTS.items() if entry["type"] == "number"])
def test_the_listings_limits_are_the_workers_own(key: str) -> None:
    low, high = INPUTS[key]["min"], INPUTS[key]["max"]
    for inside in (low, high):
        settings.from_env({key: str(inside)})
    for outside in (low - 1, high + 1):
        with pytest.raises(ConfigInvalid):
            settings.from_env({key: str(outside)})


@pytest.mark.parametrize("key", [key for key, entry in INPUTS.items() if "options" in entry])
def test_every_option_is_one_that_the_worker_takes(key: str) -> None:
    for option in INPUTS[key]["options"]:
        settings.from_env({key: option["value"]})


def test_every_preset_sets_what_the_worker_takes() -> None:
    for preset in HUB["config"]["presets"]:
        assert set(preset["defaults"]) <= set(INPUTS)
        settings.from_env({k: as_text(k, value) for k, value in preset["defaults"].items()})


@pytest.mark.parametrize("test", HUB_TESTS["tests"], ids=lambda test: test["name"])
def test_the_hubs_tests_are_requests_that_the_worker_takes(test: dict[str, Any]) -> None:
    parse.request({"input": test["input"]}, contract.load())
