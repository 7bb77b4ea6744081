"""Long videos, planned: which segments, by which models, and what remains where none can go on."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders.plans import CONTRACT, CPU, I2V, T2V, codes, gpu, reasons_about
from wan_worker.catalog.models import MODELS, Installed
from wan_worker.errors import InvalidRequest, ModelUnavailable, Unsupported
from wan_worker.machine.hardware import Hardware
from wan_worker.planning import segments
from wan_worker.planning.deployment import Deployment
from wan_worker.planning.plan import Plan
from wan_worker.request import parse
from wan_worker.request.outputs import LARGEST_SEED

VACE, TI2V, I2V_A14B, FLF2V = (
    "wan2.1-vace-1.3b",
    "wan2.2-ti2v-5b",
    "wan2.2-i2v-a14b",
    "wan2.1-flf2v-14b-720p",
)
URL = "https://example.com/cat.png"


def store(*model_ids: str) -> dict[str, Installed]:
    return {
        name: Installed({c.name: c.stored_bytes for c in MODELS[name].components}, tiny=False)
        for name in model_ids
    }


def make(
    *model_ids: str, hardware: Hardware = CPU, job: Mapping[str, Any] | None = None, **fields: Any
) -> Plan:
    given_fields = {"mode": "video", "prompt": "a cat", "seed": 7, "size": "832x480"} | fields
    asked = parse.request({"id": "job-1", "input": given_fields}, CONTRACT)
    return segments.make(asked, Deployment(hardware, store(*(model_ids or (T2V, I2V)))))


def shape(made: Plan) -> list[tuple[str, int]]:
    """Model and generated frames of each segment."""
    return [(segment.model.id, segment.generated_frames) for segment in made.segments]


# --- When, and how long each ---


@pytest.mark.parametrize("fields", [{}, {"num_frames": 81}, {"num_frames": 85}, {"duration": 5}])
def test_what_the_model_was_trained_for_is_one_clip(fields: dict[str, Any]) -> None:
    made = make(**fields)
    assert made.segments == ()
    assert made.public()["segments"] == [{"model": T2V, "num_frames": made.generated_frames}]
    assert codes(made) == []


def test_an_image_is_never_a_chain() -> None:
    assert make(mode="image").segments == ()


def test_a_longer_video_starts_from_text_and_goes_on_from_its_last_frame() -> None:
    made = make(num_frames=161)
    assert shape(made) == [(T2V, 81), (I2V, 81)]
    assert [segment.references for segment in made.segments] == [(), ("image_url",)]
    assert (made.model.id, made.num_frames, made.generated_frames) == (T2V, 161, 161)
    assert codes(made) == ["CHAINED"]
    assert reasons_about(made, "segments:") == [
        "segments: 81 + 80 frames, each from the last one before"
    ]
    assert any(I2V in reason for reason in reasons_about(made, "segments 2 to 2"))


@settings(max_examples=200, derandomize=True, deadline=None)
@given(frames=st.integers(86, 641))
def test_the_frames_are_exactly_those_asked_for_and_no_segment_is_short(frames: int) -> None:
    made = make(num_frames=frames, num_inference_steps=8)
    delivered = [made.segments[0].num_frames, *(s.num_frames - 1 for s in made.segments[1:])]
    assert sum(delivered) == made.num_frames == frames
    lengths = [segment.generated_frames for segment in made.segments]
    assert 2 <= len(lengths) <= segments.MAX_SEGMENTS
    assert all(length % 4 == 1 and 41 <= length <= 81 for length in lengths)
    assert max(lengths) - min(lengths) <= 4
    assert 0 <= made.generated_frames - frames <= 3


def test_a_duration_is_chained_by_its_frames() -> None:
    assert len(make(duration=40).segments) == 8
    assert make(duration=10).num_frames == 160


def test_more_than_eight_segments_are_refused_naming_the_longest() -> None:
    assert len(make(num_frames=641).segments) == 8
    with pytest.raises(InvalidRequest, match="641 frames") as refusal:
        make(num_frames=642)
    assert refusal.value.field == "/input/num_frames"
    with pytest.raises(InvalidRequest, match="641 frames") as refusal:
        make(duration=41)
    assert refusal.value.field == "/input/duration"


def test_segments_have_seeds_of_their_own_that_follow_the_outputs() -> None:
    made = make(num_frames=241, num_outputs=2)
    seeds = [[output.seed for output in segment.outputs] for segment in made.segments]
    assert seeds == [[7, 8], [8, 9], [9, 10]]
    assert [output.seed for output in made.outputs] == [7, 8]
    assert made.batch_size == 1
    assert len(reasons_about(made, "batch_size")) == 1


def test_a_segments_seed_stays_in_range() -> None:
    made = make(num_frames=161, seed=LARGEST_SEED)
    assert [segment.outputs[0].seed for segment in made.segments] == [LARGEST_SEED, 0]


def test_the_work_limit_is_for_each_segment() -> None:
    work: dict[str, Any] = {"size": "1280x720", "num_inference_steps": 99}
    made = make(T2V, I2V_A14B, num_frames=161, **work)
    assert len(made.segments) == 2
    with pytest.raises(InvalidRequest, match="pixel-steps"):
        make(T2V, I2V_A14B, num_frames=161, num_outputs=2, **work)


# --- By which model ---


def test_a_model_that_starts_from_pictures_makes_every_segment() -> None:
    made = make(T2V, I2V, I2V_A14B, num_frames=161, image_url=URL, model=I2V)
    assert shape(made) == [(I2V, 81), (I2V, 81)]
    made = make(TI2V, I2V_A14B, num_frames=201, model=TI2V)
    assert shape(made) == [(TI2V, 101), (TI2V, 101)]
    assert [segment.pipeline for segment in made.segments] == [
        "WanPipeline",
        "WanImageToVideoPipeline",
    ]


def test_the_images_shape_holds_for_every_segment() -> None:
    made = make(num_frames=161, image_url=URL, size="512x512")
    assert {segment.size for segment in made.segments} == {(512, 512)}
    asked = {"mode": "video", "prompt": "x", "image_url": URL, "num_frames": 161}
    open_size = segments.make(
        parse.request({"input": asked}, CONTRACT), Deployment(CPU, store(T2V, I2V))
    )
    assert open_size.size is None
    assert len(open_size.segments) == 2


def test_the_best_installed_model_goes_on() -> None:
    assert shape(make(T2V, VACE, I2V, I2V_A14B, num_frames=161))[1][0] == I2V_A14B
    assert shape(make(T2V, VACE, num_frames=161))[1][0] == VACE


def test_a_model_that_does_not_fit_the_gpu_gives_way_to_one_that_does() -> None:
    made = make(T2V, VACE, I2V, hardware=replace(gpu(24), ram_bytes=32 * 1024**3), num_frames=161)
    assert shape(made) == [(T2V, 81), (VACE, 81)]


def test_a_model_whose_range_is_too_small_does_not_go_on() -> None:
    made = make(T2V, I2V, size="1280x720", num_frames=161)
    assert made.segments == ()
    assert "BEYOND_NATIVE_LENGTH" in codes(made)


def test_a_model_of_another_frame_rate_does_not_go_on() -> None:
    assert make(T2V, TI2V, num_frames=121, model=T2V).segments == ()


def test_a_lora_goes_on_with_a_model_that_it_can_fit() -> None:
    lora = {"loras": [{"source": "style"}]}
    assert shape(make(T2V, VACE, I2V, num_frames=161, **lora)) == [(T2V, 81), (VACE, 81)]
    assert make(T2V, I2V, num_frames=121, **lora).segments == ()


def test_a_model_that_needs_a_last_image_too_does_not_go_on() -> None:
    assert make(T2V, FLF2V, num_frames=121).segments == ()


def test_the_plan_says_whether_both_models_fit() -> None:
    assert reasons_about(make(hardware=gpu(80), num_frames=161), "memory: both models stay")
    assert reasons_about(make(hardware=gpu(48), num_frames=161), "memory: the models take turns")
    alone = make(num_frames=161, image_url=URL)
    assert reasons_about(alone, "memory:") == []


def test_what_the_second_model_decides_for_itself_is_said() -> None:
    made = make(num_frames=161)
    assert [segment.num_inference_steps for segment in made.segments] == [50, 40]
    assert "segments 2 to 2: num_inference_steps: 40, the model's default" in made.reasons
    asked = make(num_frames=161, num_inference_steps=12, guidance_scale=3.0)
    assert {(s.num_inference_steps, s.guidance_scale) for s in asked.segments} == {(12, 3.0)}


# --- Where nothing can go on ---


def test_one_pass_with_a_warning_remains_where_nothing_can_go_on() -> None:
    made = make(T2V, num_frames=161)
    assert (made.segments, made.generated_frames) == ((), 161)
    assert codes(made) == ["BEYOND_NATIVE_LENGTH"]
    assert reasons_about(made, "segments: 1; ")


def test_beyond_one_pass_the_answer_is_what_to_install() -> None:
    with pytest.raises(ModelUnavailable, match=f"--models {VACE}") as refusal:
        make(T2V, num_frames=162)
    assert refusal.value.field == "/input/num_frames"
    assert I2V in refusal.value.message


def test_a_model_that_is_not_installed_is_still_named_first() -> None:
    with pytest.raises(ModelUnavailable, match=T2V):
        make(I2V, num_frames=300, model=T2V)


def test_a_gpu_that_is_too_small_for_the_first_segment_is_said_so() -> None:
    with pytest.raises(Unsupported):
        make(hardware=gpu(4), num_frames=300)
