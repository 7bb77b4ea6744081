"""Promises of parse: what is taken, what is refused, under which name, and never a value."""

import json
import math
import sys
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wan_worker.errors import ConfigInvalid, InvalidRequest
from wan_worker.request import parse as request
from wan_worker.request import schema as contract
from wan_worker.request.outputs import Output
from wan_worker.request.parse import Notice, Request
from wan_worker.request.schema import SCHEMAS_DIR

CONTRACT = contract.load()
SCHEMA = json.loads((SCHEMAS_DIR / "request.schema.json").read_text("utf-8"))
CANARY = "canary-5e1d"
URL = "https://example.com/cat.png"
S3 = {
    "accessId": "AKIAEXAMPLE",
    "accessSecret": CANARY,
    "bucketName": "their-videos",
    "endpointUrl": "https://s3.example.com/",
}
LARGEST_SEED = 2**63 - 1


def parse(**fields: Any) -> Request:
    """A request for a video of a cat, changed; None takes a field away."""
    merged = {"mode": "video", "prompt": "a cat", **fields}
    return parse_input({name: value for name, value in merged.items() if value is not None})


def parse_input(given: Any, **top: Any) -> Request:
    return request.request({"id": "job-1", "input": given, **top}, CONTRACT)


def refused(given: Any, **top: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refusal:
        parse_input(given, **top)
    return refusal.value


def refused_video(**fields: Any) -> InvalidRequest:
    return refused({"mode": "video", "prompt": "a cat", **fields})


# --- The envelope of the job ---


@pytest.mark.parametrize(
    "given",
    [None, [], [{"prompt": "x"}], "prompt", 3, True],
    ids=["null", "empty-list", "list", "string", "number", "boolean"],
)
def test_an_input_that_is_no_object_is_refused_with_its_pointer(given: Any) -> None:
    error = refused(given)
    assert error.field == "/input"
    assert "JSON object" in error.message


def test_a_job_without_input_is_refused_with_its_pointer() -> None:
    with pytest.raises(InvalidRequest) as refusal:
        request.request({"id": "job-1"}, CONTRACT)
    assert refusal.value.field == "/input"


def test_an_empty_input_says_that_a_mode_is_needed() -> None:
    error = refused({})
    assert error.field == "/input/mode"
    assert "job_type" in error.message


def test_a_job_without_an_id_is_called_local() -> None:
    given = {"mode": "video", "prompt": "a cat"}
    assert request.request({"input": given}, CONTRACT).job_id == "local"
    assert parse().job_id == "job-1"


def test_a_request_is_only_what_was_asked_for_and_leaves_the_rest_to_the_plan() -> None:
    asked = parse(seed=7)
    assert asked == Request(
        job_id="job-1", mode="video", model="auto", outputs=(Output("a cat", 7),)
    )


# --- Field names ---


@pytest.mark.parametrize(
    ("typo", "near"),
    [
        ("promt", "prompt"),
        ("num_frame", "num_frames"),
        ("negativ_prompt", "negative_prompt"),
        ("image_ur", "image_url"),
        ("sample_step", "sample_steps"),
        ("widht", "width"),
        ("jobtype", "job_type"),
    ],
)
def test_unknown_field_names_the_nearest_known_one(typo: str, near: str) -> None:
    error = refused_video(**{typo: 1})
    assert error.field == f"/input/{typo}"
    assert f"did you mean {near}?" in error.message


def test_unknown_field_with_nothing_near_points_to_the_documentation() -> None:
    error = refused_video(zzzzqqqq=1)
    assert error.field == "/input/zzzzqqqq"
    assert "docs/requests.md" in error.message


def test_a_field_name_with_slash_and_tilde_is_escaped_in_the_pointer() -> None:
    assert refused_video(**{"a/b~c": 1}).field == "/input/a~1b~0c"


def test_several_problems_are_listed_and_the_rest_counted() -> None:
    error = refused_video(**{f"zzqq{i}": 1 for i in range(8)})
    assert error.message.count("Unknown field") == contract.MAX_PROBLEMS
    assert error.message.endswith("; and 3 more")


ALIASES = {
    "image": ("image_url", URL),
    "guidance": ("guidance_scale", 4.5),
    "steps": ("num_inference_steps", 12),
    "resolution": ("size", "640x384"),
    "model_type": ("model", "wan2.1-t2v-1.3b"),
    "frame_num": ("num_frames", 21),
    "sample_steps": ("num_inference_steps", 12),
    "sample_guide_scale": ("guidance_scale", 4.5),
    "sample_solver": ("solver", "dpm++"),
    "sample_shift": ("flow_shift", 2.0),
}


def test_the_schemas_aliases_are_exactly_the_promised_ones() -> None:
    assert CONTRACT.aliases == {alias: field for alias, (field, _) in ALIASES.items()}


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_means_its_canonical_field(alias: str) -> None:
    field, value = ALIASES[alias]
    by_alias, by_field = parse(seed=1, **{alias: value}), parse(seed=1, **{field: value})
    assert by_field != parse(seed=1)  # the value shows at all
    if alias == "image":
        assert by_alias.pointer("image_url") == "/input/image"
        assert by_alias.image == by_field.image == URL
    else:
        assert by_alias == by_field


@pytest.mark.parametrize("order", ["alias-first", "field-first"])
@pytest.mark.parametrize("alias", ALIASES)
def test_a_field_beside_its_alias_is_refused_naming_both(alias: str, order: str) -> None:
    field, value = ALIASES[alias]
    names = (alias, field) if order == "alias-first" else (field, alias)
    error = refused_video(**dict.fromkeys(names, value))
    assert f"{names[0]} and {names[1]}" in error.message
    assert error.field == f"/input/{names[1]}"


def test_two_aliases_of_one_field_are_refused_naming_both() -> None:
    assert "steps and sample_steps" in refused_video(steps=3, sample_steps=3).message


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_is_held_to_the_rule_of_its_field(alias: str) -> None:
    assert refused_video(**{alias: []}).field == f"/input/{alias}"


# --- Single values ---

WRONG_VALUES = [
    pytest.param("seed", True, "integer", id="boolean-is-no-integer"),
    pytest.param("num_frames", False, "integer", id="false-is-no-integer"),
    pytest.param("guidance_scale", True, "number", id="boolean-is-no-number"),
    pytest.param("num_frames", "81", "integer", id="text-is-no-integer"),
    pytest.param("num_frames", 17.5, "integer", id="half-a-frame"),
    pytest.param("num_frames", None, "integer", id="null-is-not-left-out"),
    pytest.param("reference_fallback", 1, "boolean", id="one-is-not-true"),
    pytest.param("prompt", [], "at least", id="empty-list-of-prompts"),
    pytest.param("prompt", list("abcde"), "at most", id="five-prompts"),
    pytest.param("num_outputs", 0, "at least", id="no-output"),
    pytest.param("num_outputs", 5, "at most", id="five-outputs"),
    pytest.param("num_outputs", True, "integer", id="boolean-is-no-count"),
    pytest.param("seed", LARGEST_SEED + 1, "at most", id="seed-beyond-int64"),
    pytest.param("seed", 1e300, "at most", id="seed-as-huge-float"),
    pytest.param("seed", 10**400, "at most", id="seed-of-400-digits"),
    pytest.param("seed", -2, "at least", id="seed-below-minus-one"),
    pytest.param("prompt", "", "at least 1", id="prompt-empty"),
    pytest.param("prompt", "x" * 8001, "at most 8000", id="prompt-oversized"),
    pytest.param("prompt", " \n\t\u3000", "blank", id="prompt-blank"),
    pytest.param("prompt", "\u200b\u2060\ufeff", "blank", id="prompt-of-no-width"),
    pytest.param("negative_prompt", "x" * 8001, "at most 8000", id="negative-prompt-oversized"),
    pytest.param("image_url", "", "at least 1", id="image-empty"),
    pytest.param("num_frames", 0, "at least 1", id="no-frames"),
    pytest.param("num_frames", -81, "at least 1", id="negative-frames"),
    pytest.param("num_frames", 962, "at most 961", id="frames-over-the-limit"),
    pytest.param("duration", 0, "more than 0", id="duration-zero"),
    pytest.param("duration", -1.5, "more than 0", id="duration-negative"),
    pytest.param("duration", 121, "at most 120", id="duration-over-the-limit"),
    pytest.param("duration", 10**4000, "at most 120", id="duration-of-4000-digits"),
    pytest.param("fps", 0, "at least 1", id="fps-zero"),
    pytest.param("fps", 61, "at most 60", id="fps-over-the-limit"),
    pytest.param("upscale", 3, "one of: 2, 4", id="upscale-by-three"),
    pytest.param("upscale", 1, "one of: 2, 4", id="upscale-by-one"),
    pytest.param("upscale", True, "one of: 2, 4", id="upscale-true"),
    pytest.param("upscale", "2", "one of: 2, 4", id="upscale-as-text"),
    pytest.param("num_inference_steps", 0, "at least 1", id="no-steps"),
    pytest.param("num_inference_steps", 101, "at most 100", id="steps-over-the-limit"),
    pytest.param("guidance_scale", 0.5, "at least 1", id="guidance-below-one"),
    pytest.param("guidance_scale", 20.1, "at most 20", id="guidance-over-the-limit"),
    pytest.param("flow_shift", 0, "at least 0.01", id="shift-zero"),
    pytest.param("flow_shift", 1e-17, "at least 0.01", id="shift-that-divides-by-zero"),
    pytest.param("flow_shift", 21, "at most 20", id="shift-over-the-limit"),
    pytest.param("size", "0x0", "832x480", id="size-zero"),
    pytest.param("size", "-832x480", "832x480", id="size-negative"),
    pytest.param("size", "99999x99999", "832x480", id="size-absurd"),
    pytest.param("size", "1936x480", "16 to 1920", id="size-over-1920"),
    pytest.param("size", "832x14", "16 to 1920", id="size-under-16"),
    pytest.param("size", "9999x9999", "16 to 1920", id="size-of-four-nines"),
    pytest.param("size", "832x480\n", "832x480", id="size-with-trailing-newline"),
    pytest.param("size", "832*480\n", "832x480", id="star-size-with-trailing-newline"),
    pytest.param("size", " 832x480", "832x480", id="size-with-leading-blank"),
    pytest.param("size", "832X480", "832x480", id="size-with-capital-x"),
    pytest.param("size", "832×480", "832x480", id="size-with-multiplication-sign"),
    pytest.param("size", "８３２x４８０", "832x480", id="size-in-full-width-digits"),
    pytest.param("size", "832x480x3", "832x480", id="size-of-three-numbers"),
    pytest.param("size", "832x481", "even", id="video-with-odd-height"),
    pytest.param("size", [832, 480], "string", id="size-as-list"),
]


@pytest.mark.parametrize(("field", "value", "rule"), WRONG_VALUES)
def test_a_wrong_value_is_refused_naming_field_and_rule(field: str, value: Any, rule: str) -> None:
    error = refused_video(**{field: value})
    assert error.field == f"/input/{field}"
    assert rule in error.message


@pytest.mark.parametrize(
    ("width", "height"),
    [(15, 480), (832, 15), (0, 480), (-832, 480), (1921, 480), (832, 10**9), (833, 480)],
)
def test_a_side_that_is_zero_negative_absurd_or_odd_is_refused(width: int, height: int) -> None:
    error = refused_video(width=width, height=height)
    assert error.field in ("/input/width", "/input/height")


@pytest.mark.parametrize(
    ("field", "choices"),
    [
        ("mode", ["image", "video"]),
        ("job_type", ["image_fast", "image_high", "video_fast", "video_high"]),
        ("profile", ["balanced", "aggressive", "quality"]),
        ("model", ["auto", "wan2.1-t2v-1.3b", "wan2.1-i2v-14b-480p"]),
        ("solver", ["unipc", "euler", "dpm++"]),
        ("orientation", ["landscape", "portrait"]),
        ("output_format", ["mp4", "png"]),
        ("response_format", ["url", "base64"]),
    ],
)
@pytest.mark.parametrize("value", ["nope", "", 3, None, ["video"], "video_fast\n", "AUTO"])
def test_an_unknown_choice_is_refused_with_the_choices(
    field: str, choices: list[str], value: Any
) -> None:
    error = refused_video(**{field: value})
    assert error.field == f"/input/{field}"
    assert all(choice in error.message for choice in choices)


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, json.loads("1e999"), json.loads("NaN")]
)
@pytest.mark.parametrize("field", ["guidance_scale", "seed", "duration", "unknown"])
def test_a_number_that_is_not_finite_is_refused_before_the_schema(field: str, value: float) -> None:
    error = refused_video(**{field: value})
    assert error.message == "Must be a finite number"
    assert error.field == f"/input/{field}"


