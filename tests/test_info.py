"""Questions about the worker: each answered from what is known, and nothing made by mistake."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import QUICK, Answer, error_of
from tests.test_job import picture
from wan_worker import info
from wan_worker import job as jobs
from wan_worker.catalog import MODELS
from wan_worker.components import UMT5
from wan_worker.pipelines import Pool
from wan_worker.progress import Control

Serve = Callable[..., Answer]
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def fresh(worker: jobs.Worker) -> jobs.Worker:
    """The worker with nothing in memory."""
    return replace(worker, pool=Pool(worker.hardware))


@pytest.fixture
def ask(fresh: jobs.Worker, response_errors: Callable[[Answer], list[str]]) -> Serve:
    """Ask a question; the answer is checked against the schema, and nothing may be loaded."""

    def run(worker: jobs.Worker | None = None, /, **fields: Any) -> Answer:
        here = worker or fresh
        before = here.pool.loaded
        answer = jobs.run({"id": "q", "input": {"mode": "info"} | fields}, here, Control())
        assert here.pool.loaded == before
        assert list(here.settings.output_dir.iterdir()) == []
        if "error" not in answer:
            assert response_errors(answer) == []
            assert answer["report"] == fields["report"]
        return answer

    return run


def told(answer: Answer) -> dict[str, Any]:
    assert "error" not in answer, answer
    body: dict[str, Any] = answer["info"]
    return body


def test_health_says_what_is_there_and_what_is_in_memory(
    ask: Serve, worker: jobs.Worker, fresh: jobs.Worker
) -> None:
    before = told(ask(report="health"))
    assert (before["ready"], before["busy"]) == (True, False)
    assert before["models"] == ["wan2.1-t2v-1.3b", "wan2.1-i2v-14b-480p"]
    assert before["hardware"]["device"] == fresh.hardware.device
    assert before["loaded"] == []
    used = replace(fresh, settings=replace(fresh.settings, output_dir=Path("/dev/null")))
    jobs.run({"id": "x", "input": QUICK | {"response_format": "base64"}}, used, Control())
    assert UMT5.name in told(ask(report="health"))["loaded"]
    with fresh.gpu:
        assert told(ask(report="health"))["busy"] is True


def test_a_worker_whose_weights_are_damaged_is_not_ready(
    ask: Serve, fresh: jobs.Worker, models_dir: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(models_dir, store)
    name = "wan2.1-t2v-1.3b.transformer"
    weights = next((store / name).glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    (tmp_path / "out").mkdir()
    settings = replace(fresh.settings, models_dir=store, output_dir=tmp_path / "out")
    broken = replace(fresh, settings=settings)
    health = told(ask(broken, report="health"))
    assert (health["ready"], health["damaged"]) == (False, [name])
    listed = {m["id"]: m for m in told(ask(broken, report="models"))["models"]}
    assert listed["wan2.1-t2v-1.3b"]["status"] == "damaged"
    assert listed["wan2.1-t2v-1.3b"]["missing"] == [name]


def test_models_lists_the_catalog_with_what_is_missing(ask: Serve) -> None:
    listed = {m["id"]: m for m in told(ask(report="models"))["models"]}
    assert list(listed) == list(MODELS)
    here = listed["wan2.1-t2v-1.3b"]
    assert (here["status"], here["weights"], here["missing"]) == ("installed", "tiny", [])
    absent = listed["wan2.2-t2v-a14b"]
    assert (absent["status"], absent["weights"], absent["memory_gb"]) == ("missing", None, None)
    # What models share is there already.
    assert UMT5.name not in absent["missing"]
    assert len(absent["missing"]) == 2


@pytest.mark.parametrize("name", list(MODELS))
def test_capabilities_are_the_catalogs(ask: Serve, name: str) -> None:
    body = told(ask(report="capabilities", model=name))
    model = MODELS[name]
    assert (body["image"], body["last_image"]) == (model.image, model.last_image)
    assert body["native"]["num_frames"] == model.native_frames
    assert body["max_pixels"] == model.max_pixels


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"size": "54x36", "num_frames": 7, "upscale": 2},
        {"mode": "image", "num_frames": 1},
        {"num_outputs": 3, "solver": "euler"},
        {"image_url": picture(), "size": "64x48"},
    ],
    ids=["video", "off the grid", "image", "several", "from a picture"],
)
def test_a_plan_is_what_the_job_then_does(
    ask: Serve, fresh: jobs.Worker, tmp_path: Path, request_: dict[str, Any]
) -> None:
    whole = QUICK | request_
    body = told(ask(report="plan", request=whole))
    done = jobs.run({"id": "d", "input": whole | {"response_format": "base64"}}, fresh, Control())
    assert body["plan"] == done["metadata"]["plan"] | {"loras": []}
    assert body["model"] == done["metadata"]["model"]
    assert body["generated"] == done["metadata"]["generated"]
    assert body["outputs"] == len(done["assets"])
    asset = done["assets"][0]
    assert body["delivered"] == {key: asset[key] for key in body["delivered"]}


def test_a_plan_does_not_know_the_size_before_the_picture_and_fetches_none(ask: Serve) -> None:
    whole = {"mode": "video", "prompt": "x", "image_url": "http://127.0.0.1:9/a.png"}
    body = told(ask(report="plan", request=whole))
    assert body["delivered"]["width"] is None
    assert body["generated"]["num_frames"] == 81


def test_what_a_plan_warns_of_is_in_its_warnings(ask: Serve) -> None:
    answer = ask(report="plan", request=QUICK | {"config": {"style": "x"}})
    assert answer["warnings"][0]["code"] == "ENVELOPE_FIELDS_IGNORED"


@pytest.mark.parametrize(
    ("inner", "code", "field"),
    [
        ({"mode": "video"}, "INVALID_REQUEST", "/input/request/prompt"),
        (QUICK | {"stepz": 3}, "INVALID_REQUEST", "/input/request/stepz"),
        (QUICK | {"model": "wan2.2-t2v-a14b"}, "MODEL_UNAVAILABLE", None),
        ({"mode": "info", "report": "health"}, "INVALID_REQUEST", "/input/request/mode"),
    ],
    ids=["no prompt", "unknown field", "not installed", "a question in a question"],
)
def test_a_plan_is_refused_as_the_job_would_be(
    ask: Serve, inner: dict[str, Any], code: str, field: str | None
) -> None:
    error = error_of(ask(report="plan", request=inner))
    assert error["code"] == code
    if field is not None:
        assert error["field"] == field


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"report": "health", "prompt": "a cat"}, "/input/prompt"),
        ({"report": "health", "model": "wan2.1-t2v-1.3b"}, "/input/model"),
        ({"report": "models", "size": "64x48"}, "/input/size"),
        ({"report": "models", "steps": 4}, "/input/steps"),
        ({"report": "capabilities", "model": "wan2.1-t2v-1.3b", "seed": 1}, "/input/seed"),
        ({"report": "capabilities"}, "/input/model"),
        ({"report": "capabilities", "model": "auto"}, "/input/model"),
        ({"report": "plan"}, "/input/request"),
        ({"report": "plan", "request": QUICK, "prompt": "x"}, "/input/prompt"),
        ({"report": "plan", "request": "x"}, "/input/request"),
        ({"report": "wealth"}, "/input/report"),
        ({"job_type": "video_fast", "prompt": "x"}, "/input/report"),
        ({"report": "health", "callback_url": "https://example.com"}, "/input/callback_url"),
        ({}, "/input/report"),
    ],
)
def test_a_question_with_fields_of_a_generation_is_refused(
    ask: Serve, fields: dict[str, Any], pointer: str
) -> None:
    error = error_of(ask(**fields))
    assert (error["code"], error["field"]) == ("INVALID_REQUEST", pointer)


@pytest.mark.parametrize("field", ["report", "request"])
def test_a_generation_with_fields_of_a_question_is_refused(serve: Serve, field: str) -> None:
    value: Any = "health" if field == "report" else {}
    error = error_of(serve({field: value}))
    assert (error["code"], error["field"]) == ("INVALID_REQUEST", f"/input/{field}")


def test_every_report_of_the_schema_is_answered() -> None:
    schema = json.loads((ROOT / "schemas" / "request.schema.json").read_text("utf-8"))
    assert schema["properties"]["report"]["enum"] == list(info.TAKES)


def test_no_question_imports_torch(models_dir: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from wan_worker import job
from wan_worker.progress import Control
from wan_worker.settings import Settings
worker = job.make_worker(Settings(models_dir=Path({str(models_dir)!r})))
plan = {{"report": "plan", "request": {QUICK!r}}}
one = {{"report": "capabilities", "model": "wan2.1-t2v-1.3b"}}
for asked in ({{"report": "health"}}, {{"report": "models"}}, one, plan):
    answer = job.run({{"id": "q", "input": {{"mode": "info"}} | asked}}, worker, Control())
    assert answer["status"] == "completed", answer
print([n for n in ("torch", "diffusers", "transformers", "boto3") if n in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
