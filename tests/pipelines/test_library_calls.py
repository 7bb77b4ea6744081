"""The installed libraries take every argument that we pass, and have every class that we name."""

import ast
import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest

from tests.builders.plans import with_solver
from wan_worker.catalog.models import MODELS
from wan_worker.pipelines.schedulers import scheduler
from wan_worker.planning.solvers import SOLVERS

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "wan_worker"
SOURCES = {path.stem: path for path in (PACKAGE / "pipelines").glob("*.py")}


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
    assert keys_of_dicts("conditioning", "arguments", "extra") == set.union(*takers.values())
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
        for module in ("generate", "pool", "offload")
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


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("flow_shift", [2.5, 5.0])
def test_a_scheduler_takes_our_arguments_and_the_shift_has_its_effect(
    solver: str, flow_shift: float
) -> None:
    made = scheduler(with_solver(solver, flow_shift))
    assert SOLVERS[solver].scheduler in [cls.__name__ for cls in type(made).__mro__]
    passed = SOLVERS[solver].arguments(flow_shift)
    assert SOLVERS[solver].shift_argument in passed
    assert passed.keys() <= parameters(type(made).__init__)
    made.set_timesteps(4, device="cpu")
    # The sigma in the middle of the schedule: shift * s / (1 + (shift - 1) * s), near s = 1/2.
    middle = sorted(float(sigma) for sigma in made.sigmas)[2]
    assert 0.5 < middle < 1
    other = scheduler(with_solver(solver, flow_shift * 2))
    other.set_timesteps(4, device="cpu")
    assert sorted(float(sigma) for sigma in other.sigmas)[2] > middle


def test_a_solver_that_we_do_not_know_is_an_error_and_not_a_default() -> None:
    from dataclasses import replace

    with pytest.raises(ValueError, match="unknown solver"):
        scheduler(replace(with_solver("euler", 3.0), solver="heun"))
