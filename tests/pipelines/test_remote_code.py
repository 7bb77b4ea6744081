"""What code runs: none that comes with a model, and no kernel that may be missing."""

import ast
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from wan_worker import job as jobs
from wan_worker.catalog.components import ENHANCER, Component
from wan_worker.catalog.models import MODELS
from wan_worker.errors import ModelCorrupt
from wan_worker.pipelines import load
from wan_worker.prompts.enhance import Enhancer
from wan_worker.weights import store

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [*(ROOT / "src").rglob("*.py"), *(ROOT / "training").rglob("*.py"), ROOT / "handler.py"]

AUTO_MAP = {
    name: f"modeling.{name}"
    for name in ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForSeq2SeqLM")
} | {"AutoTokenizer": ["modeling.Slow", "modeling.Fast"]}


def calls() -> Iterator[tuple[str, ast.Call]]:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                yield f"{path.name}:{node.lineno}", node


def test_no_loader_is_told_to_trust_remote_code() -> None:
    said = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                said.append((path.name, ast.unparse(node.value)))
            if isinstance(node, ast.Dict):
                said += [
                    (path.name, ast.unparse(value))
                    for key, value in zip(node.keys, node.values, strict=True)
                    if isinstance(key, ast.Constant) and key.value == "trust_remote_code"
                ]
            if isinstance(node, ast.Assign | ast.AnnAssign):
                assert "trust_remote_code" not in ast.unparse(node).partition("=")[0]
    assert said == [("load.py", "False")]


def test_nothing_is_called_that_runs_what_a_repository_brings() -> None:
    forbidden = ("torch.hub.load", "pickle.load", "pickle.loads", "exec", "eval")
    found = [
        where
        for where, call in calls()
        if ast.unparse(call.func) in forbidden
        or {"custom_pipeline", "custom_revision"} & {keyword.arg for keyword in call.keywords}
    ]
    assert found == []
    for where, call in calls():  # torch's own files, of pinned releases, as plain tensors
        if ast.unparse(call.func) == "torch.load":
            assert "weights_only=True" in map(ast.unparse, call.keywords), where


def imported() -> set[str]:
    """Top-level modules that the worker's code imports, at the top or inside a function."""
    found: set[str] = set()
    for path in [*(ROOT / "src").rglob("*.py"), ROOT / "handler.py"]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"wan_worker"}


def test_no_package_is_imported_that_may_be_missing() -> None:
    # Faster kernels are asked for by diffusers' name and tried (attention), never imported.
    optional = {"apex", "bitsandbytes", "flash_attn", "kernels", "sageattention", "triton"}
    assert imported() & (optional | {"torchao", "xformers"}) == set()
    chosen = {"set_attention_backend", "attention_backend", "enable_xformers"}
    asked = {w for w, call in calls() if ast.unparse(call.func).split(".")[-1] in chosen}
    assert {where.split(":")[0] for where in asked} == {"attention.py"}


def booby_trapped(source: Path, folder: Path, model_type: str | None) -> Path:
    """The component's files, with code of its own that leaves a file named ``ran``."""
    shutil.copytree(source, folder)
    marker = folder.parent / "ran"
    trap = f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n"
    (folder / "modeling.py").write_text(
        trap + "from transformers import PretrainedConfig, PreTrainedModel\n"
        "class AutoConfig(PretrainedConfig): model_type = 'odd'\n"
        "AutoModel = AutoModelForCausalLM = AutoModelForSeq2SeqLM = PreTrainedModel\n"
    )
    for name in ("config.json", "tokenizer_config.json"):
        path = folder / name
        if path.exists():
            given = json.loads(path.read_text()) | {"auto_map": AUTO_MAP}
            if model_type is not None and name == "config.json":
                given["model_type"] = model_type
            path.write_text(json.dumps(given))
    return marker


@pytest.mark.parametrize("model_type", [None, "odd"], ids=["a known type", "a type of its own"])
def test_code_that_comes_with_a_language_model_is_not_run(
    worker: jobs.Worker, tmp_path: Path, model_type: str | None
) -> None:
    found = store.locate(ENHANCER, worker.settings.models_dir)
    assert found is not None
    marker = booby_trapped(found.folder, tmp_path / "model", model_type)
    if model_type is None:  # the library has a class of that name, and takes that
        loaded = load.load_component(ENHANCER, tmp_path / "model", worker.hardware)
        assert isinstance(loaded, Enhancer)
        assert type(loaded.model).__module__.startswith("transformers.")
    else:
        with pytest.raises(ModelCorrupt):
            load.load_component(ENHANCER, tmp_path / "model", worker.hardware)
    assert not marker.exists()


def parts() -> list[Component]:
    model = MODELS["wan2.1-i2v-14b-480p"]
    return [c for c in model.components if c.class_name]


@pytest.mark.parametrize("component", parts(), ids=lambda c: str(c.role))
def test_code_that_comes_with_a_part_of_a_model_is_not_run(
    worker: jobs.Worker, tmp_path: Path, component: Component
) -> None:
    found = store.locate(component, worker.settings.models_dir)
    assert found is not None
    marker = booby_trapped(found.folder, tmp_path / "part", None)
    loaded = load.load_component(component, tmp_path / "part", worker.hardware)
    assert type(loaded).__module__.startswith(("transformers.", "diffusers."))
    assert not marker.exists()


def test_the_trap_would_spring(
    worker: jobs.Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else the tests before this one would prove nothing.
    from transformers import AutoConfig

    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    found = store.locate(ENHANCER, worker.settings.models_dir)
    assert found is not None
    marker = booby_trapped(found.folder, tmp_path / "model", "odd")
    AutoConfig.from_pretrained(tmp_path / "model", trust_remote_code=True, local_files_only=True)
    assert marker.exists()
