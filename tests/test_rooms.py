"""The house: its rooms are of a size to live in, each says what it is for, and start is cheap.

What may import what is import-linter's to check (pyproject.toml, `make check`).
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "wan_worker"
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__init__.py"
}
"""Every module by its dotted name inside the package."""
ROOMS = sorted({name.split(".")[0] for name in MODULES if "." in name})
TRUNK = sorted(name for name in MODULES if "." not in name)


def lines_of(path: Path) -> int:
    return len(path.read_text("utf-8").splitlines())


def test_the_trunk_is_short_and_the_rooms_are_few() -> None:
    assert len(TRUNK) <= 12
    assert 10 <= len(ROOMS) <= 16


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_is_of_a_size_to_live_in(room: str) -> None:
    paths = [path for name, path in MODULES.items() if name.startswith(f"{room}.")]
    assert len(paths) <= 20
    assert sum(map(lines_of, paths)) <= 3000


@pytest.mark.parametrize("module", MODULES)
def test_a_module_has_at_most_400_lines(module: str) -> None:
    assert lines_of(MODULES[module]) <= 400


@pytest.mark.parametrize("room", ROOMS)
def test_a_rooms_face_has_its_question_its_promises_and_what_it_does_not_cover(room: str) -> None:
    tree = ast.parse((PACKAGE / room / "__init__.py").read_text("utf-8"))
    (only,) = tree.body  # no re-export hides where a thing lives
    assert isinstance(only, ast.Expr)
    doc = ast.get_docstring(tree)
    assert doc is not None
    assert doc.splitlines()[0].endswith("?")
    assert "Promises: " in doc
    assert "Not covered: " in doc


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_is_for_and_what_it_does_not_cover(module: str) -> None:
    doc = ast.get_docstring(ast.parse(MODULES[module].read_text("utf-8")))
    assert doc
    if module not in ("errors", "job"):  # a tree and the flow, which leave nothing out
        assert "Not covered" in doc


# --- The tests ---


def imported(path: Path) -> Iterator[str]:
    """Names that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_no_test_module_is_imported_by_another() -> None:
    # What two of them need is tests/builders/'s.
    found = [
        (str(path.relative_to(ROOT)), name)
        for folder in ("tests", "benchmarks")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for name in imported(path)
        if name.startswith("tests.") and any(p.startswith("test_") for p in name.split("."))
    ]
    assert found == []


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
for module in {list(MODULES)!r}:
    for known in [n for n in sys.modules if n.startswith("wan_worker")]:
        del sys.modules[known]
    importlib.import_module("wan_worker." + module)
    print(module)
"""
    assert run_python(code).split() == list(MODULES)


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
from wan_worker.catalog import models
from wan_worker.machine import hardware
from wan_worker.planning import deployment, plan
from wan_worker.request import parse, schema
asked = parse.request({"input": {"mode": "video", "prompt": "x"}}, schema.load())
here = {"wan2.1-t2v-1.3b": models.Installed({"a": 1}, True)}
plan.make(asked, deployment.Deployment(hardware.detect(), here))
print([n for n in ("torch", "diffusers", "transformers", "boto3") if n in sys.modules])
"""
    assert run_python(code).strip() == "[]"