def test_a_number_that_is_not_finite_is_found_however_deep_it_hides() -> None:
    error = refused_video(config={"a": [1, {"b": math.nan}]})
    assert error.field == "/input/config/a/1/b"


@pytest.mark.parametrize(
    "text",
    ["a\x00b", "a\x1bb", "a\x7fb", "a\x85b", "a\x9fb", "\ud800", "\udfff cat", "\ud83d"],
    ids=["nul", "escape", "delete", "next-line", "c1", "high-surrogate", "low-surrogate", "half"],
)
@pytest.mark.parametrize("field", ["prompt", "negative_prompt", "image_url", "callback_url"])
def test_text_that_breaks_what_comes_after_is_refused(field: str, text: str) -> None:
    error = refused_video(**{field: text})
    assert error.field == f"/input/{field}"
    assert "control characters" in error.message


@pytest.mark.parametrize("name", ["a\x00b", "\ud800"], ids=["nul", "surrogate"])
def test_a_field_name_that_is_no_plain_text_is_refused(name: str) -> None:
    assert refused_video(**{name: 1}).field == "/input"
    assert refused_video(config={name: 1}).field == "/input/config"


def test_a_prompt_may_hold_newlines_tabs_emoji_and_chinese() -> None:
    text = "一只猫\n\t🐈\r\n(((masterpiece)))"
    assert parse(prompt=text).prompt == text


