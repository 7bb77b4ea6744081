"""Every model makes what it says it makes, through the handler, on tiny weights."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import handler
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.builders.answers import codes, sha256_of
from tests.builders.files import path_of, read
from tests.builders.pictures import data_uri, drawn, psnr
from tests.builders.requests import PROMPT
from tests.conftest import QUICK, Answer, error_of
from wan_worker import job as jobs
from wan_worker.catalog.models import MODELS, Model
from wan_worker.inputs.references import References
from wan_worker.pipelines.conditioning import known_frames, noised
from wan_worker.planning import plan
from wan_worker.planning.deployment import Deployment
from wan_worker.request import parse
from wan_worker.settings import Settings
from wan_worker.timing.progress import Control
from wan_worker.weights import store

Make = Callable[..., Answer]
Frames = NDArray[np.uint8]

SQUARE = {"size": "96x64", "num_frames": 17, "num_inference_steps": 8, "flow_shift": 3.0, "seed": 1}
"""What the trained toys draw well enough to tell pictures apart."""


@pytest.fixture
def make(
    every_worker: jobs.Worker, tmp_path: Path, response_errors: Callable[[Answer], list[str]]
) -> Make:
    """Run a request to its completed answer, checked against the response schema."""
    worker = replace(every_worker, settings=replace(every_worker.settings, output_dir=tmp_path))

    def run(**changes: Any) -> Answer:
        fields = {k: v for k, v in (QUICK | changes).items() if v is not None}
        answer = jobs.run({"id": "m", "input": fields}, worker, Control())
        assert "error" not in answer, answer
        assert response_errors(answer) == []
        return answer

    return run


def square(x: int, y: int = 32, colour: tuple[int, int, int] = (220, 30, 30)) -> str:
    return data_uri(Image.fromarray(drawn(colour, x, y)))


def clip(answer: Answer) -> Frames:
    return read(path_of(answer["assets"][0]["url"])).frames


def still(answer: Answer) -> Frames:
    with Image.open(path_of(answer["assets"][0]["url"])) as image:
        return np.asarray(image.convert("RGB"))


def starts(model: Model) -> Iterator[dict[str, Any]]:
    """Every kind of request that the catalog says the model serves."""
    first, last = {"image_url": square(26)}, {"last_image_url": square(66)}
    if model.text_pipeline is not None:
        yield {}
        yield {"mode": "image", "num_frames": None}
        yield {"mode": "image", "num_frames": None, "strength": 0.5} | first
    if model.image != "none" and model.last_image != "required":
        yield first
    if model.last_image != "none":
        yield first | last
        if model.image == "optional":
            yield last


KINDS = [
    pytest.param(model.id, fields, id="-".join([model.id, fields.get("mode", "video"), *(
        name for name in ("image_url", "last_image_url") if name in fields)]))
    for model in MODELS.values()
    for fields in starts(model)
]  # fmt: skip


@pytest.fixture(scope="session")
def handle(every_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What RunPod calls with each job, in a worker that has every model."""
    outputs = tmp_path_factory.mktemp("handler-outputs")
    return handler.make_handler(Settings(models_dir=every_model_dir, output_dir=outputs))


@pytest.mark.parametrize(("model_id", "fields"), KINDS)
def test_a_model_makes_every_kind_that_it_says_it_does(
    handle: Any,
    response_errors: Callable[[Answer], list[str]],
    model_id: str,
    fields: dict[str, Any],
) -> None:
    given = {k: v for k, v in (QUICK | {"model": model_id} | fields).items() if v is not None}
    answer = asyncio.run(handle({"id": "kind", "input": given}))
    assert "error" not in answer, answer
    assert response_errors(answer) == []
    metadata, asset = answer["metadata"], answer["assets"][0]
    assert (metadata["model"], metadata["wan_task"]) == (model_id, MODELS[model_id].wan_task)
    assert metadata["weights"] == "tiny"
    assert (asset["width"], asset["height"]) == (64, 48)
    if fields.get("mode") == "image":
        assert still(answer).shape == (48, 64, 3)
    else:
        assert clip(answer).shape == (5, 48, 64, 3)
    assert codes(answer) == []


@pytest.mark.parametrize("precision", ["fp8", "int8"])
@pytest.mark.parametrize("model_id", MODELS)
def test_every_model_generates_with_narrow_weights(
    make: Make, model_id: str, precision: str
) -> None:
    given: dict[str, Any] = next(starts(MODELS[model_id]))
    answer = make(model=model_id, precision=precision, **given)
    assert answer["metadata"]["plan"]["precision"] == precision
    assert codes(answer) == ["WEIGHTS_QUANTIZED"]
    assert clip(answer).shape == (5, 48, 64, 3)


# --- Two experts ---


