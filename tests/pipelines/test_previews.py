"""Promises of previews: they show what is coming, and the job is the same job without them."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from training.measure import measure

from tests.builders.answers import sha256_of
from tests.builders.clocks import Clock
from tests.builders.pictures import data_uri, drawn
from tests.builders.pipelines import make_plan
from tests.builders.requests import CLIP, PROMPT
from tests.conftest import QUICK, Answer, error_of
from wan_worker import job as jobs
from wan_worker import worker as workers
from wan_worker.catalog.models import MODELS
from wan_worker.pipelines import generate, previews
from wan_worker.planning.memory import Layout, explain
from wan_worker.timing import progress
from wan_worker.timing.progress import Control, Preview, Viewer


@pytest.fixture
def watch(worker: jobs.Worker, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run a request with a viewer who sees every preview there could be."""
    monkeypatch.setattr(progress, "PREVIEW_SECONDS", 0.0)
    monkeypatch.setattr(progress, "PREVIEW_SHARE", 1e9)

    def run(_worker: jobs.Worker = worker, **changes: Any) -> tuple[Answer, list[Preview]]:
        seen: list[Preview] = []
        request = {k: v for k, v in (QUICK | changes).items() if v is not None}
        control = Control(viewer=Viewer(seen.append))
        return jobs.run({"id": "watched", "input": request}, _worker, control), seen

    return run


def picture(preview: Preview) -> Image.Image:
    return Image.open(io.BytesIO(preview.data))


# --- What is seen ---


@pytest.mark.parametrize("solver", ["unipc", "euler", "dpm++"])
def test_a_preview_half_way_shows_what_the_video_will_show(
    watch: Callable[..., Any], solver: str
) -> None:
    _, seen = watch(**CLIP, prompt=PROMPT, solver=solver)
    half = next(p for p in seen if (p.stage, p.step) == ("denoise", 8))
    frame = np.asarray(picture(half).convert("RGB"))
    found = measure(np.stack([frame] * 3))
    assert (found.colour, found.kind, found.background) == ("red", "circle", "white")


def test_previews_come_after_every_step_but_the_first_and_then_of_each_decoded_chunk(
    watch: Callable[..., Any],
) -> None:
    _, seen = watch(num_inference_steps=4, num_frames=9)
    assert [(p.number, p.stage, p.step) for p in seen] == [
        (1, "denoise", 2),
        (2, "denoise", 3),
        (3, "denoise", 4),
        (4, "decode_encode", 1),
        (5, "decode_encode", 2),
        (6, "decode_encode", 3),
    ]


@pytest.mark.parametrize(("size", "expected"), [("448x96", (256, 56)), ("96x448", (56, 256))])
def test_a_preview_is_a_jpeg_of_256_pixels_at_most_in_the_videos_shape(
    watch: Callable[..., Any], size: str, expected: tuple[int, int]
) -> None:
    _, seen = watch(size=size, num_frames=1, mode="video")
    assert {p.stage for p in seen} == {"denoise", "decode_encode"}
    for preview in seen:
        assert picture(preview).format == "JPEG"
        assert picture(preview).size == pytest.approx(expected, abs=8)
        assert max(picture(preview).size) <= 256
        assert len(preview.data) < 30_000


@pytest.mark.parametrize("model", MODELS)
def test_every_model_can_be_watched(
    every_worker: jobs.Worker, tmp_path: Path, watch: Callable[..., Any], model: str
) -> None:
    worker = replace(every_worker, settings=replace(every_worker.settings, output_dir=tmp_path))
    image = data_uri(Image.fromarray(drawn((220, 30, 30), 48)))
    given = MODELS[model]
    pictures = {
        "image_url": image if given.image != "none" else None,
        "last_image_url": image if given.last_image == "required" else None,
    }
    answer, seen = watch(worker, model=model, num_inference_steps=3, **pictures)
    assert "error" not in answer, answer
    assert [p.step for p in seen if p.stage == "denoise"] == [2, 3]


def test_the_estimate_is_exact_on_a_straight_line() -> None:
    clip, noise = torch.randn(2, 1, 16, 1, 6, 8, generator=torch.Generator().manual_seed(1))
    on_the_way = [(1 - level) * clip + level * noise for level in (0.9, 0.4)]
    assert torch.allclose(previews.clean(*on_the_way, 0.9, 0.4), clip, atol=1e-5)
    assert torch.equal(previews.clean(on_the_way[0], clip, 0.9, 0.0), clip)
    assert torch.equal(previews.clean(clip, noise, 0.4, 0.4), noise)  # a step that went nowhere


# --- What it costs ---


@pytest.mark.parametrize("solver", ["unipc", "euler", "dpm++"])
def test_a_watched_job_makes_the_same_bytes(
    watch: Callable[..., Any], serve: Callable[..., Answer], solver: str
) -> None:
    request = {"num_frames": 9, "num_inference_steps": 4, "solver": solver}
    before = serve(request)
    watched, seen = watch(**request)
    assert seen
    assert sha256_of(before) == sha256_of(watched) == sha256_of(serve(request))