def test_an_integer_may_be_written_with_a_zero_fraction() -> None:
    asked = parse(num_frames=17.0, fps=16.0, num_inference_steps=4.0, seed=9.0, size=None)
    numbers = (asked.num_frames, asked.fps, asked.num_inference_steps, asked.outputs[0].seed)
    assert numbers == (17, 16, 4, 9)
    assert all(type(number) is int for number in numbers)
    sides = parse(width=832.0, height=480.0).size
    assert sides == (832, 480)
    assert sides is not None
    assert all(type(side) is int for side in sides)


# --- Nesting and floods ---


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("depth", [9, 1_000, 200_000])
def test_deep_nesting_is_refused_without_a_recursion_error(depth: int) -> None:
    error = refused_video(config={"a": nested(depth)})
    assert error.field == "/input"
    assert "nested deeper" in error.message


def test_more_values_than_any_request_needs_are_refused() -> None:
    assert "2000 values" in refused_video(config={"a": [0] * 2_001}).message


def test_a_flood_of_values_is_refused_without_being_copied() -> None:
    flood = {"mode": "video", "prompt": "a cat", "config": {"a": [0] * 300_000}}
    tracemalloc.start()
    try:
        refused(flood)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * 1024**2  # the list itself, made before, is not counted


def test_a_huge_field_name_does_not_come_back_in_the_error() -> None:
    name = "n" * 100_000
    for flood in (
        {name: 1},
        {name: "\x00"},
        {"config": {name: "\x00"}},
        {"config": {name: [1e999]}},
    ):
        error = refused(flood)
        assert len(error.field or "") + len(error.message) < 1_000


# --- Rules across fields ---

CONTRADICTIONS = [
    pytest.param({"size": "832x480", "width": 832, "height": 480}, "size", id="size-and-sides"),
    pytest.param({"size": "832x480", "width": 832}, "size", id="size-and-width"),
    pytest.param({"width": 832}, "height", id="width-alone"),
    pytest.param({"height": 480}, "width", id="height-alone"),
    pytest.param({"prompt": ["a", "b"], "num_outputs": 2}, "num_outputs", id="list-and-count"),
    pytest.param({"prompt": ["a", " "]}, "prompt/1", id="list-with-a-blank-prompt"),
    pytest.param({"num_outputs": 2, "seed": LARGEST_SEED}, "seed", id="second-seed-too-large"),
    pytest.param(
        {"prompt": ["a", "b", "c"], "seed": LARGEST_SEED - 1}, "seed", id="third-seed-too-large"
    ),
    pytest.param({"num_frames": 16, "duration": 1}, "duration", id="frames-and-duration"),
    pytest.param(
        {"size": "832x480", "orientation": "portrait"}, "orientation", id="wide-but-portrait"
    ),
    pytest.param(
        {"width": 480, "height": 832, "orientation": "landscape"},
        "orientation",
        id="tall-but-landscape",
    ),
    pytest.param({"profile": "quality"}, "profile", id="profile-without-job-type"),
    pytest.param({"job_type": "video_high", "profile": "quality"}, "profile", id="profile-of-high"),
    pytest.param({"job_type": "image_fast"}, "mode", id="video-mode-with-image-job"),
    pytest.param(
        {"mode": "image", "job_type": "video_fast"}, "mode", id="image-mode-with-video-job"
    ),
    pytest.param({"mode": "image", "num_frames": 2}, "num_frames", id="image-of-two-frames"),
    pytest.param({"mode": "image", "duration": 1}, "duration", id="image-with-duration"),
    pytest.param({"mode": "image", "fps": 16}, "fps", id="image-with-fps"),
    pytest.param(
        {"mode": "image", "last_image_url": URL}, "last_image_url", id="image-with-a-last-frame"
    ),
    pytest.param({"image_url": URL, "strength": 0.5}, "strength", id="strength-of-a-video"),
    pytest.param({"mode": "image", "strength": 0.5}, "strength", id="strength-of-nothing"),
    pytest.param({"mode": "image", "output_format": "mp4"}, "output_format", id="image-as-mp4"),
    pytest.param({"output_format": "png"}, "output_format", id="video-as-png"),
    pytest.param({"output_format": "webp"}, "output_format", id="video-as-webp"),
    pytest.param(
        {"image_url": URL, "config": {"first_frame": URL + "2"}},
        "config/first_frame",
        id="two-start-images",
    ),
    pytest.param(
        {"config": {"first_frame": URL}, "metadata": {"start_reference_url": URL + "2"}},
        "config/first_frame",
        id="two-envelopes-that-differ",
    ),
    pytest.param(
        {"last_image_url": URL, "metadata": {"end_reference_url": URL}},
        "metadata/end_reference_url",
        id="two-last-images",
    ),
]


