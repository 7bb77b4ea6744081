"""The whole flow in one process: real pipelines, real ffmpeg, every answer against its schema."""

import base64
import errno
import gc
import hashlib
import inspect
import json
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.builders.answers import codes, sha256_of
from tests.builders.faults import OutOfMemoryError, break_pipeline
from tests.builders.files import path_of, read
from tests.builders.pictures import BAD_IMAGE, picture
from tests.conftest import QUICK, Answer, error_of
from wan_worker import clips
from wan_worker import job as jobs
from wan_worker.catalog.models import MODELS
from wan_worker.delivery import callback, storage
from wan_worker.errors import EncodeFailed
from wan_worker.media import encode
from wan_worker.pipelines import generate
from wan_worker.planning import model_choice
from wan_worker.timing.progress import Control
from wan_worker.weights import tiny

Serve = Callable[..., Answer]


def test_text_becomes_a_video_of_the_size_length_and_rate_asked_for(serve: Serve) -> None:
    answer = serve({"size": "64x48", "num_frames": 9, "fps": 8})
    asset = answer["assets"][0]
    path = path_of(asset["url"])
    clip = read(path)
    assert clip.frames.shape == (9, 48, 64, 3)
    assert (clip.fps, clip.seconds) == (8, 9 / 8)
    assert asset["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert asset["bytes"] == path.stat().st_size
    assert asset["seed"] == 7
    assert answer["metadata"]["weights"] == "tiny"


@pytest.mark.parametrize(
    ("shape", "delivered"), [((300, 200), (80, 48)), ((200, 300), (48, 80)), ((90, 90), (64, 64))]
)
def test_an_image_becomes_a_video_of_its_shape(
    worker: jobs.Worker,
    monkeypatch: pytest.MonkeyPatch,
    shape: tuple[int, int],
    delivered: tuple[int, int],
) -> None:
    # The real budget of 480p takes minutes on a CPU; the rule is the same for a small one.
    small = {name: replace(m, default_size=(80, 56)) for name, m in MODELS.items()}
    monkeypatch.setattr(model_choice, "MODELS", small)
    request = {k: v for k, v in QUICK.items() if k != "size"} | {"image_url": picture(*shape)}
    answer = jobs.run({"id": "i", "input": request}, worker, Control())
    asset = answer["assets"][0]
    assert (asset["width"], asset["height"]) == delivered
    assert answer["metadata"]["model"] == "wan2.1-i2v-14b-480p"
    assert answer["metadata"]["wan_task"] == "i2v-14B"


def test_text_becomes_an_image(serve: Serve) -> None:
    answer = serve({"mode": "image", "num_frames": 1})
    asset = answer["assets"][0]
    with Image.open(path_of(asset["url"])) as image:
        assert (image.format, image.size) == ("PNG", (64, 48))
    assert (asset["fps"], asset["duration"], asset["num_frames"]) == (None, None, 1)


@pytest.mark.parametrize(("form", "kind"), [("jpeg", "JPEG"), ("webp", "WEBP"), ("png", "PNG")])
def test_an_image_comes_in_the_format_asked_for(serve: Serve, form: str, kind: str) -> None:
    request = {k: v for k, v in QUICK.items() if k != "num_frames"}
    answer = serve(request | {"mode": "image", "num_frames": 1, "output_format": form})
    with Image.open(path_of(answer["assets"][0]["url"])) as image:
        assert image.format == kind


@pytest.mark.parametrize(
    ("form", "codec", "kind"),
    [("mp4", "h264", "video/mp4"), ("webm", "vp9", "video/webm"), ("gif", "gif", "image/gif")],
)
def test_a_video_comes_in_the_format_asked_for(
    serve: Serve, form: str, codec: str, kind: str
) -> None:
    answer = serve({"output_format": form, "num_frames": 9, "fps": 8})
    asset = answer["assets"][0]
    path = path_of(asset["url"])
    clip = read(path)
    assert (path.name, asset["content_type"], clip.codec) == (f"0.{form}", kind, codec)
    assert clip.frames.shape == (9, 48, 64, 3)
    assert clip.seconds == pytest.approx(asset["duration"], abs=0.006)
    assert (asset["num_frames"], asset["fps"], asset["duration"]) == (9, 8, 9 / 8)
    # The same frames as the mp4's, but for what the codecs lose.
    mp4 = read(path_of(serve({"num_frames": 9, "fps": 8})["assets"][0]["url"]))
    assert np.abs(clip.frames.astype(int) - mp4.frames).mean() < 12
    assert sha256_of(serve({"output_format": form, "num_frames": 9, "fps": 8})) == sha256_of(answer)


@pytest.mark.parametrize("form", ["webm", "gif"])
def test_a_video_outside_mp4_may_have_odd_sides(serve: Serve, form: str) -> None:
    answer = serve({"output_format": form, "size": "51x37"})
    assert read(path_of(answer["assets"][0]["url"])).frames.shape == (5, 37, 51, 3)


@pytest.mark.parametrize(("fps", "said"), [(16, True), (20, False)])
def test_a_gifs_uneven_delays_are_said(serve: Serve, fps: int, said: bool) -> None:
    reasons = serve({"output_format": "gif", "fps": fps})["metadata"]["plan"]["reasons"]
    assert any("hundredth" in r or "1/100 s" in r for r in reasons) is said


@pytest.mark.parametrize(
    ("asked", "generated"),
    [
        ({"size": "54x36"}, {"width": 64, "height": 48, "num_frames": 5}),
        ({"num_frames": 7}, {"width": 64, "height": 48, "num_frames": 9}),
        ({"num_frames": 8, "size": "80x50"}, {"width": 80, "height": 64, "num_frames": 9}),
        ({"duration": 0.5, "num_frames": None}, {"width": 64, "height": 48, "num_frames": 9}),
    ],
    ids=["size off the grid", "length off 4k+1", "both", "duration"],
)
def test_off_grid_requests_are_delivered_exactly_and_both_are_reported(
    serve: Serve, asked: dict[str, Any], generated: dict[str, int], worker: jobs.Worker
) -> None:
    merged = {k: v for k, v in (QUICK | asked).items() if v is not None}
    answer = jobs.run({"id": "grid", "input": merged}, worker, Control())
    asset = answer["assets"][0]
    frames = merged.get("num_frames", 8)
    width, height = (int(side) for side in merged["size"].split("x"))
    assert read(path_of(asset["url"])).frames.shape == (frames, height, width, 3)
    assert (asset["width"], asset["height"], asset["num_frames"]) == (width, height, frames)
    assert answer["metadata"]["generated"] == generated


def test_the_same_seed_gives_the_same_bytes_whatever_ran_before(serve: Serve) -> None:
    first = serve(job_id="a")
    others = [
        serve({"solver": "dpm++", "flow_shift": 8.0, "seed": 99}, job_id="b"),
        serve({"image_url": picture(), "size": "64x48"}, job_id="c"),
        serve({"mode": "image", "num_frames": 1, "guidance_scale": 1.0}, job_id="d"),
        serve({"size": "48x64", "num_frames": 9}, job_id="e"),
    ]
    again = serve(job_id="f")
    assert sha256_of(again) == sha256_of(first)
    assert len({sha256_of(answer) for answer in [first, *others]}) == 5


def test_image_to_video_repeats_itself_too(serve: Serve) -> None:
    request = {"image_url": picture(), "size": "64x48"}
    assert sha256_of(serve(request)) == sha256_of(serve(request))
    other = {"image_url": picture(colour=(20, 60, 220)), "size": "64x48"}
    assert sha256_of(serve(request)) != sha256_of(serve(other))


def test_a_drawn_seed_is_reported_and_repeats(serve: Serve) -> None:
    drawn = serve({"seed": -1})
    seed = drawn["assets"][0]["seed"]
    assert seed >= 0
    assert sha256_of(serve({"seed": seed})) == sha256_of(drawn)


IMAGE_MODE = {"mode": "image", "num_frames": 1}
EVERY_FORMAT = [
    *({"output_format": form} for form in ("mp4", "webm", "gif")),
    *(IMAGE_MODE | {"output_format": form} for form in ("png", "jpeg", "webp")),
]


@pytest.mark.parametrize("asked", EVERY_FORMAT, ids=lambda asked: asked["output_format"])
def test_base64_holds_the_file_itself(serve: Serve, asked: dict[str, Any]) -> None:
    asset = serve({"response_format": "base64"} | asked)["assets"][0]
    data = base64.b64decode(asset["data"])
    assert hashlib.sha256(data).hexdigest() == asset["sha256"]
    assert sha256_of(serve(asked)) == asset["sha256"]
    assert "url" not in asset


@pytest.mark.parametrize("asked", EVERY_FORMAT, ids=lambda asked: asked["output_format"])
def test_an_inline_result_over_the_limit_says_what_to_do(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(storage, "INLINE_BYTES", 100)
        error = error_of(serve({"response_format": "base64"} | asked))
    assert error["code"] == "OUTPUT_TOO_LARGE"
    assert "leave response_format out" in error["message"]
    smaller = {"gif": "mp4 or webm", "png": "jpeg or webp"}.get(asked["output_format"])
    assert smaller is None or smaller in error["message"]
    assert "error" not in serve(asked)


def test_on_the_platform_without_a_bucket_the_variables_to_set_are_named(
    worker: jobs.Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "INLINE_BYTES", 100)
    platform = replace(worker, settings=replace(worker.settings, on_platform=True))
    error = error_of(jobs.run({"id": "x", "input": QUICK}, platform, Control()))
    assert error["code"] == "OUTPUT_TOO_LARGE"
    assert "BUCKET_ENDPOINT_URL" in error["message"]
    assert "s3Config" in error["message"]


def test_the_manifest_is_the_answer_without_urls(serve: Serve, worker: jobs.Worker) -> None:
    answer = serve(job_id="kept")
    manifest = json.loads((worker.settings.output_dir / "kept" / "manifest.json").read_text())
    assert manifest["assets"][0]["key"] == "kept/0.mp4"
    assert manifest["assets"][0]["sha256"] == sha256_of(answer)
    assert "url" not in manifest["assets"][0]
    assert manifest["metadata"]["model"] == answer["metadata"]["model"]


@pytest.mark.parametrize("job_id", ["../../etc/passwd", "a/b", "", "x" * 500, "é", ".."])
def test_a_strange_job_id_never_becomes_a_path(
    serve: Serve, worker: jobs.Worker, job_id: str
) -> None:
    answer = serve(job_id=job_id)
    path = path_of(answer["assets"][0]["url"]).resolve()
    assert path.is_relative_to(worker.settings.output_dir.resolve())
    assert len(path.relative_to(worker.settings.output_dir.resolve()).parts) == 2


def test_timings_add_up(serve: Serve) -> None:
    timings = serve()["metadata"]["timings"]
    assert timings["denoise"] > 0
    assert timings["decode_encode"] > 0
    parts = sum(seconds for stage, seconds in timings.items() if stage != "total")
    assert parts == pytest.approx(timings["total"], abs=0.05)


def test_no_temp_folder_outlives_its_job(
    worker: jobs.Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temp = tmp_path / "temp"
    temp.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temp))
    for changes in ({}, {"prompt": ""}, {"image_url": "data:image/png;base64,AAAA"}):
        jobs.run({"id": "t", "input": QUICK | changes}, worker, Control())
    # torch makes a cache of its own there when this is the first job of the process.
    assert [path for path in temp.iterdir() if not path.name.startswith("torchinductor")] == []


# Faults: the code is right, the message tells nothing private, and the next job succeeds.


@pytest.mark.parametrize(
    ("error", "code", "refresh"),
    [
        (OutOfMemoryError("CUDA out of memory. Tried /secret/path"), "OUT_OF_MEMORY", True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "GPU_FAULT", True),
        (RuntimeError("weird /secret/path"), "INTERNAL", False),
        (SystemExit(1), "INTERNAL", False),
        (MemoryError(), "OUT_OF_MEMORY", True),
    ],
    ids=["out of memory", "illegal access", "unexpected", "sys.exit", "host memory"],
)
def test_a_fault_has_its_code_and_the_next_job_succeeds(
    serve: Serve, error: BaseException, code: str, refresh: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(generate, "denoise", break_pipeline(error))
        answer = serve()
    assert error_of(answer)["code"] == code
    assert answer.get("refresh_worker", False) is refresh
    assert "secret" not in json.dumps(answer)
    assert "Traceback" not in json.dumps(answer)
    assert "error" not in serve()


def test_a_cancelled_job_says_so_and_the_next_succeeds(worker: jobs.Worker, serve: Serve) -> None:
    control = Control()
    control._notify = lambda: control.cancel() if control.stage == "denoise" else None
    error = error_of(jobs.run({"id": "c", "input": QUICK}, worker, control))
    assert (error["code"], error["stage"]) == ("CANCELED", "denoise")
    assert "error" not in serve()


def test_a_job_waits_for_the_gpu_and_can_be_cancelled_there(worker: jobs.Worker) -> None:
    control = Control()
    with worker.gpu:
        timer = threading.Timer(0.2, control.cancel)
        timer.start()
        error = error_of(jobs.run({"id": "w", "input": QUICK}, worker, control))
        timer.join()
    assert (error["code"], error["stage"]) == ("CANCELED", "queue")


def test_two_jobs_at_once_take_turns_at_the_gpu_and_have_folders_of_their_own(
    worker: jobs.Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [QUICK, QUICK | {"seed": 8, "image_url": picture()}]
    alone = [
        sha256_of(jobs.run({"id": f"alone-{i}", "input": request}, worker, Control()))
        for i, request in enumerate(requests)
    ]
    controls = [Control(), Control()]
    inside: list[int] = []
    most_inside = 0
    folders: set[Path] = set()
    make = clips.make

    def watched(planned: Any, pictures: Any, context: clips.ClipContext, *rest: Any) -> Any:
        nonlocal most_inside
        inside.append(1)
        most_inside = max(most_inside, len(inside))
        folders.add(context.folder)
        # The first to come waits until the other one waits for the GPU, and looks again.
        for _ in range(600):
            if len(folders) > 1 or all(c.stage not in ("plan", "fetch") for c in controls):
                break
            time.sleep(0.05)
        time.sleep(0.3)
        most_inside = max(most_inside, len(inside))
        try:
            return make(planned, pictures, context, *rest)
        finally:
            inside.pop()

    monkeypatch.setattr(clips, "make", watched)
    with ThreadPoolExecutor(2) as threads:
        given = zip(requests, controls, strict=True)
        running = [
            threads.submit(jobs.run, {"id": f"both-{i}", "input": request}, worker, control)
            for i, (request, control) in enumerate(given)
        ]
        answers = [future.result(timeout=120) for future in running]
    assert [sha256_of(answer) for answer in answers] == alone
    assert most_inside == 1
    assert len(folders) == 2
    assert [folder for folder in folders if folder.exists()] == []


def test_a_deadline_names_its_stage(worker: jobs.Worker) -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 1.0
        return now

    error = error_of(
        jobs.run(
            {"id": "d", "input": QUICK | {"num_inference_steps": 40}},
            worker,
            Control(seconds=30, clock=clock),
        )
    )
    assert (error["code"], error["stage"]) == ("DEADLINE", "denoise")


def test_a_model_that_is_not_installed_is_named_with_its_command(
    worker: jobs.Worker, tmp_path: Path
) -> None:
    empty = replace(worker, settings=replace(worker.settings, models_dir=tmp_path / "none"))
    error = error_of(jobs.run({"id": "m", "input": QUICK}, empty, Control()))
    assert error["code"] == "MODEL_UNAVAILABLE"
    first = next(model.id for model in MODELS.values() if model.text_pipeline)
    assert f"download_weights.py --models {first}" in error["message"]


def test_weights_that_were_cut_short_are_corrupt_and_named(
    worker: jobs.Worker, tmp_path: Path
) -> None:
    tiny.write(tmp_path / "models", ["wan2.1-t2v-1.3b"])
    file = tmp_path / "models" / "wan2.1-vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    broken = replace(worker, settings=replace(worker.settings, models_dir=tmp_path / "models"))
    error = error_of(jobs.run({"id": "m", "input": QUICK}, broken, Control()))
    assert error["code"] == "MODEL_CORRUPT"
    assert "wan2.1-vae" in error["message"]


def test_a_result_that_is_not_json_is_caught(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs.response, "completed", lambda *_, **__: {"bad": float("nan")})
    monkeypatch.setattr(storage, "put_manifest", lambda *_: None)
    assert error_of(serve())["code"] == "INTERNAL"


# Reference images: an error, or plain generation with a warning where the old envelope wants it.


def test_an_unusable_image_is_an_error_by_default(serve: Serve) -> None:
    error = error_of(serve({"image_url": BAD_IMAGE}))
    assert (error["code"], error["field"]) == ("IMAGE_REJECTED", "/input/image_url")


@pytest.mark.parametrize(
    "reference",
    [
        {"image_url": BAD_IMAGE, "reference_fallback": True},
        {"config": {"first_frame": BAD_IMAGE}},
        {"metadata": {"start_reference_url": BAD_IMAGE}},
        {"metadata": {"start_reference_url": "file:///etc/passwd"}},
    ],
    ids=["reference_fallback", "config.first_frame", "metadata.start_reference_url", "a file URL"],
)
def test_with_fallback_an_unusable_image_means_plain_generation_and_a_warning(
    serve: Serve, reference: Mapping[str, Any]
) -> None:
    answer = serve(reference)
    assert codes(answer) == ["REFERENCE_UNUSABLE"]
    assert answer["metadata"]["model"] == "wan2.1-t2v-1.3b"
    assert sha256_of(answer) == sha256_of(serve())


@pytest.mark.parametrize(
    "envelope",
    [
        lambda image: {"config": {"first_frame": image}},
        lambda image: {"metadata": {"start_reference_url": image}},
    ],
    ids=["config.first_frame", "metadata.start_reference_url"],
)
def test_the_legacy_envelope_starts_the_video_from_its_image(
    serve: Serve, envelope: Callable[[str], dict[str, Any]]
) -> None:
    answer = serve(envelope(picture()) | {"size": "64x48"})
    assert answer["metadata"]["model"] == "wan2.1-i2v-14b-480p"
    assert answer["warnings"] == []
    assert sha256_of(answer) == sha256_of(serve({"image_url": picture(), "size": "64x48"}))


def test_without_a_prompt_there_is_nothing_to_fall_back_to(worker: jobs.Worker) -> None:
    request = {k: v for k, v in QUICK.items() if k != "prompt"}
    request |= {"image_url": BAD_IMAGE, "reference_fallback": True}
    error = error_of(jobs.run({"id": "n", "input": request}, worker, Control()))
    assert error["code"] == "IMAGE_REJECTED"


def test_an_image_needs_no_prompt(worker: jobs.Worker) -> None:
    request = {k: v for k, v in QUICK.items() if k != "prompt"} | {"image_url": picture()}
    answer = jobs.run({"id": "n", "input": request}, worker, Control())
    assert answer["metadata"]["prompt"] == ""


def test_with_fallback_a_missing_image_model_means_plain_generation(
    worker: jobs.Worker, tmp_path: Path
) -> None:
    tiny.write(tmp_path / "models", ["wan2.1-t2v-1.3b"])
    small = replace(worker, settings=replace(worker.settings, models_dir=tmp_path / "models"))
    legacy = QUICK | {"config": {"first_frame": picture()}}
    answer = jobs.run({"id": "s", "input": legacy}, small, Control())
    assert codes(answer) == ["REFERENCE_UNUSABLE"]
    strict = jobs.run({"id": "s", "input": QUICK | {"image_url": picture()}}, small, Control())
    assert error_of(strict)["code"] == "MODEL_UNAVAILABLE"


# What a failed job leaves behind: nothing.


def test_a_decode_that_fails_midway_is_closed_before_the_next_job(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    baseline = sha256_of(serve())
    sources = []

    def fail_midway(frames: Any, *_: Any) -> None:
        sources.append(frames)
        next(frames)
        raise EncodeFailed("broken")

    with monkeypatch.context() as patch:
        patch.setattr(encode, "write", fail_midway)
        assert error_of(serve())["code"] == "ENCODE_FAILED"
    assert inspect.getgeneratorstate(sources[0]) == inspect.GEN_CLOSED
    assert sha256_of(serve()) == baseline


def test_a_failed_jobs_tensors_are_free_before_the_next(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive = []

    def fail_after(pipeline: Any, *_: Any) -> Any:
        alive.append(weakref.ref(pipeline))
        raise EncodeFailed("broken")

    with monkeypatch.context() as patch:
        patch.setattr(generate, "denoise", fail_after)
        serve()
    gc.collect()
    assert alive[0]() is None


def test_a_missing_temp_folder_is_an_answer_and_not_a_crash(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    answer = serve()
    assert error_of(answer)["code"] == "INTERNAL"
    assert str(tmp_path) not in json.dumps(answer)


def test_a_full_temp_folder_is_called_that(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(tempfile, "mkdtemp", break_pipeline(full))
    assert error_of(serve())["code"] == "DISK_FULL"


def test_an_output_folder_that_can_not_be_written_is_a_storage_failure(
    worker: jobs.Worker, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    broken = replace(worker, settings=replace(worker.settings, output_dir=tmp_path / "file"))
    answer = jobs.run({"id": "o", "input": QUICK}, broken, Control())
    assert (error_of(answer)["code"], error_of(answer)["retryable"]) == ("STORAGE_FAILED", False)
    assert str(tmp_path) not in json.dumps(answer)


@pytest.mark.usefixtures("no_retry_pauses")
def test_a_file_its_bucket_refuses_is_kept(worker: jobs.Worker) -> None:
    unreachable = {
        "accessId": "id",
        "accessSecret": "secret",
        "bucketName": "bucket",
        "endpointUrl": "http://127.0.0.1:9",
    }
    job = {"id": "kept", "input": QUICK, "s3Config": unreachable}
    error = error_of(jobs.run(job, worker, Control()))
    assert (error["code"], error["retryable"]) == ("STORAGE_FAILED", True)
    kept = worker.settings.output_dir / "kept" / "0.mp4"
    assert read(kept).frames.shape == (5, 48, 64, 3)


@pytest.fixture
def notices(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Bodies of the callbacks that would be sent, in place of sending them."""
    sent: list[dict[str, Any]] = []

    def record(url: str, body: dict[str, Any], *_: Any, seconds: float) -> None:
        sent.append(body | {"seconds": seconds})

    monkeypatch.setattr(jobs.callback, "send", record)
    return sent


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"image_url": "file:///etc/passwd"}, "URL_BLOCKED"),
        ({"size": "1x1"}, "INVALID_REQUEST"),
        ({"stepz": 1}, "INVALID_REQUEST"),
    ],
    ids=["blocked image", "bad size", "unknown field"],
)
def test_the_callback_hears_of_every_failure(
    serve: Serve, notices: list[dict[str, Any]], changes: dict[str, Any], code: str
) -> None:
    answer = serve(changes | {"callback_url": "http://127.0.0.1:9/hook"})
    [notice] = notices
    assert notice["metadata"]["error_type"] == error_of(answer)["code"] == code
    assert error_of(answer)["field"] in notice["error_message"]


def test_a_callback_that_is_itself_refused_is_not_called(
    serve: Serve, notices: list[dict[str, Any]]
) -> None:
    assert error_of(serve({"callback_url": "ftp://127.0.0.1/x"}))["code"] == "URL_BLOCKED"
    assert notices == []


def test_a_cancelled_jobs_callback_is_short(
    worker: jobs.Worker, notices: list[dict[str, Any]]
) -> None:
    control = Control()
    control._notify = lambda: control.cancel() if control.stage == "denoise" else None
    request = QUICK | {"callback_url": "http://127.0.0.1:9/hook"}
    jobs.run({"id": "c", "input": request}, worker, control)
    assert [notice["seconds"] for notice in notices] == [callback.LAST_BUDGET_SECONDS]
