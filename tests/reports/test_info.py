"""Questions about the worker: each answered from what is known, and nothing made by mistake."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.builders.pictures import picture
from tests.conftest import QUICK, Answer, error_of
from wan_worker import job as jobs
from wan_worker import worker as workers
from wan_worker.catalog.components import UMT5
from wan_worker.catalog.models import MODELS
from wan_worker.machine.hardware import Hardware
from wan_worker.pipelines.pool import Pool
from wan_worker.reports import info
from wan_worker.request import parse
from wan_worker.timing.estimate import Sample
from wan_worker.timing.progress import Control
from wan_worker.timing.record import Record

Serve = Callable[..., Answer]
ROOT = Path(__file__).resolve().parents[2]


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
        ({"report": "recommend"}, "/input/request"),
        (
            {"report": "recommend", "request": {"mode": "video", "model": "wan2.2-ti2v-5b"}},
            "/input/request/model",
        ),
        (
            {"report": "recommend", "request": {"mode": "video"}, "priority": "luck"},
            "/input/priority",
        ),
        ({"report": "recommend", "request": {"mode": "video", "stepz": 1}}, "/input/request/stepz"),
        ({"report": "compare", "model": "wan2.2-ti2v-5b"}, "/input/other"),
        ({"report": "compare", "other": "wan2.2-ti2v-5b"}, "/input/model"),
        (
            {"report": "compare", "model": "wan2.2-ti2v-5b", "other": "wan2.2-ti2v-5b"},
            "/input/other",
        ),
        ({"report": "compare", "model": "wan2.2-ti2v-5b", "other": "x"}, "/input/other"),
        ({"report": "performance", "model": "wan2.2-ti2v-5b"}, "/input/model"),
        ({"report": "plan", "request": QUICK, "priority": "speed"}, "/input/priority"),
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


@pytest.mark.parametrize("field", ["report", "request", "priority", "other"])
def test_a_generation_with_fields_of_a_question_is_refused(serve: Serve, field: str) -> None:
    values = {"report": "health", "priority": "speed", "other": "wan2.2-ti2v-5b"}
    value: Any = values.get(field, {})
    error = error_of(serve({field: value}))
    assert (error["code"], error["field"]) == ("INVALID_REQUEST", f"/input/{field}")


# --- Which model? ---

CLIP = {"mode": "video", "size": "832x480", "num_frames": 81}
L40S = Hardware("cuda", "NVIDIA L40S", 48 * 10**9, (8, 9), "for a test", ram_bytes=256 * 10**9)


@pytest.fixture
def on_gpu(fresh: jobs.Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> jobs.Worker:
    """A worker on a card of 48 GB with an empty store."""
    monkeypatch.setattr("wan_worker.machine.hardware.refresh", lambda machine: machine)
    (tmp_path / "out").mkdir()
    settings = replace(fresh.settings, models_dir=tmp_path / "none", output_dir=tmp_path / "out")
    return replace(fresh, hardware=L40S, settings=settings, record=Record())


def recommended(answer: Answer) -> list[str]:
    return [candidate["model"] for candidate in told(answer)["candidates"]]


def test_the_best_model_is_the_catalogs_best_that_can_do_it(
    ask: Serve, on_gpu: jobs.Worker
) -> None:
    answer = ask(on_gpu, report="recommend", request=CLIP)
    body = told(answer)
    able = [model for model in reversed(MODELS.values()) if model.text_pipeline]
    sharp = [model.id for model in able if model.min_pixels <= 832 * 480]
    blurred = [model.id for model in able if model.id not in sharp]
    assert blurred == ["wan2.2-ti2v-5b"]
    assert recommended(answer) == sharp + blurred
    assert (body["best"], body["best_installed"]) == ("wan2.2-t2v-a14b", None)
    last = body["candidates"][-1]
    assert any("loses detail" in reason for reason in last["reasons"])
    assert {one["model"] for one in body["refused"]} == set(MODELS) - set(recommended(answer))
    assert all(one["code"] == "INVALID_REQUEST" for one in body["refused"])


def test_a_candidate_that_is_not_installed_says_how_and_how_much_to_download(
    ask: Serve, on_gpu: jobs.Worker
) -> None:
    first = told(ask(on_gpu, report="recommend", request=CLIP))["candidates"][0]
    assert first["installed"] is False
    assert first["download_gb"] == pytest.approx(126.2, abs=1)
    assert any("--models wan2.2-t2v-a14b" in reason for reason in first["reasons"])
    assert first["estimate"]["basis"] == "assumed"
    assert first["estimate"]["seconds"] > 100
    assert 20 < first["memory_gb"] <= 48


def test_what_is_shared_and_here_already_is_not_counted_as_a_download(
    ask: Serve, on_gpu: jobs.Worker, models_dir: Path
) -> None:
    stocked = replace(on_gpu, settings=replace(on_gpu.settings, models_dir=models_dir))
    body = told(ask(stocked, report="recommend", request=CLIP))
    sizes = {one["model"]: one["download_gb"] for one in body["candidates"]}
    assert sizes["wan2.1-t2v-1.3b"] == 0
    own = sum(c.hub_bytes for c in MODELS["wan2.1-t2v-14b"].components if "transformer" in c.role)
    assert sizes["wan2.1-t2v-14b"] == round(own / 1e9, 1)
    assert body["best_installed"] == "wan2.1-t2v-1.3b"


@pytest.mark.parametrize(("priority", "key"), [("speed", "estimate"), ("memory", "memory_gb")])
def test_speed_and_memory_are_ranked_by_what_is_estimated(
    ask: Serve, on_gpu: jobs.Worker, priority: str, key: str
) -> None:
    body = told(ask(on_gpu, report="recommend", request=CLIP, priority=priority))
    values = [one[key]["seconds"] if key == "estimate" else one[key] for one in body["candidates"]]
    assert values == sorted(values)
    assert body["candidates"][0]["reasons"][0].startswith(f"{priority}: 1 of ")
    assert body["best"] != "wan2.2-t2v-a14b"


def test_what_was_measured_here_changes_the_recommendation(ask: Serve, on_gpu: jobs.Worker) -> None:
    before = recommended(ask(on_gpu, report="recommend", request=CLIP, priority="speed"))
    given = CLIP | {"prompt": "x", "model": before[0]}
    asked = parse.request({"input": given}, on_gpu.contract)
    planner = workers.planner(on_gpu)
    denoise = planner.estimate(asked, planner.plan_as_if_installed(asked)).work[2]
    slow = denoise.steps[0].key
    on_gpu.record.add([Sample(slow, 100e12, 900.0)])
    after = ask(on_gpu, report="recommend", request=CLIP, priority="speed")
    assert recommended(after)[0] != before[0]
    bases = {one["model"]: one["estimate"]["basis"] for one in told(after)["candidates"]}
    assert bases[before[0]] == "measured"


def test_a_machine_that_is_too_small_is_why_a_model_is_refused(
    ask: Serve, on_gpu: jobs.Worker
) -> None:
    small = replace(on_gpu, hardware=replace(L40S, memory_bytes=7 * 10**9, ram_bytes=8 * 10**9))
    body = told(ask(small, report="recommend", request=CLIP))
    refused = {one["model"]: one["code"] for one in body["refused"]}
    assert refused["wan2.2-t2v-a14b"] == "UNSUPPORTED"


def test_a_recommendation_for_a_picture_is_of_models_that_take_one(
    ask: Serve, on_gpu: jobs.Worker
) -> None:
    request = {"job_type": "video_fast", "image_url": "http://127.0.0.1:9/a.png"}
    names = recommended(ask(on_gpu, report="recommend", request=request))
    assert names
    assert all(MODELS[name].image != "none" for name in names)


def test_the_recommended_plan_is_what_naming_the_model_gives(ask: Serve) -> None:
    body = told(ask(report="recommend", request=QUICK))
    one = next(c for c in body["candidates"] if c["model"] == "wan2.1-t2v-1.3b")
    named = told(ask(report="plan", request=QUICK | {"model": "wan2.1-t2v-1.3b"}))
    assert one["plan"] == named["plan"]
    assert one["estimate"] == named["estimate"]


def test_two_models_are_held_side_by_side(ask: Serve, on_gpu: jobs.Worker) -> None:
    body = told(ask(on_gpu, report="compare", model="wan2.1-t2v-1.3b", other="wan2.2-i2v-a14b"))
    small, large = body["models"]
    assert (small["parameters_b"], large["parameters_b"]) == (1.4, 28.6)
    assert (small["experts"], large["experts"]) == (1, 2)
    assert small["estimate"]["seconds"] < large["estimate"]["seconds"]
    assert small["capabilities"] == told(
        ask(on_gpu, report="capabilities", model="wan2.1-t2v-1.3b")
    )
    assert "videos from text alone" in body["only_first"]
    assert "videos that begin with a picture" in body["only_second"]
    assert "acceleration turbo" in body["only_second"]
    other = told(ask(on_gpu, report="compare", model="wan2.2-i2v-a14b", other="wan2.1-t2v-1.3b"))
    assert (other["only_first"], other["only_second"]) == (
        body["only_second"], body["only_first"],
    )  # fmt: skip


def test_a_comparison_by_a_job_says_which_of_the_two_would_refuse_it(
    ask: Serve, on_gpu: jobs.Worker
) -> None:
    pair = {"model_type": "t2v-1.3B", "other": "wan2.1-i2v-14b-480p"}
    body = told(ask(on_gpu, report="compare", request=CLIP, **pair))
    one, two = body["models"]
    assert one["refused"] is None
    assert two["refused"]["code"] == "INVALID_REQUEST"
    assert (two["estimate"], two["memory_gb"]) == (None, None)


@pytest.mark.parametrize("pair", [(a, b) for a in MODELS for b in MODELS if a < b])
def test_every_two_models_can_be_compared(
    ask: Serve, on_gpu: jobs.Worker, pair: tuple[str, str]
) -> None:
    body = told(ask(on_gpu, report="compare", model=pair[0], other=pair[1]))
    assert [side["refused"] for side in body["models"]] == [None, None]


# --- What has been ---


def test_performance_tells_what_was_done_and_what_failed(fresh: jobs.Worker, ask: Serve) -> None:
    worker = replace(fresh, record=Record())
    body = told(ask(worker, report="performance"))
    assert body["jobs"] == {"completed": 0, "failed": 0, "canceled": 0}
    assert body["models"] == []
    inline = QUICK | {"response_format": "base64"}
    totals = []
    for index in range(3):
        answer = jobs.run({"id": f"p{index}", "input": inline}, worker, Control())
        totals.append(answer["metadata"]["timings"]["total"])
    for broken in ({"prompt": 3}, {"size": "x"}, {"model": "wan2.2-t2v-a14b"}):
        jobs.run({"id": "b", "input": inline | broken}, worker, Control())
    canceled = Control()
    canceled.cancel()
    jobs.run({"id": "c", "input": inline}, worker, canceled)
    body = told(ask(worker, report="performance"))
    assert body["jobs"] == {"completed": 3, "failed": 3, "canceled": 1}
    assert body["failures"] == [
        {"code": "INVALID_REQUEST", "count": 2}, {"code": "MODEL_UNAVAILABLE", "count": 1},
    ]  # fmt: skip
    (model,) = body["models"]
    assert (model["model"], model["jobs"]) == ("wan2.1-t2v-1.3b", 3)
    whole = next(stage for stage in model["stages"] if stage["stage"] == "total")
    assert whole["count"] == 3
    assert whole["seconds"] == pytest.approx(sum(totals), abs=0.01)
    assert whole["median"] == pytest.approx(sorted(totals)[1], abs=0.001)
    assert whole["p99"] == pytest.approx(max(totals), abs=0.001)
    assert body["memory"]["process_peak_gb"] > 0.05
    assert body["estimates"]["count"] == 3


def test_questions_are_no_jobs(fresh: jobs.Worker, ask: Serve) -> None:
    worker = replace(fresh, record=Record())
    ask(worker, report="health")
    assert worker.record.history.codes == {}


# --- Was every byte checked? ---


def verified(ask: Serve, worker: jobs.Worker, model: str = "wan2.1-t2v-1.3b") -> Any:
    listed = {m["id"]: m for m in told(ask(worker, report="models"))["models"]}
    return listed[model]["verified"]


@pytest.fixture
def own_store(fresh: jobs.Worker, models_dir: Path, tmp_path: Path) -> jobs.Worker:
    """A worker whose weights nobody else uses."""
    shutil.copytree(models_dir, tmp_path / "store", ignore=lambda *_: ["checked.json"])
    (tmp_path / "out").mkdir()
    settings = replace(fresh.settings, models_dir=tmp_path / "store", output_dir=tmp_path / "out")
    return replace(fresh, settings=settings)


def verify(worker: jobs.Worker, *names: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "download_weights.py"), "--verify"]
    dest = ["--dest", str(worker.settings.models_dir)]
    chosen = ["--models", *names] if names else []
    return subprocess.run(
        [*command, *dest, *chosen], capture_output=True, text=True, timeout=120, check=False
    )


def test_weights_are_verified_once_every_byte_was_read_and_until_one_changes(
    ask: Serve, own_store: jobs.Worker
) -> None:
    assert verified(ask, own_store) is None
    done = verify(own_store, "wan2.1-t2v-1.3b")
    assert done.returncode == 0, done.stderr
    found = verified(ask, own_store)
    assert found["result"] == "whole"
    assert found["at"].startswith("20")
    # The other model's own parts were not read.
    assert verified(ask, own_store, "wan2.1-i2v-14b-480p") is None
    folder = own_store.settings.models_dir / "wan2.1-t2v-1.3b.transformer"
    weights_file = next(folder.glob("*.safetensors"))
    os.utime(weights_file, (1, 1))
    assert verified(ask, own_store) is None


def test_weights_that_differ_are_said_to(ask: Serve, own_store: jobs.Worker) -> None:
    folder = own_store.settings.models_dir / "wan2.1-t2v-1.3b.transformer"
    weights_file = next(folder.glob("*.safetensors"))
    body = bytearray(weights_file.read_bytes())
    body[-1] ^= 1
    weights_file.write_bytes(body)
    assert verify(own_store, "wan2.1-t2v-1.3b").returncode == 1
    assert verified(ask, own_store)["result"] == "differs"


def test_a_note_of_another_installation_counts_for_nothing(
    ask: Serve, own_store: jobs.Worker
) -> None:
    assert verify(own_store, "wan2.1-t2v-1.3b").returncode == 0
    folder = own_store.settings.models_dir / "wan2.1-t2v-1.3b.transformer"
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text("utf-8") + "\n", "utf-8")
    assert verified(ask, own_store) is None
    (folder / "checked.json").write_text("[]", "utf-8")
    assert verified(ask, own_store) is None


def test_every_report_of_the_schema_is_answered() -> None:
    schema = json.loads((ROOT / "schemas" / "request.schema.json").read_text("utf-8"))
    assert schema["properties"]["report"]["enum"] == list(info.TAKES)


def test_no_question_imports_torch(models_dir: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from wan_worker import job
from wan_worker.timing.progress import Control
from wan_worker.settings import Settings
worker = job.make_worker(Settings(models_dir=Path({str(models_dir)!r})))
plan = {{"report": "plan", "request": {QUICK!r}}}
one = {{"report": "capabilities", "model": "wan2.1-t2v-1.3b"}}
many = {{"report": "recommend", "request": {{"mode": "video"}}}}
two = {{"report": "compare", "model": "wan2.1-t2v-1.3b", "other": "wan2.2-ti2v-5b"}}
simple = [{{"report": name}} for name in ("health", "models", "performance")]
for asked in (*simple, one, plan, many, two):
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