@pytest.mark.parametrize(("fields", "where"), CONTRADICTIONS)
def test_a_contradiction_is_refused_at_the_field_that_breaks_it(
    fields: Mapping[str, Any], where: str
) -> None:
    assert refused_video(**fields).field == f"/input/{where}"


def test_a_prompt_may_be_left_out_only_beside_an_image() -> None:
    assert refused({"mode": "video"}).field == "/input/prompt"
    assert parse(prompt=None, image_url=URL).prompt == ""
    assert parse(prompt=None, last_image_url=URL).prompt == ""
    assert parse(prompt=None, mode="image", image_url=URL).prompt == ""
    assert refused({"mode": "video", "image_url": URL, "prompt": " "}).field == "/input/prompt"


def test_an_image_job_may_say_that_it_has_one_frame() -> None:
    assert parse(mode="image", num_frames=1).num_frames == 1


def test_an_image_may_have_odd_sides() -> None:
    assert parse(mode="image", size="333x217").size == (333, 217)


@pytest.mark.parametrize("form", ["webm", "gif"])
def test_only_an_mp4_needs_even_sides(form: str) -> None:
    assert parse(mode="video", size="333x217", output_format=form).size == (333, 217)
    assert parse(mode="video", size="333x217", upscale=2).size == (333, 217)  # 666x434 are even


@pytest.mark.parametrize(("form", "highest"), [("gif", 50), ("webm", 60), ("mp4", 60)])
def test_a_gif_is_no_faster_than_browsers_show(form: str, highest: int) -> None:
    assert parse(mode="video", output_format=form, fps=highest).fps == highest
    if highest < 60:
        error = refused_video(output_format=form, fps=highest + 1)
        assert error.field == "/input/fps"
        assert "up to 50" in error.message


@pytest.mark.parametrize(("given", "factor"), [({}, 1), ({"upscale": 2}, 2), ({"upscale": 4.0}, 4)])
def test_upscale_is_two_four_or_none(given: dict[str, Any], factor: int) -> None:
    assert parse(mode="video", **given).upscale == factor


@pytest.mark.parametrize(
    ("mode", "formats"),
    [("video", ("mp4", "webm", "gif")), ("image", ("png", "jpeg", "webp"))],
)
def test_each_mode_has_its_formats_and_the_first_is_the_default(
    mode: str, formats: tuple[str, ...]
) -> None:
    assert parse(mode=mode).output_format == formats[0]
    for name in formats:
        assert parse(mode=mode, output_format=name).output_format == name


@pytest.mark.parametrize("text", ["832x480", "832*480"])
def test_a_size_is_written_with_x_or_star(text: str) -> None:
    asked = parse(size=text)
    assert asked.size == (832, 480)
    assert asked.size_is_explicit


def test_width_and_height_mean_the_same_as_size() -> None:
    assert parse(width=640, height=384, seed=1) == parse(size="640x384", seed=1)


def test_an_orientation_that_agrees_with_the_size_is_welcome() -> None:
    assert parse(size="480x832", orientation="portrait").size == (480, 832)
    assert parse(size="512x512", orientation="portrait").size == (512, 512)
    assert parse(size="832x480", orientation="landscape").size == (832, 480)


# --- Seeds ---


@pytest.mark.parametrize(
    "absent", [None, -1, -1.0], ids=["left-out", "minus-one", "minus-one-float"]
)
def test_a_seed_that_is_left_open_is_drawn_and_safe_in_javascript(absent: float | None) -> None:
    drawn = {parse(seed=absent).outputs[0].seed for _ in range(20)}
    assert len(drawn) > 15
    assert all(0 <= seed < 2**53 for seed in drawn)


@pytest.mark.parametrize("seed", [0, 1, LARGEST_SEED])
def test_a_seed_that_is_given_is_kept_to_the_last_digit(seed: int) -> None:
    assert parse(seed=seed).outputs[0].seed == seed


# --- Presets ---

PRESETS = {
    ("image_fast", None): ((832, 480), None, None, 8, 6.0, "unipc", 5.0),
    ("image_high", None): ((1280, 720), None, None, 20, 7.5, "unipc", 5.0),
    ("video_fast", None): ((832, 480), 64, 16, 18, 6.5, "euler", 3.0),
    ("video_fast", "balanced"): ((832, 480), 64, 16, 18, 6.5, "euler", 3.0),
    ("video_fast", "aggressive"): ((640, 384), 48, 16, 15, 6.0, "euler", 2.5),
    ("video_fast", "quality"): ((832, 480), 83, 16, 20, 6.5, "dpm++", 4.0),
    ("video_high", None): ((1280, 720), 33, 16, 25, 7.5, "unipc", 5.0),
}
PRESET_IDS = ["-".join(filter(None, key)) for key in PRESETS]


def preset_request(key: tuple[str, str | None], **fields: Any) -> Request:
    job_type, profile = key
    return parse(mode=None, job_type=job_type, profile=profile, **fields)


