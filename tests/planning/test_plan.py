"""Promises of plan: the right model or the right refusal, exact sizes and lengths, and why."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders.plans import (
    BOTH,
    CONTRACT,
    CPU,
    I2V,
    T2V,
    codes,
    gpu,
    make,
    reasons_about,
    store,
)
from wan_worker.catalog.models import MAX_WORK, MODELS, NEGATIVE_PROMPT
from wan_worker.errors import InvalidRequest, ModelUnavailable, Unsupported, WorkerError
from wan_worker.planning import memory, model_choice, plan
from wan_worker.planning.activations import JobSize
from wan_worker.planning.deployment import Deployment
from wan_worker.planning.memory import Layout
from wan_worker.planning.plan import fit_to_image
from wan_worker.request import parse
from wan_worker.request import schema as contract

URL = "https://example.com/cat.png"


# --- Which model ---

CHOSEN = [
    pytest.param((T2V, I2V), {}, None, T2V, "best installed", id="text"),
    pytest.param((T2V, I2V), {"image_url": URL}, None, I2V, "takes an image", id="image"),
    pytest.param((T2V, I2V), {"mode": "image"}, None, T2V, "best installed", id="still"),
    pytest.param((T2V,), {}, None, T2V, "best installed", id="only-text-model"),
    pytest.param((T2V, I2V), {"model": T2V}, None, T2V, "as named", id="named"),
    pytest.param((T2V, I2V), {"model": "auto"}, None, T2V, "best installed", id="auto-said"),
    pytest.param((T2V, I2V), {}, T2V, T2V, "DEFAULT_MODEL", id="default"),
    pytest.param((T2V, I2V), {}, I2V, T2V, "best installed", id="default-that-can-not"),
    pytest.param(
        (T2V, I2V), {"image_url": URL}, T2V, I2V, "best installed", id="default-takes-no-image"
    ),
    pytest.param((I2V,), {"image_url": URL}, T2V, I2V, "best installed", id="default-absent"),
]


@pytest.mark.parametrize(("here", "fields", "default", "expected", "why"), CHOSEN)
def test_the_model_that_serves_the_request_is_chosen_and_the_reason_given(
    here: tuple[str, ...], fields: Mapping[str, Any], default: str | None, expected: str, why: str
) -> None:
    made = make(fields, installed=store(*here), default_model=default)
    assert made.model.id == expected
    (reason,) = reasons_about(made, "model: ")
    assert expected in reason
    assert why in reason


REFUSED = [
    pytest.param((), {}, ModelUnavailable, "model", T2V, id="nothing-installed"),
    pytest.param((), {"image_url": URL}, ModelUnavailable, "model", I2V, id="no-image-model"),
    pytest.param((T2V,), {"image_url": URL}, ModelUnavailable, "model", I2V, id="text-model-only"),
    pytest.param((I2V,), {}, ModelUnavailable, "model", T2V, id="image-model-only"),
    pytest.param((I2V,), {"mode": "image"}, ModelUnavailable, "model", T2V, id="still-no-model"),
    pytest.param((I2V,), {"model": T2V}, ModelUnavailable, "model", T2V, id="named-absent"),
    pytest.param(
        (T2V,),
        {"model": I2V, "image_url": URL},
        ModelUnavailable,
        "model",
        I2V,
        id="named-absent-2",
    ),
    pytest.param(
        (T2V, I2V),
        {"model": T2V, "image_url": URL},
        InvalidRequest,
        "image_url",
        "takes no image",
        id="image-to-a-text-model",
    ),
    pytest.param(
        (T2V, I2V),
        {"model": T2V, "image": URL},
        InvalidRequest,
        "image",
        "takes no image",
        id="image-alias-to-a-text-model",
    ),
    pytest.param(
        (T2V, I2V),
        {"model": T2V, "config": {"first_frame": URL}},
        InvalidRequest,
        "config/first_frame",
        "takes no image",
        id="envelope-image-to-a-text-model",
    ),
    pytest.param(
        (T2V, I2V),
        {"model": I2V},
        InvalidRequest,
        "image_url",
        "needs an image",
        id="image-missing",
    ),
    pytest.param(
        (T2V, I2V),
        {"model": I2V, "mode": "image"},
        InvalidRequest,
        "model",
        "videos only",
        id="still-from-a-video-model",
    ),
]


@pytest.mark.parametrize(("here", "fields", "error", "where", "says"), REFUSED)
def test_what_no_installed_model_serves_is_refused_with_the_right_code(
    here: tuple[str, ...],
    fields: Mapping[str, Any],
    error: type[WorkerError],
    where: str,
    says: str,
) -> None:
    with pytest.raises(error) as refusal:
        make(fields, installed=store(*here))
    assert refusal.value.field == f"/input/{where}"
    assert says in refusal.value.message


def test_a_model_that_is_not_installed_comes_with_the_command_that_installs_it() -> None:
    first = next(model.id for model in MODELS.values() if model.text_pipeline)
    with pytest.raises(ModelUnavailable, match=rf"download_weights\.py --models {first}"):
        make(installed={})


def test_a_named_model_is_never_swapped_for_a_better_one(monkeypatch: pytest.MonkeyPatch) -> None:
    better = replace(MODELS[T2V], id="better")
    monkeypatch.setattr(model_choice, "MODELS", {**MODELS, "better": better})
    here = BOTH | {"better": BOTH[T2V]}
    assert make(installed=here).model.id == "better"
    assert make(installed=here, model=T2V).model.id == T2V


def test_the_default_model_wins_over_the_best_one(monkeypatch: pytest.MonkeyPatch) -> None:
    better = replace(MODELS[T2V], id="better")
    monkeypatch.setattr(model_choice, "MODELS", {**MODELS, "better": better})
    here = BOTH | {"better": BOTH[T2V]}
    made = make(installed=here, default_model=T2V)
    assert made.model.id == T2V
    assert "DEFAULT_MODEL" in reasons_about(made, "model: ")[0]


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        pytest.param({"size": "1920x1080"}, "921600", id="text-full-hd"),
        pytest.param({"size": "1080x1920"}, "921600", id="text-full-hd-portrait"),
        pytest.param({"size": "1282x720"}, "921600", id="text-one-step-over"),
        pytest.param({"size": "1920x1080", "model": T2V}, "921600", id="named"),
        pytest.param({"size": "1280x720", "image_url": URL}, "409920", id="image-hd"),
        pytest.param(
            {"size": "1920x1080", "image_url": URL, "model": I2V}, "409920", id="named-i2v"
        ),
    ],
)
def test_a_size_beyond_the_stable_range_is_refused_naming_model_and_range(
    fields: Mapping[str, Any], limit: str
) -> None:
    with pytest.raises(Unsupported) as refusal:
        make(fields)
    assert refusal.value.field == "/input/size"
    assert (I2V if "image_url" in fields else T2V) in refusal.value.message
    assert f"up to {limit} pixels" in refusal.value.message


def test_a_size_beyond_the_named_models_range_names_the_models_that_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    large = replace(MODELS[T2V], id="large", max_pixels=1920 * 1080)
    monkeypatch.setattr(model_choice, "MODELS", {**MODELS, "large": large})
    with pytest.raises(Unsupported, match=r"models that can: .*wan2\.2-t2v-a14b, large"):
        make(model=T2V, size="1920x1080")
    here = BOTH | {"large": BOTH[T2V]}
    assert make(installed=here, size="1920x1080", num_frames=5).model.id == "large"


def test_the_largest_stable_size_itself_is_made() -> None:
    assert make(size="1280x720", num_frames=5).generated_size == (1280, 720)
    assert make(size="854x480", image_url=URL).generated_size == (864, 480)


# --- Sizes ---


@pytest.mark.parametrize(
    ("size", "generated"),
    [
        ("832x480", (832, 480)),
        ("854x480", (864, 480)),
        ("480x854", (480, 864)),
        ("834x482", (848, 496)),
        ("16x16", (16, 16)),
        ("18x16", (32, 16)),
        ("1280x720", (1280, 720)),
        ("1278x718", (1280, 720)),
    ],
)
def test_a_size_off_the_grid_is_made_on_the_next_larger_one_and_says_so(
    size: str, generated: tuple[int, int]
) -> None:
    made = make(size=size)
    assert made.size == tuple(int(side) for side in size.split("x"))
    assert made.generated_size == generated
    said = reasons_about(made, "cropped")
    assert bool(said) == (made.size != generated)
    assert all(f"{generated[0]}x{generated[1]}" in reason for reason in said)


@pytest.mark.parametrize(
    ("orientation", "size"),
    [(None, (832, 480)), ("landscape", (832, 480)), ("portrait", (480, 832))],
)
def test_a_request_without_a_size_takes_the_models_own_turned_as_asked(
    orientation: str | None, size: tuple[int, int]
) -> None:
    made = make({"orientation": orientation} if orientation else {})
    assert made.size == size
    assert reasons_about(made, f"size: {size[0]}x{size[1]}, native")


def test_an_explicit_size_is_kept_beside_an_image() -> None:
    made = make(image_url=URL, size="640x384")
    assert made.size == (640, 384)
    assert fit_to_image(made, (100, 900)) == made


# --- The image's shape ---


@pytest.mark.parametrize(
    ("image", "size"),
    [
        pytest.param((832, 480), (832, 480), id="native-landscape"),
        pytest.param((480, 832), (480, 832), id="native-portrait"),
        pytest.param((1664, 960), (832, 480), id="twice-native"),
        pytest.param((416, 240), (832, 480), id="half-native"),
        pytest.param((1920, 1080), (832, 464), id="full-hd"),
        pytest.param((1080, 1920), (464, 832), id="full-hd-portrait"),
        pytest.param((1000, 1000), (624, 624), id="square"),
        pytest.param((4000, 3000), (720, 544), id="four-to-three"),
    ],
)
def test_the_images_shape_is_floored_to_the_grid(
    image: tuple[int, int], size: tuple[int, int]
) -> None:
    made = make(image_url=URL)
    assert made.size is None
    assert fit_to_image(made, image).size == size


@pytest.mark.parametrize("width", range(160, 1300, 112))
@pytest.mark.parametrize("height", range(160, 1300, 112))
def test_an_image_whose_shape_is_exactly_on_the_grid_loses_nothing(width: int, height: int) -> None:
    made = replace(make(image_url=URL), pixel_budget=width * height)
    assert fit_to_image(made, (width, height)).size == (width, height)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(width=st.integers(64, 8000), height=st.integers(64, 8000))
def test_the_images_aspect_is_kept_to_within_a_grid_step(width: int, height: int) -> None:
    if not 1 / 4 <= width / height <= 4:
        return
    made = fit_to_image(make(image_url=URL), (width, height))
    assert made.size is not None
    assert made.size == made.generated_size
    wide, high = made.size
    grid, budget = made.model.grid, made.pixel_budget
    assert wide * high <= budget
    assert 0 <= math.sqrt(budget * width / height) - wide < grid + 1e-6
    assert 0 <= math.sqrt(budget * height / width) - high < grid + 1e-6


@pytest.mark.parametrize("image", [(8000, 1), (1, 8000)])
def test_even_an_absurd_shape_stays_on_the_grid_and_is_never_empty(image: tuple[int, int]) -> None:
    size = fit_to_image(make(image_url=URL), image).size
    assert size is not None
    assert all(side >= 16 and side % 16 == 0 for side in size)


@pytest.mark.parametrize(
    ("fields", "budget", "notice"),
    [
        pytest.param({}, 832 * 480, [], id="no-preset"),
        pytest.param({"job_type": "video_fast"}, 832 * 480, [], id="preset-at-the-budget"),
        pytest.param(
            {"job_type": "video_fast", "profile": "aggressive"},
            640 * 384,
            ["SMALL_SIZE"],
            id="preset-below",
        ),
        pytest.param({"job_type": "video_high"}, 832 * 480, ["SIZE_REDUCED"], id="preset-above"),
    ],
)
def test_an_image_takes_the_smaller_of_the_presets_and_the_models_budget(
    fields: Mapping[str, Any], budget: int, notice: list[str]
) -> None:
    made = make(fields, image_url=URL)
    assert (made.size, made.pixel_budget) == (None, budget)
    assert [code for code in codes(made) if code != "BEYOND_NATIVE_LENGTH"] == notice
    assert reasons_about(made, f"{budget} pixels")


def test_a_plan_without_its_image_knows_no_generated_size() -> None:
    with pytest.raises(ValueError, match="before the image"):
        _ = make(image_url=URL).generated_size


def test_the_reasons_for_cropping_and_trimming_come_once_the_size_is_known() -> None:
    made = make(image_url=URL, num_frames=64)
    assert not reasons_about(made, "trimmed")
    assert len(reasons_about(fit_to_image(made, (832, 480)), "trimmed")) == 1
    assert len(reasons_about(make(num_frames=64), "trimmed")) == 1


# --- Lengths ---


@pytest.mark.parametrize(
    ("asked", "generated"),
    [(1, 1), (2, 5), (5, 5), (6, 9), (33, 33), (48, 49), (64, 65), (81, 81), (83, 85), (161, 161)],
)
def test_a_length_off_the_grid_is_made_longer_and_trimmed_and_says_so(
    asked: int, generated: int
) -> None:
    made = make(num_frames=asked)
    assert (made.num_frames, made.generated_frames) == (asked, generated)
    said = reasons_about(made, "trimmed")
    assert bool(said) == (asked != generated)
    assert all(f"generated {generated} frames" in reason for reason in said)


@pytest.mark.parametrize(
    ("fields", "frames"),
    [
        pytest.param({"duration": 2}, 32, id="whole-seconds"),
        pytest.param({"duration": 2, "fps": 24}, 48, id="own-fps"),
        pytest.param({"duration": 0.01}, 1, id="never-none"),
        pytest.param({"duration": 2.52}, 40, id="rounded"),
        pytest.param({"duration": 10.0625}, 161, id="longest"),
        pytest.param({"duration": 2, "job_type": "video_fast"}, 32, id="over-the-preset"),
        pytest.param({}, 81, id="native"),
        pytest.param({"mode": "image"}, 1, id="image"),
    ],
)
def test_a_duration_becomes_frames(fields: Mapping[str, Any], frames: int) -> None:
    assert make(fields).num_frames == frames


@pytest.mark.parametrize(
    "fields", [{"duration": 10.1}, {"duration": 30}, {"duration": 3, "fps": 60}]
)
def test_a_duration_beyond_the_models_longest_is_refused_in_seconds_and_frames(
    fields: Mapping[str, Any],
) -> None:
    with pytest.raises(InvalidRequest, match="161 frames") as refusal:
        make(fields)
    assert refusal.value.field == "/input/duration"
    assert f"{161 / fields.get('fps', 16):.1f} s" in refusal.value.message


# --- Numbers that are left open ---


OPEN = ("num_inference_steps", "guidance_scale", "solver", "flow_shift", "num_frames", "fps")


def test_what_is_left_open_takes_the_models_own_defaults_with_reasons() -> None:
    made = make()
    assert (made.num_frames, made.fps, made.num_inference_steps) == (81, 16, 50)
    assert (made.guidance_scale, made.solver, made.flow_shift) == (5.0, "unipc", 3.0)
    for name in OPEN:
        assert len(reasons_about(made, f"{name}: ")) == 1, name


def test_what_is_given_needs_no_reason() -> None:
    made = make(
        num_inference_steps=3, guidance_scale=2, solver="euler", flow_shift=7, num_frames=5, fps=8
    )
    assert (made.num_inference_steps, made.guidance_scale) == (3, 2.0)
    assert (made.solver, made.flow_shift) == ("euler", 7.0)
    for name in OPEN:
        assert not reasons_about(made, f"{name}: "), name


@pytest.mark.parametrize(
    ("size", "shift"),
    [("832x480", 3.0), ("854x480", 3.0), ("480x832", 3.0), ("864x480", 5.0), ("1280x720", 5.0)],
)
def test_the_shift_follows_the_area(size: str, shift: float) -> None:
    assert make(size=size).flow_shift == shift


@pytest.mark.parametrize(
    ("fields", "expected"),
    [({}, NEGATIVE_PROMPT), ({"negative_prompt": ""}, ""), ({"negative_prompt": "fog"}, "fog")],
    ids=["left-out", "turned-off", "given"],
)
def test_the_negative_prompt_is_wans_own_unless_said_otherwise(
    fields: Mapping[str, Any], expected: str
) -> None:
    assert make(fields).negative_prompt == expected


# --- The six presets ---

GOLDEN = [
    ("image_fast", None, (832, 480), 1, 1, 16, 8, 6.0, "unipc", 5.0, []),
    ("image_high", None, (1280, 720), 1, 1, 16, 20, 7.5, "unipc", 5.0, []),
    ("video_fast", "balanced", (832, 480), 64, 65, 16, 18, 6.5, "euler", 3.0, []),
    ("video_fast", "aggressive", (640, 384), 48, 49, 16, 15, 6.0, "euler", 2.5, ["SMALL_SIZE"]),
    (
        "video_fast",
        "quality",
        (832, 480),
        83,
        85,
        16,
        20,
        6.5,
        "dpm++",
        4.0,
        [],
    ),
    ("video_high", None, (1280, 720), 33, 33, 16, 25, 7.5, "unipc", 5.0, []),
]


@pytest.mark.parametrize("row", GOLDEN, ids=["-".join(filter(None, row[:2])) for row in GOLDEN])
def test_each_preset_makes_exactly_this_plan(row: tuple[Any, ...]) -> None:
    job_type, profile, *expected = row
    made = make({"job_type": job_type} | ({"profile": profile} if profile else {}))
    assert made.model.id == T2V
    assert [
        made.size,
        made.num_frames,
        made.generated_frames,
        made.fps,
        made.num_inference_steps,
        made.guidance_scale,
        made.solver,
        made.flow_shift,
        codes(made),
    ] == expected
    assert made.generated_size == made.size
    assert made.mode == job_type.split("_")[0]
    assert made.output_format == {"image": "png", "video": "mp4"}[made.mode]


# --- Placement ---


@pytest.mark.parametrize(
    ("model", "gib", "placement"),
    [
        pytest.param(T2V, 140, "resident", id="small-model-large-gpu"),
        pytest.param(T2V, 24, "resident", id="small-model-24-gb"),
        pytest.param(T2V, 16, "sequential", id="small-model-16-gb"),
        pytest.param(I2V, 140, "resident", id="large-model-large-gpu"),
        pytest.param(I2V, 48, "sequential", id="large-model-48-gb"),
        pytest.param(I2V, 24, "group", id="large-model-24-gb"),
    ],
)
def test_weights_stay_on_the_gpu_where_they_fit_and_take_turns_where_not(
    model: str, gib: float, placement: str
) -> None:
    fields = {"image_url": URL} if model == I2V else {}
    made = make(fields, hardware=gpu(gib))
    assert (made.device, made.placement) == ("cuda", placement)
    (reason,) = reasons_about(made, "device: ")
    assert f"GPU {gib:g}" in reason
    assert ("take turns" in reason) == (placement == "sequential")
    assert ("block by block" in reason) == (placement == "group")
    assert made.public()["peak_gb"] <= gib * 1.0738


def test_a_gpu_that_no_layout_fits_is_refused_with_what_it_takes() -> None:
    with pytest.raises(Unsupported, match="needs at least") as refusal:
        make(hardware=gpu(4))
    assert "GPU 4" in refusal.value.message


def test_a_larger_job_takes_another_layout() -> None:
    assert make(size="832x480", hardware=gpu(20)).placement == "resident"
    assert make(size="1280x720", hardware=gpu(16)).placement != "resident"


def test_the_requests_precision_wins_over_the_operators() -> None:
    asked = parse.request({"input": {"mode": "video", "prompt": "x"}}, CONTRACT)
    auto = plan.make(asked, Deployment(gpu(80), BOTH, weight_type="fp8"))
    assert auto.layout.weight_type == "fp8"
    assert "WEIGHTS_QUANTIZED" in codes(auto)
    named = plan.make(
        replace(asked, precision="bf16"), Deployment(gpu(80), BOTH, weight_type="fp8")
    )
    assert named.layout.weight_type == "bf16"
    assert codes(named) == []


@pytest.mark.parametrize("asked", ["auto", "bf16", None])
def test_the_models_own_weights_are_taken_unless_others_are_asked_for(asked: str | None) -> None:
    made = make({} if asked is None else {"precision": asked}, hardware=gpu(80))
    assert made.layout.weight_type == "bf16"


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_narrow_weights_come_with_their_reason_and_a_warning(kind: str) -> None:
    made = make(precision=kind, hardware=gpu(80))
    assert made.layout.weight_type == made.public()["precision"] == kind
    assert f"precision: {kind}, as asked" in made.reasons
    assert codes(made) == ["WEIGHTS_QUANTIZED"]
    assert kind in made.notices[0].message
    asked = parse.request({"input": {"mode": "video", "prompt": "x"}}, CONTRACT)
    set_for_all = plan.make(asked, Deployment(gpu(80), BOTH, weight_type=made.layout.weight_type))
    assert f"precision: {kind}, as WEIGHT_TYPE sets it for this worker" in set_for_all.reasons


def test_the_weights_that_a_plan_speaks_of_are_those_that_are_taken() -> None:
    def stay(made: plan.Plan) -> float:
        (line,) = (r for r in made.reasons if r.startswith("device: "))
        return float(line.split("all ")[1].split(" GB")[0])

    wide, narrow = make(hardware=gpu(80)), make(precision="int8", hardware=gpu(80))
    assert stay(wide) > stay(narrow) + 1


def test_the_operators_placement_is_taken() -> None:
    asked = parse.request({"input": {"mode": "video", "prompt": "x"}}, CONTRACT)
    assert plan.make(asked, Deployment(gpu(80), BOTH, placement="group")).placement == "group"


def test_a_batch_is_as_large_as_its_activations_allow() -> None:
    fields = {"num_outputs": 4, "size": "832x480", "num_frames": 9}
    assert make(fields, hardware=gpu(80)).batch_size == 4
    tight = memory.estimate(
        MODELS[T2V], BOTH[T2V].component_bytes, JobSize(832 * 480, 9, False), Layout("resident")
    )
    bytes_of_two = dict(
        memory.estimate(
            MODELS[T2V],
            BOTH[T2V].component_bytes,
            JobSize(832 * 480, 9, False, 2),
            Layout("resident"),
        ).stages
    )
    assert dict(tight.stages)["denoise"] < bytes_of_two["denoise"]


def test_a_cpu_is_said_to_be_one_and_why() -> None:
    made = make(hardware=CPU)
    assert (made.device, made.placement) == ("cpu", "resident")
    assert reasons_about(made, "no NVIDIA driver")


# --- Limits and notices ---


def test_too_much_work_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(InvalidRequest, match="pixel-steps") as refusal:
        make(size="1280x720", num_frames=161, num_inference_steps=51)
    assert refusal.value.field == "/input/num_inference_steps"


def test_the_work_limit_itself_is_allowed_and_counts_the_frames_generated() -> None:
    made = make(size="1280x720", num_frames=161, num_inference_steps=50)
    assert 1280 * 720 * made.generated_frames * 50 == MAX_WORK
    with pytest.raises(InvalidRequest, match="pixel-steps"):
        make(size="1280x720", num_frames=94, num_inference_steps=83)  # 97 frames are generated


# --- Several outputs ---


def test_the_work_limit_counts_every_output() -> None:
    work: dict[str, Any] = {"size": "1280x720", "num_frames": 161, "num_inference_steps": 25}
    assert len(make(work, num_outputs=2).outputs) == 2
    with pytest.raises(InvalidRequest, match="outputs"):
        make(work, num_outputs=3)


@pytest.mark.parametrize(
    ("fields", "together"),
    [
        # 1560 tokens to a latent frame of 832x480, and 32760 to a call.
        pytest.param({"mode": "image", "num_outputs": 4}, 4, id="four-stills"),
        pytest.param({"num_frames": 81, "num_outputs": 4}, 1, id="long-clips-go-in-turn"),
        pytest.param({"num_frames": 37, "num_outputs": 2}, 2, id="two-short-clips"),
        pytest.param({"num_frames": 41, "num_outputs": 2}, 1, id="two-just-too-long"),
        pytest.param({"num_frames": 25, "num_outputs": 4}, 2, id="even-batches"),
        pytest.param({"num_frames": 25, "prompt": ["a", "b", "c"]}, 3, id="a-list-of-prompts"),
        pytest.param({"num_frames": 5}, 1, id="a-single-output"),
        pytest.param({"num_frames": 37, "num_outputs": 2, "image_url": URL}, 2, id="an-image"),
    ],
)
def test_outputs_are_denoised_together_while_that_is_less_than_one_long_clip(
    fields: Mapping[str, Any], together: int
) -> None:
    made = make(fields, size="832x480", hardware=gpu(80))
    assert made.batch_size == together
    reasons = reasons_about(made, "batch_size")
    assert len(reasons) == (len(made.outputs) > 1)
    assert all(reason.startswith(f"batch_size: {together}") for reason in reasons)


def test_a_cpu_makes_several_outputs_in_turn_and_says_why() -> None:
    made = make(mode="image", num_outputs=4)
    assert made.batch_size == 1
    assert reasons_about(made, "batch_size") == ["batch_size: 1, a CPU gains nothing from more"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param({"num_frames": 81}, [], id="native-length"),
        pytest.param({"num_frames": 85}, [], id="one-latent-frame-longer"),
        pytest.param({"num_frames": 86}, ["BEYOND_NATIVE_LENGTH"], id="longer-than-native"),
        pytest.param({"size": "640x384"}, ["SMALL_SIZE"], id="small"),
        pytest.param({"size": "832x448"}, [], id="barely-smaller"),
        pytest.param(
            {"size": "640x384", "num_frames": 97, "metadata": {"other": 1}},
            ["ENVELOPE_FIELDS_IGNORED", "SMALL_SIZE", "BEYOND_NATIVE_LENGTH"],
            id="all-in-order-after-the-requests",
        ),
    ],
)
def test_notices_say_what_the_user_would_mind(
    fields: Mapping[str, Any], expected: list[str]
) -> None:
    assert codes(make(fields)) == expected


def test_the_tiny_set_is_flagged_and_its_sizes_are_not_complained_about() -> None:
    made = make(installed=store(T2V, tiny=True), size="64x48")
    assert made.tiny
    assert made.notices == ()
    assert not make().tiny


# --- What is made public ---


def test_the_public_part_has_exactly_the_promised_keys_and_no_prompt() -> None:
    schema = json.loads((contract.SCHEMAS_DIR / "response.schema.json").read_text("utf-8"))
    promised = schema["properties"]["metadata"]["properties"]["plan"]
    public = make(prompt="secret words").public()
    assert set(public) == set(promised["properties"]) == set(promised["required"])
    assert "secret words" not in json.dumps(public)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(
    width=st.integers(8, 960),
    height=st.integers(8, 960),
    frames=st.integers(1, 161),
    steps=st.integers(1, 100),
    image=st.booleans(),
    gib=st.sampled_from([None, 12, 20, 24, 48, 80]),
    tiny=st.booleans(),
)
def test_any_plan_is_on_the_grid_covers_what_was_asked_and_is_strict_json(
    width: int, height: int, frames: int, steps: int, image: bool, gib: float | None, tiny: bool
) -> None:
    size = (2 * max(8, width), 2 * max(8, height))
    fields: dict[str, Any] = {
        "width": size[0],
        "height": size[1],
        "num_frames": frames,
        "num_inference_steps": steps,
    }
    if image:
        fields["image_url"] = URL
    try:
        made = make(
            fields,
            installed=store(T2V, I2V, tiny=tiny),
            hardware=CPU if gib is None else gpu(gib),
        )
    except (InvalidRequest, Unsupported):
        return
    assert (made.size, made.num_frames) == (size, frames)
    assert all(
        0 <= made_side - side < 16 and made_side % 16 == 0
        for made_side, side in zip(made.generated_size, size, strict=True)
    )
    assert 0 <= made.generated_frames - frames < 4
    assert made.generated_frames % 4 == 1
    json.dumps(made.public(), allow_nan=False)
