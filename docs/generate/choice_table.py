"""Which model does `auto` take, and what does each preset become? Tables for people.

They are in tests/golden/auto.md.
Not covered: whether the tables are right (tests/planning/test_model_choice.py).
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

from wan_worker.catalog.models import MODELS, Installed, Model
from wan_worker.errors import WorkerError
from wan_worker.machine.hardware import Hardware
from wan_worker.planning import plan
from wan_worker.planning.deployment import Deployment
from wan_worker.request import parse, schema


@cache
def contract() -> schema.Contract:
    """Loaded at the first call, not at import: `make docs` has just written the schema by then."""
    return schema.load()


GPU = Hardware("cuda", "NVIDIA H200", 150 * 10**9, (9, 0), "for a test")
URL = "https://example.com/cat.png"

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
           "eleven", "twelve")  # fmt: skip
"""Numbers in words, for ``in_words``; larger ones stay digits."""

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
    """The id of the model that `auto` takes, or the error's code."""
    here = {
        name: Installed({c.name: c.stored_bytes for c in MODELS[name].components}, tiny=False)
        for name in models
    }
    asked = parse.request({"input": {"prompt": "x", "num_inference_steps": 1} | fields}, contract())
    try:
        return plan.make(asked, Deployment(GPU, here)).model.id
    except WorkerError as refusal:
        return refusal.code.lower().replace("_", " ")


def table() -> str:
    """Requests in rows, installed models in columns."""
    lines = [
        "# What `auto` takes",
        "",
        "Written by `make docs`; `make check` compares it.",
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
    """Every model that `auto` may take for a request, in its order of preference."""
    left, found = list(MODELS), []
    while left and (best := chosen(fields, left)) in MODELS:
        found.append(best)
        left.remove(best)
    return found


def orders() -> list[str]:
    lines = [
        "## Every combination",
        "",
        "The first of these that is installed is taken, whichever else are: so it is in all "
        f"{2 ** len(MODELS) - 1} combinations of the {in_words(len(MODELS))} models, as a test "
        "makes sure.",
        "",
        "| request | in order |",
        "|---|---|",
    ]
    return lines + [f"| {name} | {' > '.join(order(f)) or '–'} |" for name, f in REQUESTS.items()]


def in_words(count: int) -> str:
    return NUMBERS[count] if count < len(NUMBERS) else str(count)


def presets() -> list[str]:
    """What each preset becomes on each model, as generated: before cropping and trimming."""
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


def make(models: list[str], **fields: Any) -> plan.Plan:
    here = {
        name: Installed({c.name: c.stored_bytes for c in MODELS[name].components}, tiny=False)
        for name in models
    }
    given = {"mode": "video", "prompt": "x"} | fields
    asked = parse.request({"input": {k: v for k, v in given.items() if v is not None}}, contract())
    return plan.make(asked, Deployment(GPU, here))