@pytest.mark.parametrize("key", PRESETS, ids=PRESET_IDS)
def test_a_preset_has_the_promised_values(key: tuple[str, str | None]) -> None:
    asked = preset_request(key)
    assert (
        asked.size,
        asked.num_frames,
        asked.fps,
        asked.num_inference_steps,
        asked.guidance_scale,
        asked.solver,
        asked.flow_shift,
    ) == PRESETS[key]
    assert asked.mode == key[0].split("_")[0]
    assert not asked.size_is_explicit
    assert asked.job_type == key[0]


@pytest.mark.parametrize("key", PRESETS, ids=PRESET_IDS)
def test_a_preset_turns_to_portrait_when_asked(key: tuple[str, str | None]) -> None:
    width, height = PRESETS[key][0]
    assert preset_request(key, orientation="portrait").size == (height, width)
    assert preset_request(key, orientation="landscape").size == (width, height)


@pytest.mark.parametrize(
    ("field", "value", "attribute"),
    [
        ("size", "320x192", "size"),
        ("num_inference_steps", 3, "num_inference_steps"),
        ("guidance_scale", 1, "guidance_scale"),
        ("solver", "dpm++", "solver"),
        ("flow_shift", 9.5, "flow_shift"),
        ("num_frames", 5, "num_frames"),
        ("fps", 24, "fps"),
        ("sample_steps", 3, "num_inference_steps"),
        ("resolution", "320*192", "size"),
    ],
)
@pytest.mark.parametrize("job_type", ["image_high", "video_fast", "video_high"])
def test_a_field_wins_over_its_preset_and_leaves_the_others(
    job_type: str, field: str, value: Any, attribute: str
) -> None:
    if job_type == "image_high" and field in ("num_frames", "fps"):
        assert (
            refused({"job_type": job_type, "prompt": "x", field: value}).field == f"/input/{field}"
        )
        return
    plain = parse(mode=None, job_type=job_type, seed=1)
    changed = parse(mode=None, job_type=job_type, seed=1, **{field: value})
    expected = (320, 192) if attribute == "size" else value
    assert getattr(changed, attribute) == expected
    differing = {name for name in vars(plain) if getattr(plain, name) != getattr(changed, name)} - {
        "size_is_explicit",
        "where",
    }
    assert differing == ({attribute} if getattr(plain, attribute) != expected else set())


def test_a_duration_replaces_the_presets_frame_count() -> None:
    asked = parse(mode=None, job_type="video_fast", duration=1.5)
    assert (asked.num_frames, asked.duration, asked.fps) == (None, 1.5, 16)


def test_a_job_type_may_stand_beside_the_mode_that_it_means() -> None:
    assert parse(mode="video", job_type="video_fast", seed=1) == parse(
        mode=None, job_type="video_fast", seed=1
    )


# --- The legacy envelope ---


def codes(asked: Request) -> list[str]:
    return [notice.code for notice in asked.notices]


@pytest.mark.parametrize(
    ("envelope", "pointer"),
    [
        ({"config": {"first_frame": URL}}, "/input/config/first_frame"),
        ({"metadata": {"start_reference_url": URL}}, "/input/metadata/start_reference_url"),
        (
            {"config": {"first_frame": URL}, "metadata": {"start_reference_url": URL}},
            "/input/config/first_frame",
        ),
    ],
    ids=["config", "metadata", "both-alike"],
)
def test_the_envelopes_reference_becomes_the_image_with_the_old_fallback(
    envelope: Mapping[str, Any], pointer: str
) -> None:
    asked = parse(**envelope)
    assert (asked.image, asked.pointer("image_url"), asked.reference_fallback) == (
        URL,
        pointer,
        True,
    )
    assert asked.notices == ()


@pytest.mark.parametrize(
    "envelope",
    [
        {"config": {}},
        {"config": {"first_frame": None}},
        {"config": {"first_frame": ""}},
        {"metadata": {"start_reference_url": None, "end_reference_url": None}},
        {"config": {"first_frame": None}, "metadata": {"end_reference_url": ""}},
    ],
)
def test_an_empty_envelope_changes_nothing(envelope: Mapping[str, Any]) -> None:
    assert parse(seed=1, **envelope) == parse(seed=1)


def test_an_end_reference_becomes_the_last_image_with_the_old_fallback() -> None:
    asked = parse(metadata={"start_reference_url": URL, "end_reference_url": URL + "2"})
    assert (asked.image, asked.last_image) == (URL, URL + "2")
    assert asked.pointer("last_image_url") == "/input/metadata/end_reference_url"
    assert asked.reference_fallback
    assert asked.notices == ()


def test_what_the_request_says_about_fallback_wins_over_the_envelope() -> None:
    asked = parse(metadata={"end_reference_url": URL}, reference_fallback=False)
    assert not asked.reference_fallback


def test_unknown_envelope_fields_are_named_in_a_warning() -> None:
    asked = parse(config={"cfg": 3}, metadata={"user": {"id": 4}, "start_reference_url": URL})
    assert asked.notices == (
        Notice("ENVELOPE_FIELDS_IGNORED", "Not read: config.cfg, metadata.user."),
    )


def test_many_unknown_envelope_fields_make_one_short_warning() -> None:
    asked = parse(metadata={f"key{i}" + "x" * 500: i for i in range(40)})
    assert codes(asked) == ["ENVELOPE_FIELDS_IGNORED"]
    assert "and others" in asked.notices[0].message
    assert len(asked.notices[0].message) < 400


@pytest.mark.parametrize("name", ["config", "metadata"])
@pytest.mark.parametrize("value", [[], "x", 1, True])
def test_an_envelope_that_is_no_object_is_refused(name: str, value: Any) -> None:
    assert refused_video(**{name: value}).field == f"/input/{name}"


