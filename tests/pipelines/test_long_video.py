"""Long videos, made: exact, continuous, and no finished segment lost to a fault."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.builders.answers import codes, files, hashes, manifest, sha256_of
from tests.builders.faults import failing_at
from tests.builders.files import path_of, read
from tests.builders.pictures import picture
from tests.conftest import QUICK, Answer, error_of
from wan_worker import job as jobs
from wan_worker.catalog.models import MODELS
from wan_worker.errors import DeadlineExceeded, GenerationFailed
from wan_worker.pipelines import generate
from wan_worker.pipelines.pool import Pool
from wan_worker.planning import model_choice, segments
from wan_worker.timing.progress import Control

Serve = Callable[..., Answer]
T2V, I2V = "wan2.1-t2v-1.3b", "wan2.1-i2v-14b-480p"
LONG = {"num_frames": 25}
"""Three segments of models that were trained on nine frames."""


@pytest.fixture(autouse=True)
def short_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same models, trained on nine frames."""
    short = {name: replace(model, native_frames=9) for name, model in MODELS.items()}
    for module in (model_choice, segments):
        monkeypatch.setattr(module, "MODELS", short)


def counted(monkeypatch: pytest.MonkeyPatch, owner: ModuleType | type, name: str) -> list[Any]:
    """Arguments of every call."""
    calls: list[Any] = []
    original = getattr(owner, name)

    def note(*args: Any, **named: Any) -> Any:
        calls.append(args)
        return original(*args, **named)

    monkeypatch.setattr(owner, name, note)
    return calls


@pytest.mark.parametrize("frames", [14, 17, 22, 25])
def test_a_long_video_has_exactly_the_frames_asked_for_in_one_file(
    serve: Serve, frames: int
) -> None:
    answer = serve({"num_frames": frames})
    asset = answer["assets"][0]
    clip = read(path_of(asset["url"]))
    assert clip.frames.shape == (frames, 48, 64, 3)
    assert clip.seconds == frames / 16
    assert (asset["num_frames"], answer["metadata"]["frame_num"]) == (frames, frames)
    assert answer["metadata"]["generated"]["num_frames"] - frames in range(4)
    assert codes(answer) == ["CHAINED"]
    assert [s["model"] for s in answer["metadata"]["plan"]["segments"]][:2] == [T2V, I2V]


