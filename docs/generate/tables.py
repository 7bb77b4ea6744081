"""The tables of README.md and docs/, from the schemas, the catalog and the planner.

Not covered: tables of what was measured (figures).
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from wan_worker import errors
from wan_worker.catalog.image_variants import IMAGE_VARIANTS
from wan_worker.catalog.models import EXTRAS, MODELS, Model, stored_bytes
from wan_worker.machine.hardware import Hardware
from wan_worker.planning import memory
from wan_worker.planning.activations import JobSize

ROOT = Path(__file__).resolve().parents[2]


def fields_table() -> str:
    """Every request field: allowed values, default, aliases, meaning."""
    properties = json.loads((ROOT / "schemas" / "request.schema.json").read_text())["properties"]
    aliases: dict[str, list[str]] = {}
    for name, field in properties.items():
        if "x-alias-of" in field:
            aliases.setdefault(field["x-alias-of"], []).append(f"`{name}`")
    lines = ["| field | values | meaning |", "|---|---|---|"]
    for name, field in properties.items():
        if "x-alias-of" in field:
            continue
        also = f" Also: {', '.join(aliases[name])}." if name in aliases else ""
        lines.append(f"| `{name}` | {values(field)} | {field['description']}{also} |")
    return "\n".join(lines)


def values(field: dict[str, Any]) -> str:
    """What a field may hold, in words."""
    default = field.get("default")
    if "enum" in field:
        marked = [f"**`{v}`**" if v == default else f"`{v}`" for v in field["enum"]]
        return " ".join(marked)
    kind = field["type"] if isinstance(field["type"], str) else " or ".join(field["type"])
    low = field.get("minimum", field.get("exclusiveMinimum"))
    if low is not None:
        more = "over " if "exclusiveMinimum" in field else ""
        high = "2^63-1" if field["maximum"] == 2**63 - 1 else field["maximum"]
        kind = f"{kind}, {more}{low} to {high}"
    return kind if default is None else f"{kind}, **{json.dumps(default)}**"


def presets_table() -> str:
    """The six option sets, and the four that extend them."""
    presets = json.loads((ROOT / "schemas" / "presets.json").read_text())
    lines = [
        "| job_type | size | frames | fps | steps | guidance | solver | shift |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, preset in presets.items():
        if "extends" in preset:
            lines.append(
                f"| `{name}` | as `{preset['extends']}`, with `enhance_prompt` | | | | | | |"
            )
            continue
        variants = preset.get("profiles") or {"": preset["values"]}
        for profile, v in variants.items():
            title = f"`{name}`" + (f", profile `{profile}`" if profile else "")
            frames, fps = v.get("num_frames", 1), v.get("fps", "–")
            lines.append(
                f"| {title} | {v['size']} | {frames} | {fps} | {v['num_inference_steps']} "
                f"| {v['guidance_scale']} | {v['solver']} | {v['flow_shift']} |"
            )
    return "\n".join(lines)


def models_table() -> str:
    """The catalog."""
    lines = [
        "| model | Wan's task | takes | native | stable up to |",
        "|---|---|---|---|---|",
    ]
    for model in MODELS.values():
        width, height = model.default_size
        if model.text_pipeline is None and model.image == "optional":
            takes = "image or last image or both, prompt"
        else:
            uses = (("image", model.image), ("last image", model.last_image))
            given = [what for what, use in uses if use == "required"] + ["prompt"]
            takes = ", ".join(
                given + [f"{what} if wanted" for what, use in uses if use == "optional"]
            )
        lines.append(
            f"| `{model.id}` | `{model.wan_task}` | {takes} | {width}x{height}, "
            f"{model.native_frames} frames, {model.fps} fps, {model.steps} steps, "
            f"guidance {guidance(model)} | {model.max_pixels:,} pixels a frame, "
            f"{model.max_frames} frames |"
        )
    return "\n".join(lines)


def guidance(model: Model) -> str:
    """Its own guidance scale, or one for each of two experts."""
    second = "" if model.guidance_scale_2 is None else f" and {model.guidance_scale_2}"
    return f"{model.guidance_scale}{second}"


def weights_table() -> str:
    """What each model takes on disk, alone and together."""
    lines = ["| models | repository | its files | in the store |", "|---|---|---|---|"]
    for model in MODELS.values():
        lines.append(
            f"| `{model.id}` | `{model.repository}` | {model.repository_bytes / 1e9:.1f} GB "
            f"| {stored_bytes([model.id]) / 1e9:.1f} GB |"
        )
    everything = sum(model.repository_bytes for model in MODELS.values())
    together = stored_bytes(list(MODELS))
    lines.append(f"| all of them | | {everything / 1e9:.1f} GB | {together / 1e9:.1f} GB |")
    fields = {"upscaler": "`upscale`", "turbo": "`acceleration: turbo`"}
    for extra in EXTRAS.values():
        lines.append(
            f"| `{extra.name}`, for {fields[extra.role]} | `{extra.repository}` "
            f"| {extra.hub_bytes / 1e9:.1f} GB | {extra.stored_bytes / 1e9:.1f} GB |"
        )
    return "\n".join(lines)


MEANINGS = {
    "INVALID_REQUEST": "a field breaks a rule; `field` is its JSON pointer",
    "UNSUPPORTED": "no model here, or not this GPU, can do that; or a LoRA does not fit",
    "URL_BLOCKED": "a URL is not a public http(s) address",
    "IMAGE_REJECTED": "the reference image can't be used",
    "OUTPUT_TOO_LARGE": "the file does not fit into a response; use a bucket",
    "FETCH_FAILED": "the reference image or a LoRA could not be downloaded",
    "STORAGE_FAILED": "the bucket refused the file or was out of reach",
    "OUT_OF_MEMORY": "too many pixels or frames for this GPU, tried twice; the worker restarts",
    "DISK_FULL": "the worker's disk is full",
    "DEADLINE": "`JOB_TIMEOUT_SECONDS` is over; the message names the stage",
    "MODEL_UNAVAILABLE": "the model is known but not installed; the message has the command",
    "MODEL_CORRUPT": "weights are damaged; install them again",
    "GPU_FAULT": "the GPU failed; the worker restarts",
    "GENERATION_FAILED": "the model made NaN or a picture of one colour",
    "ENCODE_FAILED": "the file could not be written or is not what was asked for",
    "CONFIG_INVALID": "the worker's environment is wrong; it does not start",
    "INTERNAL": "a bug; the worker's log has the details",
    "CANCELED": "the job was cancelled (told to the callback; RunPod posts nothing)",
}


def errors_table() -> str:
    """Every code in the error tree."""
    lines = ["| code | meaning | try again? |", "|---|---|---|"]
    for kind in leaves(errors.WorkerError):
        again = "yes" if kind.retryable else "no"
        lines.append(f"| `{kind.code}` | {MEANINGS[kind.code]} | {again} |")
    return "\n".join(lines)


def leaves(kind: type[errors.WorkerError]) -> Iterator[type[errors.WorkerError]]:
    children = kind.__subclasses__()
    if not children:
        yield kind
    for child in children:
        yield from leaves(child)


POOLS = {
    "AMPERE_16": 16,
    "AMPERE_24": 24,
    "ADA_24": 24,
    "AMPERE_48": 48,
    "ADA_48_PRO": 48,
    "AMPERE_80": 80,
    "ADA_80_PRO": 80,
    "HOPPER_141": 141,
}
"""RunPod's GPU pools and their memory in GB as it is sold: GiB, to the planner."""


