"""Does the picture show what was asked? Through the handler's own flow, on the trained tiny Wan.

Shape, colour, background and motion are read back from the delivered file by plain arithmetic
(training.measure). tests/README.md says which mistake each of these tests catches.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from training.measure import measure

from tests.builders.files import path_of, read_gif
from tests.builders.pictures import data_uri, drawn, psnr
from tests.builders.pipelines import build, make_plan
from tests.builders.requests import CLIP, PROMPT, said, video
from tests.conftest import Answer
from wan_worker import job
from wan_worker.catalog.models import MODELS
from wan_worker.inputs.references import References
from wan_worker.pipelines import generate
from wan_worker.planning import model_choice, segments
from wan_worker.prompts.embeddings import Embeddings
from wan_worker.request.outputs import Output
from wan_worker.timing.progress import Control

Serve = Callable[..., Answer]


@pytest.mark.parametrize(
    ("colour", "kind", "motion", "words", "background"),
    [
        ("red", "circle", "right", "moving right", "white"),
        ("blue", "square", "left", "moving left", "yellow"),
        ("yellow", "triangle", "up", "moving up", "black"),
    ],
)
def test_the_prompt_is_followed(
    serve: Serve, colour: str, kind: str, motion: str, words: str, background: str
) -> None:
    frames = video(serve, f"a {colour} {kind} {words} on a {background} background")
    assert said(measure(frames)) == (colour, kind, motion, background)


@pytest.mark.parametrize("solver", ["unipc", "euler", "dpm++"])
def test_every_solver_draws_the_same_content(serve: Serve, solver: str) -> None:
    found = measure(video(serve, PROMPT, solver=solver))
    assert said(found) == ("red", "circle", "right", "white")


def test_frames_are_in_order(serve: Serve) -> None:
    track = measure(video(serve, PROMPT)).track
    xs = [point[0] for point in track if point is not None]
    assert len(xs) == 17
    assert xs[-1] - xs[0] > 16
    assert sum(after > before for before, after in pairwise(xs)) >= 14
    assert xs[-1] < 96 - 8  # and it has not left the picture


def test_guidance_changes_the_picture(serve: Serve) -> None:
    apart = psnr(video(serve, PROMPT, guidance_scale=5.0), video(serve, PROMPT, guidance_scale=1.0))
    assert apart < 40  # the same clip would be over 50 even after the codec


@pytest.mark.parametrize("seed", [1, 3])
def test_the_negative_prompt_repels(serve: Serve, seed: int) -> None:
    # The prompt leaves the colour open: what is drawn then is what the negative prompt names next.
    # The same clip comes in another colour, which may be one between those that have a name.
    small = {"size": "64x64", "num_frames": 9, "seed": seed}
    prompt = "a circle moving right on a white background"
    freely = measure(video(serve, prompt, negative_prompt="", **small))
    assert freely.colour is not None
    refused = f"a {freely.colour} circle"
    otherwise = measure(video(serve, prompt, negative_prompt=refused, **small))
    assert otherwise.colour != freely.colour
    assert (otherwise.kind, otherwise.motion) == (freely.kind, freely.motion) == ("circle", "right")
    assert otherwise.background == freely.background == "white"


def test_image_mode_draws_the_shape(serve: Serve) -> None:
    request = {k: v for k, v in CLIP.items() if k != "num_frames"}
    answer = serve(
        request
        | {"mode": "image", "num_frames": 1, "prompt": "a blue square on a white background"}
    )
    with Image.open(path_of(answer["assets"][0]["url"])) as image:
        found = measure(np.asarray(image.convert("RGB"))[None])
    assert (found.colour, found.kind, found.background) == ("blue", "square", "white")


@pytest.mark.parametrize("changes", [{"upscale": 2}, {"output_format": "webm"}])
def test_an_enlarged_or_otherwise_encoded_clip_shows_the_same(
    serve: Serve, changes: dict[str, Any]
) -> None:
    frames = video(serve, PROMPT, **changes)
    factor = changes.get("upscale", 1)
    assert frames.shape == (17, 64 * factor, 96 * factor, 3)
    found = measure(frames)
    assert said(found) == ("red", "circle", "right", "white")
    plain = measure(video(serve, PROMPT)).track
    for small, large in zip(plain, found.track, strict=True):
        assert small is not None
        assert large is not None
        # Pixel centres: the middle of the first of n is at (n - 1) / 2 once enlarged.
        expected = [factor * at + (factor - 1) / 2 for at in small]
        assert np.abs(np.subtract(large, expected)).max() < 1.5


def test_a_gif_shows_the_same(serve: Serve) -> None:
    answer = serve(CLIP | {"prompt": PROMPT, "output_format": "gif"})
    made = read_gif(path_of(answer["assets"][0]["url"]))
    assert said(measure(made.frames)) == ("red", "circle", "right", "white")


@pytest.mark.parametrize(("direction", "start"), [("right", 26)])
def test_a_video_begins_with_its_image_and_goes_on_as_the_prompt_says(
    serve: Serve, direction: str, start: int
) -> None:
    first = drawn((220, 30, 30), start)
    frames = video(
        serve,
        f"a red square moving {direction} on a white background",
        image_url=data_uri(Image.fromarray(first)),
    )
    found = measure(frames)
    assert psnr(frames[0], first) > 28
    assert (found.colour, found.motion) == ("red", direction)


# What the tiny LoRA teaches (training/lora.py); the palette's nearest colour is 150 away.
CYAN = (20, 210, 220)


def shape_colour(frames: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Median colour of the pixels in the middle of the shape: it is large, and its path central."""
    _, height, width, _ = frames.shape
    middle = frames[:, height // 2 - 3 : height // 2 + 3, width // 2 - 3 : width // 2 + 3]
    return np.asarray(np.median(middle[len(frames) // 2], axis=(0, 1)))


@pytest.mark.parametrize(
    ("prompt", "background"),
    [
        ("a cyan circle standing still on a black background", "black"),
        ("a cyan square moving left on a yellow background", "yellow"),
    ],
)
def test_a_lora_draws_what_the_model_can_not(serve: Serve, prompt: str, background: str) -> None:
    plain = video(serve, prompt)
    taught = video(serve, prompt, loras=[{"source": "cyan"}])
    assert np.linalg.norm(shape_colour(taught) - CYAN) < 80
    assert np.linalg.norm(shape_colour(plain) - CYAN) > 100
    assert measure(taught).background == background
    assert measure(taught).colour is None  # no colour that the model knows


def test_a_lora_leaves_what_it_was_not_trained_for(serve: Serve) -> None:
    found = measure(video(serve, PROMPT, loras=[{"source": "cyan"}]))
    assert said(found) == ("red", "circle", "right", "white")


@pytest.mark.parametrize("with_image", [False, True], ids=["text", "image"])
def test_a_long_video_goes_on_moving_through_its_seams(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, with_image: bool
) -> None:
    for module in (model_choice, segments):  # models trained on nine frames: three segments
        short = {name: replace(model, native_frames=9) for name, model in MODELS.items()}
        monkeypatch.setattr(module, "MODELS", short)
    first = drawn((220, 30, 30), 32, 26, (96, 64))
    start = {"image_url": data_uri(Image.fromarray(first))} if with_image else {}
    words = "a red square moving down on a white background"
    frames = video(serve, words, size="64x96", num_frames=25, **start)
    found = measure(frames)
    ys = [point[1] for point in found.track if point is not None]
    assert (len(frames), len(ys)) == (25, 25)
    assert (found.colour, found.motion, found.background) == ("red", "down", "white")
    assert ys[-1] - ys[0] > 24
    steps = [after - before for before, after in pairwise(ys)]
    assert min(steps) > -0.5
    # Between the segments it moves as it does within them: no jump, no frame that comes twice.
    assert all(0.3 < steps[seam] < 4 for seam in (8, 16))


def test_a_seeds_content_survives_a_batch(worker: job.Worker) -> None:
    planned = make_plan(worker, **(CLIP | {"prompt": PROMPT}))
    other = "a blue square moving left on a yellow background"
    pipeline = build(worker, planned)

    def clips(*outputs: Output) -> list[NDArray[np.uint8]]:
        """Denoised in one call."""
        batch = replace(planned, outputs=outputs)
        embeds, negative, _ = generate.encode_prompts(pipeline, batch, Embeddings())
        made = generate.denoise(pipeline, batch, embeds, negative, References(), Control())
        return [torch.cat(list(generate.decode(pipeline.vae, x[None]))).numpy() for x in made]

    [alone] = clips(Output(PROMPT, 1))
    another, together = clips(Output(other, 9), Output(PROMPT, 1))
    assert psnr(alone, together) > 40
    assert said(measure(alone)) == said(measure(together)) == ("red", "circle", "right", "white")
    found = measure(another)
    assert (found.colour, found.motion, found.background) == ("blue", "left", "yellow")