def test_each_segment_starts_from_the_last_frame_before_it_and_repeats_none(
    worker: jobs.Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = counted(monkeypatch, generate, "denoise")
    decoded: list[Any] = []
    frames_of = generate.frames

    def noted(*args: Any) -> Iterator[Any]:
        decoded.append([])
        for chunk in frames_of(*args):
            decoded[-1].append(chunk)
            yield chunk

    written: list[Any] = []
    write = jobs.clips.encode.write

    def kept(frames: Iterator[Any], *rest: Any) -> int:
        def seen() -> Iterator[Any]:
            for chunk in frames:
                written.append(chunk)
                yield chunk

        return write(seen(), *rest)

    monkeypatch.setattr(generate, "frames", noted)
    monkeypatch.setattr(jobs.clips.encode, "write", kept)
    answer = jobs.run({"id": "s", "input": QUICK | LONG}, worker, Control())
    assert "error" not in answer
    clips = [np.concatenate(chunks) for chunks in decoded]
    images = [call[4].first for call in starts]
    assert images[0] is None
    assert np.array_equal(np.asarray(images[1]), clips[0][-1])
    assert np.array_equal(np.asarray(images[2]), clips[1][-1])
    whole = np.concatenate([clips[0], clips[1][1:], clips[2][1:]])
    assert np.array_equal(np.concatenate(written), whole)


def test_a_size_off_the_grid_is_cropped_once_and_not_at_every_seam(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = counted(monkeypatch, generate, "denoise")
    answer = serve(LONG | {"size": "54x36"})
    assert read(path_of(answer["assets"][0]["url"])).frames.shape == (25, 36, 54, 3)
    assert [call[4].first.size for call in starts[1:]] == [(64, 48), (64, 48)]


def test_a_long_video_repeats_itself_and_leaves_no_trace_in_the_next_job(serve: Serve) -> None:
    plain = sha256_of(serve({}))
    long = sha256_of(serve(LONG))
    assert sha256_of(serve(LONG)) == long
    assert sha256_of(serve({})) == plain
    assert sha256_of(serve(LONG | {"seed": 8})) != long


def test_a_long_video_from_an_image_is_made_by_the_image_model_alone(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = counted(monkeypatch, Pool, "pipeline")
    answer = serve(LONG | {"image_url": picture()})
    assert {call[1].model.id for call in loads} == {I2V}
    assert answer["assets"][0]["num_frames"] == 25


def test_several_long_videos_are_each_what_they_would_be_alone(serve: Serve) -> None:
    request = {"num_frames": 14}
    both = serve(request | {"num_outputs": 2})
    alone = [sha256_of(serve(request | {"seed": seed})) for seed in (7, 8)]
    assert hashes(both) == alone


def test_prompts_are_encoded_once_for_all_segments(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted(monkeypatch, generate, "encode_prompts")
    serve(LONG)
    assert len(calls) == 1


def test_only_one_segments_latents_are_in_memory_at_a_time(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gc
    import weakref

    alive: list[weakref.ref[Any]] = []
    denoise = generate.denoise

    def watched(*args: Any) -> Any:
        gc.collect()
        assert [ref for ref in alive if ref() is not None] == []
        latents = denoise(*args)
        alive.append(weakref.ref(latents))
        return latents

    monkeypatch.setattr(generate, "denoise", watched)
    serve(LONG)
    assert len(alive) == 3


def test_progress_says_which_segment_of_which_output(worker: jobs.Worker) -> None:
    control, messages = Control(), []
    control._notify = lambda: messages.append(control.latest.public().get("message"))
    request = QUICK | {"num_frames": 14, "num_outputs": 2}
    jobs.run({"id": "p", "input": request}, worker, control)
    assert "denoise, output 1 of 2, segment 2 of 2: step 2 of 2" in messages
    assert "decode_encode, output 2 of 2, segment 1 of 2: step 1 of 3" in messages


# --- Faults ---


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (GenerationFailed("The model produced NaN"), "GENERATION_FAILED"),
        (RuntimeError("CUDA error: an illegal memory access"), "GPU_FAULT"),
    ],
    ids=["nan", "gpu fault"],
)
def test_a_segment_that_fails_is_named_and_those_before_it_are_delivered(
    serve: Serve,
    worker: jobs.Worker,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: str,
) -> None:
    whole = read(path_of(serve(LONG, job_id="whole")["assets"][0]["url"])).frames
    with monkeypatch.context() as patch:
        patch.setattr(generate, "denoise", failing_at(3, error, generate.denoise))
        failed = error_of(serve(LONG))
    assert (failed["code"], failed["stage"]) == (code, "denoise")
    assert failed["message"].startswith("Segment 3 of 3: ")
    assert "job-1/manifest.json" in failed["message"]
    folder = worker.settings.output_dir / "job-1"
    assert files(folder) == ["0.mp4", "manifest.json"]
    record = manifest(folder)
    assert (record["status"], record["assets"][0]["num_frames"]) == ("failed", 17)
    kept = read(folder / "0.mp4").frames
    assert kept.shape == (17, 48, 64, 3)
    assert np.abs(kept.astype(int) - whole[:17]).mean() < 3  # the codec looks ahead
    assert "error" not in serve()


def test_a_first_segment_that_fails_leaves_nothing(
    serve: Serve, worker: jobs.Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = failing_at(1, GenerationFailed("NaN"), generate.denoise)
    monkeypatch.setattr(generate, "denoise", broken)
    assert error_of(serve(LONG))["message"] == "Segment 1 of 3: NaN"
    assert files(worker.settings.output_dir) == []


def test_a_failed_segment_of_a_second_output_loses_neither(
    serve: Serve, worker: jobs.Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = failing_at(4, GenerationFailed("NaN"), generate.denoise)
    monkeypatch.setattr(generate, "denoise", broken)
    failed = error_of(serve({"num_frames": 14, "num_outputs": 2}))
    assert failed["message"].startswith("Output 2 of 2, segment 2 of 2: NaN (2 file(s) saved")
    record = manifest(worker.settings.output_dir / "job-1")
    assert [(a["seed"], a["num_frames"]) for a in record["assets"]] == [(7, 14), (8, 9)]


def test_a_deadline_keeps_the_finished_segments(worker: jobs.Worker) -> None:
    now = 0.0
    control = Control(seconds=100, clock=lambda: now)

    def third_is_late() -> None:
        nonlocal now
        event = control.latest
        if event.stage == "denoise" and event.step and [p.first for p in event.parts] == [3]:
            now = 101.0

    control._notify = third_is_late
    error = error_of(jobs.run({"id": "late", "input": QUICK | LONG}, worker, control))
    assert (error["code"], error["stage"]) == ("DEADLINE", "denoise")
    assert error["message"].startswith("Segment 3 of 3: ")
    assert read(worker.settings.output_dir / "late" / "0.mp4").frames.shape[0] == 17


@pytest.mark.parametrize("stage", ["load", "denoise", "decode_encode"])
def test_cancel_in_a_later_segment_leaves_nothing_and_the_next_job_passes(
    worker: jobs.Worker, serve: Serve, stage: str
) -> None:
    control = Control()

    def cancel_in_the_second() -> None:
        event = control.latest
        if event.stage == stage and [part.first for part in event.parts] == [2]:
            control.cancel()

    control._notify = cancel_in_the_second
    error = error_of(jobs.run({"id": "gone", "input": QUICK | LONG}, worker, control))
    assert (error["code"], error["stage"]) == ("CANCELED", stage)
    assert files(worker.settings.output_dir) == []
    assert "error" not in serve()


def test_a_failed_films_file_is_whole_and_says_so_in_json(
    serve: Serve, worker: jobs.Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = failing_at(2, DeadlineExceeded("late"), generate.denoise)
    monkeypatch.setattr(generate, "denoise", broken)
    serve(LONG)
    folder: Path = worker.settings.output_dir / "job-1"
    record = json.loads((folder / "manifest.json").read_text())
    assert record["error"]["code"] == "DEADLINE"
    assert read(folder / "0.mp4").seconds == record["assets"][0]["duration"] == 9 / 16