@pytest.mark.parametrize("watched", [False, True])
def test_nothing_is_decoded_for_nobody(
    worker: jobs.Worker, monkeypatch: pytest.MonkeyPatch, watched: bool
) -> None:
    decoded = []
    real = generate._decode

    def counted(vae: Any, parts: Any, latents: torch.Tensor) -> Any:
        decoded.append(tuple(latents.shape))
        return real(vae, parts, latents)

    monkeypatch.setattr(generate, "_decode", counted)
    monkeypatch.setattr(progress, "PREVIEW_SECONDS", 0.0)
    viewer = Viewer(lambda _: None, wanted=lambda: watched)
    request = QUICK | {"num_inference_steps": 4}
    jobs.run({"id": "x", "input": request}, worker, Control(viewer=viewer))
    assert (len(decoded) > 1) == watched
    assert decoded[-1] == (1, 16, 2, 6, 8)


def test_without_a_viewer_the_pipeline_is_called_as_if_there_were_no_previews(
    worker: jobs.Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unexpected(*_: Any) -> None:
        raise AssertionError("nobody is watching")

    for name in ("see", "draw"):
        monkeypatch.setattr(previews.LatentPreviews, name, unexpected)
    monkeypatch.setattr(previews, "jpeg", unexpected)
    answer = jobs.run({"id": "x", "input": QUICK}, worker, Control())
    assert "error" not in answer


def test_previews_come_once_a_second_and_take_a_twentieth_of_the_time_at_most() -> None:
    clock, seen = Clock(), []
    viewer = Viewer(lambda preview: seen.append((preview.number, clock.now)), clock=clock)

    def draw() -> bytes:
        clock.now += cost
        return b"jpeg"

    cost = 0.01
    for _ in range(30):
        viewer.offer(draw, "denoise", 1)
        clock.now += 0.1
    assert [number for number, _ in seen] == [1, 2, 3]
    seen.clear()
    cost = 1.0
    for _ in range(500):
        viewer.offer(draw, "denoise", 1)
        clock.now += 0.1
    assert len(seen) == 3  # one second of drawing in each twenty


def test_a_viewer_who_comes_late_sees_what_is_drawn_from_then_on() -> None:
    clock, seen, here = Clock(), [], [False]
    viewer = Viewer(seen.append, wanted=lambda: here[0], clock=clock)
    viewer.offer(lambda: b"unseen", "denoise", 1)
    here[0] = True
    viewer.offer(lambda: None, "denoise", 2)  # nothing to see yet
    viewer.offer(lambda: b"seen", "denoise", 3)
    assert seen == [Preview(1, "denoise", 3, b"seen")]


# --- What can go wrong ---


@pytest.mark.parametrize("fault", [RuntimeError("x"), torch.OutOfMemoryError("x"), KeyError("x")])
def test_a_preview_that_fails_costs_nothing_but_previews(
    watch: Callable[..., Any],
    serve: Callable[..., Answer],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: Exception,
) -> None:
    calls = []

    def failing(_: Any) -> bytes:
        calls.append(1)
        raise fault

    monkeypatch.setattr(previews, "jpeg", failing)
    answer, seen = watch(num_inference_steps=4)
    assert (len(calls), seen) == (1, [])
    assert sha256_of(answer) == sha256_of(serve({"num_inference_steps": 4}))
    assert f"previews stop: {type(fault).__name__} in stage denoise" in caplog.text


def test_a_viewer_that_fails_costs_nothing_but_previews(worker: jobs.Worker) -> None:
    calls = []

    def show(_: Preview) -> None:
        calls.append(1)
        raise ConnectionError

    control = Control(viewer=Viewer(show))
    answer = jobs.run({"id": "x", "input": QUICK}, worker, control)
    assert "error" not in answer
    assert len(calls) == 1


def test_a_job_that_is_cancelled_while_it_is_watched_stops_at_its_next_step(
    worker: jobs.Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PREVIEW_SECONDS", 0.0)
    steps: list[int | None] = []
    control = Control(viewer=Viewer(lambda _: control.cancel()))
    control._notify = lambda: steps.append(control.latest.step)
    request = QUICK | {"num_inference_steps": 50}
    answer = jobs.run({"id": "x", "input": request}, worker, control)
    assert error_of(answer)["code"] == "CANCELED"
    assert max(step for step in steps if step) == 2


def test_where_components_take_turns_denoising_is_not_watched_and_the_plan_says_so(
    worker: jobs.Worker,
) -> None:
    resident = make_plan(worker)
    turns = replace(resident, layout=Layout("sequential", stages=(("denoise", 1),)))
    assert previews.possible(resident)
    assert not previews.possible(turns)
    assert previews.possible(replace(resident, layout=Layout("group")))
    gpu = replace(worker.hardware, device="cuda")
    here = workers.installed(worker)[resident.model.id]
    (reason,) = [r for r in explain(turns.layout, resident.model, here, gpu) if "previews" in r]
    assert "not on the GPU" in reason