def test_an_image_job_makes_its_picture_without_the_envelopes_last_frame_and_says_so() -> None:
    envelope = {"start_reference_url": URL, "end_reference_url": URL}
    asked = parse(mode=None, job_type="image_fast", metadata=envelope)
    assert codes(asked) == ["REFERENCE_IGNORED"]
    assert asked.references == ("image_url",)


def test_an_image_from_an_image_moves_away_by_its_strength() -> None:
    assert parse(mode="image", image_url=URL).strength == 0.7
    assert parse(mode="image", image_url=URL, strength=1).strength == 1.0
    assert parse(mode="image").strength is None
    assert parse(image_url=URL).strength is None


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("t2v-1.3B", "wan2.1-t2v-1.3b"),
        ("T2V-A14B", "wan2.2-t2v-a14b"),
        ("I2V-A14B", "wan2.2-i2v-a14b"),
        ("TI2V-5B", "wan2.2-ti2v-5b"),
        ("i2v-14B", "wan2.1-i2v-14b-480p"),
        ("flf2v-14B", "wan2.1-flf2v-14b-720p"),
        ("wan2.2-t2v-a14b", "wan2.2-t2v-a14b"),
        ("auto", "auto"),
    ],
)
def test_model_type_takes_wans_own_names(name: str, model: str) -> None:
    assert parse(model_type=name).model == model


def test_model_itself_takes_catalog_ids_alone() -> None:
    assert refused_video(model="T2V-A14B").field == "/input/model"


def test_a_reference_is_an_error_by_default_and_a_wish_when_asked() -> None:
    assert parse(image_url=URL).reference_fallback is False
    assert parse(image_url=URL, reference_fallback=True).reference_fallback is True


def test_without_a_picture_the_rest_is_kept_and_the_reason_added() -> None:
    asked = parse(image_url=URL, last_image_url=URL, seed=1, metadata={"other": 1})
    fewer = asked.without(["last_image_url"], Notice("WHY", "because"))
    assert fewer.references == ("image_url",)
    assert [n.code for n in fewer.notices] == ["ENVELOPE_FIELDS_IGNORED", "WHY"]
    assert fewer.outputs == asked.outputs
    assert asked.without(asked.references, Notice("WHY", "because")).references == ()


# --- s3Config ---


def test_a_jobs_own_bucket_is_read() -> None:
    bucket = parse_input({"mode": "video", "prompt": "x"}, s3Config=S3).bucket
    assert bucket is not None
    assert bucket.endpoint_url == "https://s3.example.com"
    assert bucket.name == "their-videos"
    assert bucket.access_key_id.reveal() == "AKIAEXAMPLE"
    assert bucket.secret_access_key.reveal() == CANARY
    assert (bucket.prefix, bucket.public_url) == ("", None)


@pytest.mark.parametrize("absent", [None, {}])
def test_no_bucket_of_its_own_is_no_error(absent: Any) -> None:
    assert parse_input({"mode": "video", "prompt": "x"}, s3Config=absent).bucket is None


@pytest.mark.parametrize("name", sorted(S3))
@pytest.mark.parametrize("value", ["", None, 3, [CANARY], f"{CANARY}\n\x00", "\ud800" + CANARY])
def test_a_broken_bucket_field_is_refused_without_its_value(name: str, value: Any) -> None:
    error = refused({"mode": "video", "prompt": "x"}, s3Config=S3 | {name: value})
    assert error.field == f"/s3Config/{name}"
    assert "canary" not in f"{error.message} {error!r}"


@pytest.mark.parametrize("name", sorted(S3))
def test_a_missing_bucket_field_is_refused_by_name(name: str) -> None:
    partial = {key: value for key, value in S3.items() if key != name}
    error = refused({"mode": "video", "prompt": "x"}, s3Config=partial)
    assert error.field == f"/s3Config/{name}"


@pytest.mark.parametrize("value", [[], [S3], CANARY, 1, True, False, ""])
def test_a_bucket_that_is_no_object_is_refused_without_its_value(value: Any) -> None:
    error = refused({"mode": "video", "prompt": "x"}, s3Config=value)
    assert error.field == "/s3Config"
    assert "canary" not in error.message


@pytest.mark.parametrize("name", [f"{CANARY}/..", "../etc", "ab", "a" * 64, "bucket\n"])
def test_a_bucket_name_that_could_leave_its_place_is_refused(name: str) -> None:
    error = refused({"mode": "video", "prompt": "x"}, s3Config=S3 | {"bucketName": name})
    assert error.field == "/s3Config/bucketName"
    assert "canary" not in error.message


def test_a_request_prints_without_the_secrets_of_its_bucket() -> None:
    asked = parse_input({"mode": "video", "prompt": "x"}, s3Config=S3)
    assert CANARY not in repr(asked)


# --- No value ever comes back ---


@pytest.mark.parametrize("field", sorted(SCHEMA["properties"]))
@pytest.mark.parametrize(
    "value",
    [CANARY + "\x00", [[CANARY]], CANARY * 2_000_000, {"first_frame": [CANARY]}],
    ids=["control", "list", "oversized", "object"],
)
def test_a_failing_value_is_never_repeated(field: str, value: Any) -> None:
    envelope = field in ("config", "metadata")
    if envelope and isinstance(value, dict):
        value = {"first_frame": [CANARY], "start_reference_url": [CANARY]}
    error = refused_video(**{field: value})
    assert error.field is not None
    assert error.field.startswith(f"/input/{field}")
    assert "canary" not in f"{error.message} {error!r}"


@pytest.mark.parametrize(
    "field",
    [
        name
        for name, rule in SCHEMA["properties"].items()
        if name
        not in (
            *("prompt", "negative_prompt", "callback_url"),
            *("image_url", "image", "last_image_url"),
        )
    ],
)
def test_a_text_in_a_field_that_takes_none_is_never_repeated(field: str) -> None:
    assert "canary" not in refused_video(**{field: CANARY}).message


# --- Several outputs ---