HOST_GIB = 128
"""Main memory that the table supposes: weights that are not on the GPU wait there."""


def images_table() -> str:
    """The variants: what each holds, and where all its models can run.

    The memory planner's own answer for each model's native clip: everything resident, or moved in
    and out.
    """
    lines = [
        "| variant | models | weights in the image | GPU pools | slower on |",
        "|---|---|---|---|---|",
    ]
    for variant in IMAGE_VARIANTS:
        name, models = variant.name, list(variant.models)
        if not models:
            lines.append(f"| `{name}` | none: from a network volume | – | as its models | |")
            continue
        found = {pool: {_placement(MODELS[m], gib) for m in models} for pool, gib in POOLS.items()}
        whole = [f"`{pool}`" for pool, placements in found.items() if placements == {"resident"}]
        slower = [
            f"`{pool}`"
            for pool, placements in found.items()
            if placements != {"resident"} and None not in placements
        ]
        lines.append(
            f"| `{name}` | {', '.join(f'`{model}`' for model in models)} "
            f"| {stored_bytes(models) / 1e9:.1f} GB | {' '.join(whole)} | {' '.join(slower)} |"
        )
    return "\n".join(lines)


def fits_table() -> str:
    """What the memory planner does with each model's native clip on each size of card."""
    sizes = sorted({12, 32, *POOLS.values()})
    lines = [
        "| model, native clip | " + " | ".join(f"{gib} GB" for gib in sizes) + " |",
        "|---" * (len(sizes) + 1) + "|",
    ]
    for model in MODELS.values():
        cells = " | ".join(_placement(model, gib) or "–" for gib in sizes)
        lines.append(f"| `{model.id}` | {cells} |")
    return "\n".join(lines)


def _placement(model: Model, gib: int) -> str | None:
    """Where the weights of a model's native clip are on a card that is sold with ``gib``."""
    # Cards with error correction keep some of it: an L4 of 24 GB has 22.5 GiB.
    usable, ram = int(gib * 0.93 * 1024**3), HOST_GIB * 1024**3
    machine = Hardware("cuda", f"{gib} GB", usable, None, "sold with", ram_bytes=ram)
    job = JobSize(
        model.default_size[0] * model.default_size[1], model.native_frames, _starts(model)
    )
    stored = {component.name: component.stored_bytes for component in model.components}
    found = memory.choose(model, stored, job, machine)
    return found.placement if found else None


def _starts(model: Model) -> bool:
    return model.text_pipeline is None or model.expand_timesteps


REQUESTS: Mapping[str, Callable[[], str]] = {
    "fields": fields_table,
    "presets": presets_table,
    "models": models_table,
    "errors": errors_table,
}
OPERATING: Mapping[str, Callable[[], str]] = {
    "weights": weights_table,
    "images": images_table,
    "fits": fits_table,
}
"""The places in docs/requests.md and docs/operating.md."""