@pytest.mark.parametrize("fields", [{}, {"image_url": square(26)}], ids=["text", "image"])
def test_the_high_noise_expert_begins_and_the_low_noise_expert_ends(
    make: Make, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    from diffusers import WanTransformer3DModel

    task = "i2v" if fields else "t2v"
    called: list[tuple[int, float]] = []
    forward = WanTransformer3DModel.forward

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        called.append((id(self), float(kwargs["timestep"].flatten()[0])))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(WanTransformer3DModel, "forward", watched)
    make(model=f"wan2.2-{task}-a14b", num_inference_steps=8, guidance_scale=1, **fields)
    boundary = 1000 * MODELS[f"wan2.2-{task}-a14b"].boundary_ratio  # type: ignore[operator]
    high = {expert for expert, t in called if t >= boundary}
    low = {expert for expert, t in called if t < boundary}
    assert (len(high), len(low)) == (1, 1)
    assert high != low
    assert len(called) == 8


def test_two_equal_experts_make_what_one_makes(make: Make) -> None:
    # The toy A14B's experts are copies of the toy 1.3B.
    one = make(model="wan2.1-t2v-1.3b", flow_shift=5.0, guidance_scale=4.0)
    two = make(model="wan2.2-t2v-a14b", flow_shift=5.0, guidance_scale=4.0)
    assert sha256_of(one) == sha256_of(two)
    assert two["metadata"]["plan"]["guidance_scale_2"] == 4.0
    assert one["metadata"]["plan"]["guidance_scale_2"] is None


def test_each_expert_has_its_own_guidance(make: Make) -> None:
    native = make(model="wan2.2-t2v-a14b", num_inference_steps=6)
    ran = native["metadata"]["plan"]
    assert (ran["guidance_scale"], ran["guidance_scale_2"]) == (4.0, 3.0)
    other = make(model="wan2.2-t2v-a14b", num_inference_steps=6, guidance_scale_2=9.0)
    assert other["metadata"]["plan"]["guidance_scale_2"] == 9.0
    assert sha256_of(other) != sha256_of(native)


# --- Pictures ---


@pytest.mark.parametrize("model_id", ["wan2.1-flf2v-14b-720p", "wan2.2-i2v-a14b"])
def test_the_last_frames_are_the_last_images(make: Make, model_id: str) -> None:
    prompt = "a red square moving right on a white background"
    ends = {x: drawn((220, 30, 30), x) for x in (30, 66)}
    fields = SQUARE | {"prompt": prompt, "model": model_id, "image_url": square(26)}
    for x, other in ((30, 66), (66, 30)):
        end = clip(make(**fields, last_image_url=square(x)))[-1]
        assert psnr(end, ends[x]) > psnr(end, ends[other]) + 2


def test_vaces_clip_is_known_at_its_ends_and_grey_between() -> None:
    planned: Any = SimpleNamespace(generated_size=(32, 16), generated_frames=9)
    red, blue = (Image.new("RGB", (32, 16), colour) for colour in ("red", "blue"))
    video, mask = known_frames(planned, References(red, blue))
    assert video.shape == mask.shape == (1, 9, 3, 16, 32)
    assert video[0, 0, :, 5, 5].tolist() == [1, 0, 0]
    assert video[0, 8, :, 5, 5].tolist() == [0, 0, 1]
    assert video[0, 1:8].unique().tolist() == [0.5]
    assert mask[0, :, 0, 0, 0].tolist() == [0, 1, 1, 1, 1, 1, 1, 1, 0]
    only_last = known_frames(planned, References(None, blue))[1]
    assert only_last[0, :, 0, 0, 0].tolist() == [1, 1, 1, 1, 1, 1, 1, 1, 0]


@pytest.mark.parametrize(("name", "frame"), [("image_url", 0), ("last_image_url", -1)])
def test_vaces_clip_begins_or_ends_with_its_picture(make: Make, name: str, frame: int) -> None:
    prompt = "a red square moving right on a white background"
    fields = SQUARE | {"prompt": prompt, "model": "wan2.1-vace-1.3b"}
    given = {x: drawn((220, 30, 30), x) for x in (26, 66)}
    for x, other in ((26, 66), (66, 26)):
        made = clip(make(**fields, **{name: square(x)}))[frame]
        assert psnr(made, given[x]) > psnr(made, given[other]) + 2


def test_the_5bs_first_frame_is_its_image_whatever_the_seed(make: Make) -> None:
    fields = {"model": "wan2.2-ti2v-5b", "size": "96x64", "num_frames": 9}
    one = clip(make(**fields, image_url=square(26), seed=1))
    two = clip(make(**fields, image_url=square(26), seed=2))
    other = clip(make(**fields, image_url=square(66), seed=1))
    assert psnr(one[0], two[0]) > psnr(one[0], other[0]) + 3
    assert psnr(one[0], two[0]) > psnr(one[-1], two[-1]) + 3


# --- The 5B's own rules ---


def test_the_5b_generates_on_its_own_grid(make: Make) -> None:
    answer = make(model="wan2.2-ti2v-5b", size="80x48", num_frames=6)
    assert answer["metadata"]["generated"] == {"width": 96, "height": 64, "num_frames": 9}
    assert clip(answer).shape == (6, 48, 80, 3)


def test_the_5b_plays_at_its_own_rate(make: Make) -> None:
    answer = make(model="wan2.2-ti2v-5b", num_frames=None, duration=0.5)
    assert (answer["assets"][0]["fps"], answer["assets"][0]["num_frames"]) == (24, 12)
    slower = make(model="wan2.2-ti2v-5b", fps=16)
    assert any(r.startswith("motion: slower") for r in slower["metadata"]["plan"]["reasons"])


# --- Image to image ---


@pytest.mark.parametrize("solver", ["unipc", "euler", "dpm++"])
def test_an_image_stays_closer_to_its_picture_at_a_lower_strength(make: Make, solver: str) -> None:
    fields = SQUARE | {
        "mode": "image",
        "num_frames": None,
        "num_inference_steps": 10,
        "prompt": "a blue circle on a white background",
        "guidance_scale": 2.0,
        "image_url": square(26),
        "solver": solver,
        "model": "wan2.1-t2v-1.3b",
    }
    given = drawn((220, 30, 30), 26)
    alike = [psnr(still(make(**fields, strength=strength)), given) for strength in (0.1, 0.3, 0.8)]
    assert alike[0] > alike[1] > alike[2]
    assert alike[0] > 20


def test_at_full_strength_nothing_is_left_of_the_picture(make: Make) -> None:
    fields = SQUARE | {"mode": "image", "num_frames": None, "prompt": PROMPT}
    plain = still(make(**fields))
    assert psnr(still(make(**fields, image_url=square(66), strength=1)), plain) > 45


def test_an_image_from_an_image_takes_its_share_of_the_steps(
    every_worker: jobs.Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import WanTransformer3DModel

    calls = []
    forward = WanTransformer3DModel.forward

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(WanTransformer3DModel, "forward", counted)
    fields = {k: v for k, v in QUICK.items() if k != "num_frames"}
    fields |= {"mode": "image", "image_url": square(26), "strength": 0.25, "guidance_scale": 1}
    answer = jobs.run(
        {"id": "s", "input": fields | {"num_inference_steps": 12}}, every_worker, Control()
    )
    assert "error" not in answer
    assert len(calls) == 3


def test_a_batch_of_images_from_one_picture_has_a_noise_of_its_own_for_each(
    every_worker: jobs.Worker,
) -> None:
    import torch

    fields = {k: v for k, v in QUICK.items() if k != "num_frames"}
    fields |= {"mode": "image", "image_url": square(26), "num_outputs": 2, "strength": 0.5}
    asked = parse.request({"input": fields | {"size": "96x64"}}, every_worker.contract)
    here = store.installed(every_worker.settings.models_dir)
    planned = plan.make(asked, Deployment(every_worker.hardware, here))
    pipeline = every_worker.pool.pipeline(planned, here[planned.model.id], lambda: None)
    red = Image.fromarray(drawn((220, 30, 30), 26))

    def generators(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]

    both = noised(pipeline, planned, red, generators(7, 8))
    assert both.shape == (2, 16, 1, 8, 12)
    assert not torch.equal(both[0], both[1])
    assert torch.equal(both[1:], noised(pipeline, planned, red, generators(8)))


def test_an_image_from_an_image_takes_its_shape_and_its_presets_area(make: Make) -> None:
    tall = data_uri(Image.fromarray(np.full((400, 200, 3), 90, np.uint8)))
    # The size is the plan's, resolved before anything is made.
    answer = make(mode="image", num_frames=None, size="48x96", image_url=tall)
    assert still(answer).shape == (96, 48, 3)


# --- Nothing leaks ---


def test_no_model_leaves_anything_to_the_next(make: Make) -> None:
    before = sha256_of(make(model="wan2.1-t2v-1.3b"))
    for changes in (
        {"model": "wan2.2-i2v-a14b", "image_url": square(26), "last_image_url": square(66)},
        {"model": "wan2.2-ti2v-5b"},
        {"model": "wan2.1-vace-1.3b", "last_image_url": square(26)},
        {"mode": "image", "num_frames": None, "image_url": square(26), "strength": 0.4},
    ):
        make(**changes)
        assert sha256_of(make(model="wan2.1-t2v-1.3b")) == before


def test_strength_of_a_video_is_refused(every_worker: jobs.Worker) -> None:
    fields = QUICK | {"image_url": square(26), "strength": 0.4}
    error = error_of(jobs.run({"id": "s", "input": fields}, every_worker, Control()))
    assert (error["code"], error["field"]) == ("INVALID_REQUEST", "/input/strength")
