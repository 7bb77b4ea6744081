"""Which model `auto` takes, as a table to read: tests/golden/auto.md.

python -m tests.test_choose > tests/golden/auto.md      after a change that is meant
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from wan_worker import contract, plan, request
from wan_worker.catalog import MODELS, Installed
from wan_worker.errors import InvalidRequest, ModelUnavailable, WorkerError
from wan_worker.hardware import Hardware

GOLDEN = Path(__file__).parent / "golden" / "auto.md"
CONTRACT = contract.load()
GPU = Hardware("cuda", "NVIDIA H200", 150 * 10**9, (9, 0), "for a test")
URL = "https://example.com/cat.png"

STARTS: dict[str, dict[str, Any]] = {
    "": {},
    " + image": {"image_url": URL},
    " + last image": {"last_image_url": URL},
    " + both": {"image_url": URL, "last_image_url": URL},
}
VIDEOS: dict[str, dict[str, Any]] = {
    "video": {"mode": "video"},
    "video 832x480": {"mode": "video", "size": "832x480"},
    "video 1920x1080": {"mode": "video", "size": "1920x1080"},
    "video_fast balanced": {"job_type": "video_fast"},
    "video_fast aggressive": {"job_type": "video_fast", "profile": "aggressive"},
    "video_fast quality": {"job_type": "video_fast", "profile": "quality"},
    "video_high": {"job_type": "video_high"},
}
STILLS: dict[str, dict[str, Any]] = {
    "image": {"mode": "image"},
    "image_fast": {"job_type": "image_fast"},
    "image_high": {"job_type": "image_high"},
}
REQUESTS = {
    name + start: fields | extra
    for kinds, starts in ((VIDEOS, tuple(STARTS)), (STILLS, ("", " + image")))
    for name, fields in kinds.items()
    for start, extra in STARTS.items()
    if start in starts
}
STORES = {
    "t2v-1.3b": ["wan2.1-t2v-1.3b"],
    "1.3b family": ["wan2.1-t2v-1.3b", "wan2.1-vace-1.3b"],
    "default image": ["wan2.1-t2v-1.3b", "wan2.1-i2v-14b-480p"],
    "5b": ["wan2.2-ti2v-5b"],
    "1.3b family, 5b": ["wan2.1-t2v-1.3b", "wan2.1-vace-1.3b", "wan2.2-ti2v-5b"],
    "2.1 14b": [
        *("wan2.1-t2v-14b", "wan2.1-i2v-14b-480p"),
        *("wan2.1-i2v-14b-720p", "wan2.1-flf2v-14b-720p"),
    ],
    "2.2 a14b": ["wan2.2-t2v-a14b", "wan2.2-i2v-a14b"],
    "all": list(MODELS),
}


def chosen(fields: Mapping[str, Any], models: list[str]) -> str:
    """The model's id, or the error's code."""
    here = {
        name: Installed({c.name: c.stored_bytes for c in MODELS[name].components}, tiny=False)
        for name in models
    }
    asked = request.parse({"input": {"prompt": "x", "num_inference_steps": 1} | fields}, CONTRACT)
    try:
        return plan.make(asked, GPU, here).model.id
    except WorkerError as refusal:
        return refusal.code.lower().replace("_", " ")


def table() -> str:
    """Requests by installed models."""
    lines = [
        "# What `auto` takes",
        "",
        "Written by `PYTHONPATH=src python -m tests.test_choose`; a test compares it.",
        "Columns are what is installed:",
        "",
        *(f"- {name}: {', '.join(models)}" for name, models in STORES.items()),
        "",
        f"| request | {' | '.join(STORES)} |",
        f"|---|{'---|' * len(STORES)}",
    ]
    for name, fields in REQUESTS.items():
        cells = " | ".join(chosen(fields, models) for models in STORES.values())
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines) + "\n"


def test_auto_takes_what_the_table_says() -> None:
    assert table() == GOLDEN.read_text("utf-8")


def make(models: list[str], **fields: Any) -> plan.Plan:
    here = {
        name: Installed({c.name: c.stored_bytes for c in MODELS[name].components}, tiny=False)
        for name in models
    }
    asked = request.parse({"input": {"mode": "video", "prompt": "x"} | fields}, CONTRACT)
    return plan.make(asked, GPU, here)


@pytest.mark.parametrize("model_id", MODELS)
def test_every_model_is_the_choice_where_it_alone_is_here(model_id: str) -> None:
    model = MODELS[model_id]
    fields = {
        **({} if model.image == "none" else {"image_url": URL}),
        **({} if model.last_image == "none" else {"last_image_url": URL}),
    }
    assert make([model_id], **fields).model is model


def test_a_model_that_was_passed_over_for_its_size_is_named_in_the_reason() -> None:
    made = make(["wan2.1-t2v-1.3b", "wan2.2-ti2v-5b"], size="832x480")
    assert made.model.id == "wan2.1-t2v-1.3b"
    assert "wan2.2-ti2v-5b loses detail at 832x480" in made.reasons[0]


@pytest.mark.parametrize(
    ("fields", "field", "able"),
    [
        (
            {"model": "wan2.1-i2v-14b-480p", "image_url": URL, "last_image_url": URL},
            "last_image_url",
            ["wan2.1-vace-1.3b", "wan2.1-flf2v-14b-720p", "wan2.2-i2v-a14b"],
        ),
        ({"model": "wan2.2-t2v-a14b", "image_url": URL}, "image_url", ["wan2.2-i2v-a14b"]),
        (
            {"model": "wan2.1-flf2v-14b-720p", "image_url": URL},
            "last_image_url",
            ["wan2.1-i2v-14b-480p"],
        ),
        ({"model": "wan2.2-i2v-a14b", "last_image_url": URL}, "image_url", ["wan2.1-vace-1.3b"]),
        ({"model": "wan2.1-vace-1.3b"}, "image_url", ["wan2.1-t2v-1.3b"]),
        (
            {"model": "wan2.1-vace-1.3b", "image_url": URL, "mode": "image"},
            "model",
            ["wan2.1-t2v-1.3b"],
        ),
        (
            {"model": "wan2.1-t2v-14b", "guidance_scale_2": 3},
            "guidance_scale_2",
            ["wan2.2-t2v-a14b"],
        ),
    ],
)
def test_a_named_model_that_can_not_is_refused_naming_those_that_can(
    fields: dict[str, Any], field: str, able: list[str]
) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        make(list(MODELS), **fields)
    assert refusal.value.field == f"/input/{field}"
    said = refusal.value.message.partition("; models that can: ")[2].split(", ")
    assert set(able) <= set(said)
    assert fields["model"] not in said


@pytest.mark.parametrize("model_id", MODELS)
def test_a_size_beyond_any_model_names_those_that_make_it(model_id: str) -> None:
    model = MODELS[model_id]
    fields = {
        **({} if model.image == "none" else {"image_url": URL}),
        **({} if model.last_image != "required" else {"last_image_url": URL}),
    }
    if model.max_pixels >= 1920 * 1080:
        made = make([model_id], model=model_id, size="1920x1080", num_frames=5, **fields)
        assert made.size == (1920, 1080)
        return
    with pytest.raises(WorkerError) as refusal:
        make(list(MODELS), model=model_id, size="1920x1080", num_frames=5, **fields)
    assert refusal.value.code == "UNSUPPORTED"
    said = refusal.value.message.partition("; models that can: ")[2].split(", ")
    assert said
    assert all(MODELS[name].max_pixels >= 1920 * 1080 for name in said)


def test_guidance_of_a_second_expert_chooses_a_model_that_has_one() -> None:
    assert make(list(MODELS), guidance_scale_2=2, image_url=URL).model.id == "wan2.2-i2v-a14b"
    with pytest.raises(InvalidRequest):
        make(["wan2.1-t2v-1.3b"], guidance_scale_2=2)


def test_what_no_installed_model_does_names_one_to_install() -> None:
    with pytest.raises(ModelUnavailable, match=r"--models wan2\.1-vace-1\.3b"):
        make(["wan2.1-t2v-1.3b"], image_url=URL, last_image_url=URL)


if __name__ == "__main__":
    print(table(), end="")