@pytest.mark.parametrize(
    ("second", "rule"),
    [(1, "string"), ("", "at least"), ("x" * 8001, "at most"), (["b"], "string")],
)
def test_each_prompt_of_a_list_is_held_to_the_rules_of_one(second: Any, rule: str) -> None:
    error = refused_video(prompt=["a", second])
    assert error.field == "/input/prompt/1"
    assert rule in error.message


def test_output_i_uses_seed_plus_i() -> None:
    assert parse(seed=7, num_outputs=3.0).outputs == tuple(Output("a cat", s) for s in (7, 8, 9))


def test_a_list_of_prompts_makes_one_output_of_each() -> None:
    asked = parse(seed=7, prompt=["a cat", "a dog", "a cat"])
    assert asked.outputs == (Output("a cat", 7), Output("a dog", 8), Output("a cat", 9))
    assert asked.prompt == "a cat"


def test_a_list_of_one_prompt_is_that_prompt() -> None:
    assert parse(seed=7, prompt=["a cat"]) == parse(seed=7)
    assert parse(seed=7, prompt=["a cat"], num_outputs=2) == parse(seed=7, num_outputs=2)
    assert parse(prompt=["a", "b"], num_outputs=1).outputs[1].prompt == "b"


def test_the_last_output_may_have_the_largest_seed() -> None:
    assert parse(seed=LARGEST_SEED - 3, num_outputs=4).outputs[-1].seed == LARGEST_SEED


def test_drawn_seeds_of_several_outputs_follow_each_other() -> None:
    first, second = parse(num_outputs=2).outputs
    assert second.seed == first.seed + 1


def test_several_outputs_may_come_of_an_image_alone() -> None:
    asked = parse(prompt=None, image_url=URL, num_outputs=2, seed=1)
    assert asked.outputs == (Output("", 1), Output("", 2))


# --- The schema files ---


def write_contract(folder: Path, schema: str | None = None, presets: str | None = None) -> Path:
    for name, text in (("request.schema.json", schema), ("presets.json", presets)):
        original = (SCHEMAS_DIR / name).read_text("utf-8")
        (folder / name).write_text(original if text is None else text, "utf-8")
    return folder


def test_the_shipped_schema_files_load_from_any_folder(tmp_path: Path) -> None:
    assert contract.load(write_contract(tmp_path)).presets == CONTRACT.presets


AGAIN = "take the file from the repository and build the image again"
"""What every refusal of a file of schemas/ ends with."""


def with_field(name: str, **changes: Any) -> str:
    """The schema with a property that is otherwise."""
    properties = {**SCHEMA["properties"], name: {**SCHEMA["properties"].get(name, {}), **changes}}
    return json.dumps({**SCHEMA, "properties": properties})


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ("", "it is no JSON: Expecting value, line 1, column 1"),
        ('{\n  "a": 1,,\n}', "it is no JSON: Expecting property name enclosed in double quotes"
         ", line 2, column 10"),
        ("[]", "[] is not of type 'object'"),
        ("null", "None is not of type 'object'"),
        ('"x"', "'x' is not of type 'object'"),
        ("{}", "'properties' is a required property"),
        ('{"type": "objekt", "properties": {}}', "at /type, 'objekt' is not valid"),
        ('{"properties": []}', "at /properties, [] is not of type 'object'"),
        ('{"properties": {"seed": {}}}', "at /properties, 'job_type' is a required property"),
        (with_field("seed", minimum="low"), "at /properties/seed/minimum, 'low' is not of type"),
        (with_field("size", pattern="("), "at /properties/size/pattern, '(' is not a 'regex'"),
        (with_field("job_type", enum="image_fast"), "at /properties/job_type/enum, 'image_fast'"),
    ],
    ids=[
        *("empty", "comma", "list", "null", "text", "no fields", "type", "fields", "no job types"),
        *("minimum", "pattern", "job types"),
    ],
)  # fmt: skip
def test_a_broken_schema_file_is_a_configuration_error_at_start(
    tmp_path: Path, schema: str, said: str
) -> None:
    with pytest.raises(ConfigInvalid) as refusal:
        contract.load(write_contract(tmp_path, schema=schema))
    assert refusal.value.message.startswith(f"schemas/request.schema.json can't be used: {said}")
    assert refusal.value.message.endswith(f"; {AGAIN}")
    assert str(tmp_path) not in refusal.value.message


def presets_with(name: str, preset: Any) -> str:
    presets = json.loads((SCHEMAS_DIR / "presets.json").read_text("utf-8"))
    return json.dumps(presets | {name: preset})


@pytest.mark.parametrize(
    ("presets", "said"),
    [
        ("", "it is no JSON: Expecting value, line 1, column 1"),
        ("[]", "[] is not of type 'object'"),
        ("null", "None is not of type 'object'"),
        ("{}", "it has the job types , and request.schema.json image_fast, image_high"),
        (presets_with("extra", {"mode": "image", "values": {}}), "it has the job types image_fast"),
        (presets_with("image_fast", 1), "at /image_fast, 1 is not of type 'object'"),
        (presets_with("image_fast", {"values": {}}), "at /image_fast, 'mode' is a required"),
        (presets_with("image_fast", {"mode": "image"}), "image_fast has neither values nor prof"),
        (presets_with("image_fast", {"extends": "gone"}), "image_fast extends gone, which is no"),
        (
            presets_with("image_fast", {"extends": "image7b_high_enhanced"}),
            "image_fast extends image7b_high_enhanced, which extends another itself",
        ),
        (
            presets_with("image_fast", {"mode": "image", "values": {"size": "huge"}}),
            "image_fast breaks the rules of requests: size: Must look like 832x480",
        ),
        (
            presets_with("video_fast", {"mode": "video", "profiles": {"quick": {}}}),
            "video_fast has the profiles quick, and request.schema.json balanced, aggressive, ",
        ),
        (
            presets_with("video_high", {"mode": "video", "values": {"fpz": 3}}),
            "video_high breaks the rules of requests: fpz: Unknown field; did you mean fps?",
        ),
    ],
    ids=[
        *("empty", "list", "null", "none", "too many", "number", "no mode", "no values"),
        *("extends nothing", "extends one that extends", "rule", "profiles", "unknown field"),
    ],
)
def test_a_broken_preset_file_is_a_configuration_error_at_start(
    tmp_path: Path, presets: str, said: str
) -> None:
    with pytest.raises(ConfigInvalid) as refusal:
        contract.load(write_contract(tmp_path, presets=presets))
    assert refusal.value.message.startswith(f"schemas/presets.json can't be used: {said}")
    assert refusal.value.message.endswith(f"; {AGAIN}")


