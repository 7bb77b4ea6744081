"""Which model `auto` takes and what each preset becomes, as tables to read: tests/golden/auto.md.

After a change that is meant:
PYTHONPATH=src python -m tests.planning.test_model_choice > tests/golden/auto.md
"""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from wan_worker.catalog.models import MODELS, Installed, Model
from wan_worker.errors import InvalidRequest, ModelUnavailable, WorkerError
from wan_worker.machine.hardware import Hardware
from wan_worker.planning import model_choice, plan
from wan_worker.request import parse, schema

GOLDEN = Path(__file__).parents[1] / "golden" / "auto.md"
CONTRACT = schema.load()
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
PRESETS: dict[str, dict[str, Any]] = {
    name: fields for name, fields in (STILLS | VIDEOS).items() if "job_type" in fields
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
    asked = parse.request({"input": {"prompt": "x", "num_inference_steps": 1} | fields}, CONTRACT)
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
    return "\n".join([*lines, "", *orders(), "", *presets()]) + "\n"


def order(fields: Mapping[str, Any]) -> list[str]:
    """Every model that `auto` may take for a request, in the order in which it prefers them."""
    left, found = list(MODELS), []
    while left and (best := chosen(fields, left)) in MODELS:
        found.append(best)
        left.remove(best)
    return found


def orders() -> list[str]:
    lines = [
        "## Every combination",
        "",
        "The first of these that is installed is taken, whichever else are: so it is in all 511 "
        "combinations of the nine models, as a test makes sure.",
        "",
        "| request | in order |",
        "|---|---|",
    ]
    return lines + [f"| {name} | {' > '.join(order(f)) or '–'} |" for name, f in REQUESTS.items()]


def presets() -> list[str]:
    """What each preset becomes on each model: as generated, before cropping and trimming."""
    lines = [
        "## What each preset becomes",
        "",
        "Frame and frames as generated, on a GPU of 150 GB; from square pictures where the model "
        "needs one.",
        "",
        "| model | " + " | ".join(PRESETS) + " |",
        f"|---|{'---|' * len(PRESETS)}",
    ]
    for model in MODELS.values():
        cells = " | ".join(described(model, fields) for fields in PRESETS.values())
        lines.append(f"| {model.id} | {cells} |")
    return lines


def described(model: Model, fields: Mapping[str, Any]) -> str:
    still = fields["job_type"].startswith("image")
    pictures = {
        **({"image_url": URL} if model.image == "required" else {}),
        **({"last_image_url": URL} if model.last_image == "required" else {}),
        **({"image_url": URL} if model.image == "optional" and model.text_pipeline is None else {}),
    }
    try:
        made = preset_on(model, fields, {} if still else pictures)
    except WorkerError as refusal:
        return refusal.code.lower().replace("_", " ")
    wide, high = made.generated_size
    length = "" if still else f"x{made.generated_frames}"
    return (
        f"{wide}x{high}{length}, {made.num_inference_steps} {made.solver}, "
        f"guidance {made.guidance_scale:g}, shift {made.flow_shift:g}"
    )


def preset_on(model: Model, fields: Mapping[str, Any], pictures: Mapping[str, Any]) -> plan.Plan:
    made = make([model.id], model=model.id, mode=None, **fields, **pictures)
    return plan.fit_to_image(made, (1000, 1000)) if pictures else made


def test_auto_takes_what_the_table_says() -> None:
    assert table() == GOLDEN.read_text("utf-8")


@pytest.mark.parametrize("name", REQUESTS)
def test_whatever_is_installed_the_first_in_order_is_taken(name: str) -> None:
    fields = parse.request({"input": {"prompt": "x"} | REQUESTS[name]}, CONTRACT)
    ordered = order(REQUESTS[name])
    for count in range(1, len(MODELS) + 1):
        for models in itertools.combinations(MODELS, count):
            first = next((model for model in ordered if model in models), None)
            here = {model: Installed({}, tiny=False) for model in models}
            if first is None:
                with pytest.raises(WorkerError):
                    model_choice.choose(fields, here, None)
            else:
                assert model_choice.choose(fields, here, None)[0].id == first


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("model_id", MODELS)
def test_every_preset_runs_on_every_model_that_serves_it(model_id: str, name: str) -> None:
    model, fields = MODELS[model_id], PRESETS[name]
    still = fields["job_type"].startswith("image")
    served = model.text_pipeline is not None or not still
    assert ("x" in described(model, fields)) is served


def make(models: list[str], **fields: Any) -> plan.Plan:
    here = {
        name: Installed({c.name: c.stored_bytes for c in MODELS[name].components}, tiny=False)
        for name in models
    }
    given = {"mode": "video", "prompt": "x"} | fields
    asked = parse.request({"input": {k: v for k, v in given.items() if v is not None}}, CONTRACT)
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