@pytest.mark.parametrize("name", ["request.schema.json", "presets.json"])
def test_a_missing_schema_file_is_a_configuration_error_that_hides_the_path(
    tmp_path: Path, name: str
) -> None:
    file = write_contract(tmp_path) / name
    file.unlink()
    with pytest.raises(ConfigInvalid) as refusal:
        contract.load(tmp_path)
    assert refusal.value.message == f"schemas/{name} can't be used: it is missing; {AGAIN}"
    file.mkdir()
    with pytest.raises(ConfigInvalid) as refusal:
        contract.load(tmp_path)
    assert refusal.value.message == f"schemas/{name} can't be used: Is a directory; {AGAIN}"
    file.rmdir()
    file.write_bytes(b"\xff")
    with pytest.raises(ConfigInvalid) as refusal:
        contract.load(tmp_path)
    assert refusal.value.message == f"schemas/{name} can't be used: it is no UTF-8 text; {AGAIN}"


# --- Anything at all ---

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from([CANARY, URL, "832x480", "480*832", "1e9", "auto", "euler", "mp4", "png"])
)
NAMES = st.sampled_from(sorted(SCHEMA["properties"])) | st.text(max_size=10)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=20,
)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(given_input=JSON | st.dictionaries(NAMES, JSON, max_size=8), s3=st.none() | JSON, name=JSON)
def test_no_json_input_raises_anything_but_an_invalid_request(
    given_input: Any, s3: Any, name: Any
) -> None:
    try:
        asked = request.request({"id": name, "input": given_input, "s3Config": s3}, CONTRACT)
    except InvalidRequest as error:
        assert error.field is not None
        assert error.field.startswith(("/input", "/s3Config"))
    else:
        assert isinstance(asked, Request)


PLAUSIBLE: dict[str, st.SearchStrategy[Any]] = {
    "mode": st.sampled_from(["image", "video"]),
    "job_type": st.sampled_from(["image_fast", "image_high", "video_fast", "video_high"]),
    "profile": st.sampled_from(["balanced", "aggressive", "quality"]),
    "model": st.sampled_from(["auto", "wan2.1-t2v-1.3b", "wan2.1-i2v-14b-480p"]),
    "prompt": st.sampled_from(["a cat", " x ", " "]),
    "negative_prompt": st.sampled_from(["", "blurry"]),
    "image_url": st.just(URL),
    "size": st.sampled_from(["832x480", "480*832", "1920x1080", "854x480", "33x47", "832x480\n"]),
    "width": st.sampled_from([832, 480.0, 333, 16]),
    "height": st.sampled_from([480, 832, 1920]),
    "orientation": st.sampled_from(["landscape", "portrait"]),
    "num_frames": st.sampled_from([1, 64, 81.0, 83, 161]),
    "duration": st.sampled_from([1, 0.01, 2.5, 30]),
    "fps": st.sampled_from([1, 16.0, 60]),
    "num_inference_steps": st.integers(1, 100),
    "guidance_scale": st.floats(1, 20),
    "solver": st.sampled_from(["unipc", "euler", "dpm++"]),
    "flow_shift": st.floats(0.1, 20),
    "seed": st.integers(-1, LARGEST_SEED),
    "num_outputs": st.sampled_from([1, 2, 4.0]),
    "upscale": st.sampled_from([2, 4, 2.0]),
    "output_format": st.sampled_from(["mp4", "webm", "gif", "png", "jpeg", "webp"]),
    "response_format": st.sampled_from(["url", "base64"]),
    "reference_fallback": st.booleans(),
    "config": st.sampled_from([{}, {"first_frame": URL}, {"first_frame": None, "other": 1}]),
    "metadata": st.sampled_from([{"start_reference_url": URL}, {"end_reference_url": URL}]),
    "steps": st.integers(1, 100),
    "frame_num": st.integers(1, 161),
}
HARMLESS = {name: PLAUSIBLE[name] for name in ("seed", "solver", "steps", "negative_prompt")}
ASKED = st.one_of(
    st.fixed_dictionaries({}, optional=PLAUSIBLE),
    st.fixed_dictionaries({"mode": st.just("video"), "prompt": st.just("x")}, optional=HARMLESS),
    st.fixed_dictionaries(
        {"job_type": PLAUSIBLE["job_type"], "prompt": st.just("x")}, optional=HARMLESS
    ),
)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(fields=ASKED)
def test_whatever_is_accepted_is_whole_and_of_the_right_types(fields: dict[str, Any]) -> None:
    before = json.dumps(fields)
    try:
        asked = parse_input(fields)
    except InvalidRequest:
        return
    finally:
        assert json.dumps(fields) == before  # the caller's dict is left alone
    assert asked.mode in ("image", "video")
    assert asked.prompt.strip() or asked.references
    assert 0 <= asked.outputs[0].seed <= asked.outputs[-1].seed <= LARGEST_SEED
    assert all(type(output.seed) is int for output in asked.outputs)
    for name in ("num_frames", "fps", "num_inference_steps"):
        assert type(getattr(asked, name)) in (int, type(None)), name
    if asked.size is not None:
        assert all(type(side) is int and 16 <= side <= 1920 for side in asked.size)
        assert asked.mode == "image" or all(side % 2 == 0 for side in asked.size)
    assert asked.mode == "video" or (asked.last_image is None and asked.duration is None)
    assert (asked.strength is not None) == (asked.mode == "image" and asked.image is not None)
    assert sys.getsizeof(asked.notices) < 1_000
