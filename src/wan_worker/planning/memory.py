"""How are a model's weights laid out so that a job fits into the GPU, and what is the peak?

Pure. A job's stages are prompt, picture, denoise and decode. Each takes the weights that are on the
GPU then, the tensors that live at once (activations) and an allowance. Layouts are tried best
first, and the first one whose largest stage fits is taken:
1. resident: everything stays on the GPU.
2. sequential: text encoder, experts and VAE take turns, one on the GPU at a time.
3. group: the text encoder and the experts pass through the GPU block by block.
In each, the VAE decodes in fp32, else in bf16. If that is still too much, the same three follow
with decoding in tiles, at last with encoding in tiles too. All of these compute the same function.
Fewer bits per weight do not, so they are used only if the request or the operator asks for them.

Not covered: the libraries' workspaces, the allocator's fragments and the CUDA context. Allowances
stand for them (RESERVED_BYTES, FRAGMENTATION), which have not yet been measured on a GPU.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

from wan_worker.catalog.models import Installed, Model
from wan_worker.errors import Unsupported
from wan_worker.machine.hardware import Hardware
from wan_worker.planning.activations import (
    TILE,
    UPSCALE_BYTES,
    Decode,
    JobSize,
    Shape,
    adapter_bytes,
    decode_bytes,
    denoise_bytes,
    encode_bytes,
    kept_wide_bytes,
    outside_blocks_bytes,
    prompt_bytes,
    shape_of,
    widened_bytes,
)
from wan_worker.request.parse import Notice
from wan_worker.settings import Placement, WeightType

Stage = Literal["prompt", "picture", "denoise", "decode"]
STAGES: Final[tuple[Stage, ...]] = get_args(Stage)

RESERVED_BYTES: Final = 1024**3
"""Allowance for the CUDA context and the libraries' workspaces."""

FRAGMENTATION: Final = 1.1
"""Allowance for memory that the allocator can't use, as a factor on activations."""

HOST_SHARE: Final = 0.9
"""Share of the machine's memory that weights may take while they are off the GPU."""

HOST_WEIGHT_SHARE: Final = 0.6
"""Share of the machine's memory that the components of several models may take together."""

BLOCKS_AT_ONCE: Final = 3
"""Group offload: the block that computes, the one being fetched, and the one not yet freed."""

EMBEDDING_TABLE_BYTES: Final = 256_384 * 4096 * 2
"""umT5's table of embeddings, in bf16."""


@dataclass(frozen=True)
class Layout:
    """Where the weights are, of which type they are, and the most that each stage takes."""

    placement: Placement
    weight_type: WeightType = "bf16"
    """Type of the transformers' weights; all others keep the type that they are stored in."""
    decode: Decode = "fp32"
    tiled_encode: bool = False
    stages: tuple[tuple[Stage, int], ...] = ()
    """Estimated bytes on the GPU in each stage; empty if nothing was estimated."""
    room_bytes: int = 0
    """GPU memory that the peak leaves free: other models' components may stay there."""

    @property
    def peak_bytes(self) -> int:
        return max((size for _, size in self.stages), default=0)

    @property
    def peak_stage(self) -> str:
        return max(self.stages, key=lambda stage: stage[1])[0] if self.stages else ""


def loaded_bytes(model: Installed, hardware: Hardware) -> dict[str, int]:
    """Memory of each loaded component. It is stored in bf16; on a CPU it runs in fp32."""
    factor = 2 if hardware.device == "cpu" else 1
    return {name: factor * size for name, size in model.component_bytes.items()}


def host_budget(hardware: Hardware) -> int:
    """Bytes of main memory that weights may take while no job needs them there."""
    return int((hardware.ram_bytes or hardware.memory_bytes) * HOST_WEIGHT_SHARE)


def stay_together(
    hardware: Hardware,
    first: Layout,
    second: Layout,
    first_bytes: Mapping[str, int],
    second_bytes: Mapping[str, int],
) -> bool:
    """Do two sets of weights (bytes by component) stay in memory while they are used in turn?"""
    if hardware.device == "cuda" and "resident" in (first.placement, second.placement):
        beside_first = sum(size for name, size in second_bytes.items() if name not in first_bytes)
        beside_second = sum(size for name, size in first_bytes.items() if name not in second_bytes)
        return first.placement == second.placement and (
            beside_first <= first.room_bytes and beside_second <= second.room_bytes
        )
    return sum({**first_bytes, **second_bytes}.values()) <= host_budget(hardware)


def weight_bytes(
    model: Model, component_bytes: Mapping[str, int], kind: WeightType
) -> dict[str, int]:
    """Bytes of each component, by role, with weights of a type; fp8 takes as much as int8."""
    sizes = {}
    for component in model.components:
        size = component_bytes[component.name]
        if kind != "bf16" and component.role.startswith("transformer"):
            shape = shape_of(model)
            outside = outside_blocks_bytes(shape)
            size = outside + (size - outside) // 2 + kept_wide_bytes(shape)
        sizes[component.role] = size
    return sizes


# --- Which layout ---


def choose(
    model: Model,
    component_bytes: Mapping[str, int],
    job: JobSize,
    hardware: Hardware,
    placement: Placement | None = None,
    weight_type: WeightType = "bf16",
) -> Layout | None:
    """The best layout that fits this GPU and this machine, or None.

    Args:
        component_bytes: by component name, as stored.
        placement: the operator's setting; None tries all, best first.
    """
    weights = sum(weight_bytes(model, component_bytes, weight_type).values())
    off_the_gpu = ("sequential", "group") if weights <= _host_bytes(hardware) else ()
    for layout in ladder(model, job, placement, weight_type):
        estimated = estimate(model, component_bytes, job, layout)
        fits_host = layout.placement == "resident" or layout.placement in off_the_gpu
        if fits_host and estimated.peak_bytes <= hardware.free_bytes:
            return replace(estimated, room_bytes=hardware.free_bytes - estimated.peak_bytes)
    return None


def ladder(
    model: Model, job: JobSize, placement: Placement | None, weight_type: WeightType
) -> Iterator[Layout]:
    """The layouts that a job may use, best first; their peaks are not yet estimated."""
    placements: tuple[Placement, ...] = ("resident", "sequential", "group")
    if placement is not None:
        placements = (placement,)
    for where in placements:
        yield Layout(where, weight_type)
        yield Layout(where, weight_type, "bf16")
    # Transfers cost time, tiles leave seams in the picture: tiles come after all transfers.
    for where in placements:
        yield Layout(where, weight_type, "tiled")
    if job.has_image and not model.expand_timesteps:
        for where in placements:
            yield Layout(where, weight_type, "bf16", tiled_encode=True)
            yield Layout(where, weight_type, "tiled", tiled_encode=True)


def estimate(
    model: Model, component_bytes: Mapping[str, int], job: JobSize, layout: Layout
) -> Layout:
    """The layout with the estimated peak of each stage."""
    sizes = weight_bytes(model, component_bytes, layout.weight_type)
    vae = sizes["vae"]
    if layout.placement == "resident":
        everything = sum(sizes.values())
        weights: dict[Stage, int] = dict.fromkeys(STAGES, everything)
    else:
        denoiser = max(size for role, size in sizes.items() if role.startswith("transformer"))
        text = sizes["text_encoder"]
        if layout.placement == "group":
            denoiser = _group_bytes(denoiser, shape_of(model))
            # The text encoder passes layer by layer; its embedding table is the largest part.
            text = min(text, EMBEDDING_TABLE_BYTES + BLOCKS_AT_ONCE * text // 100) + vae
        weights = {
            "prompt": text,
            "picture": vae + sizes.get("image_encoder", 0),
            "denoise": denoiser + vae,
            "decode": vae,
        }
    if layout.decode == "bf16":  # a copy beside the one in fp32, which encodes pictures
        weights["decode"] += vae // 2
    live: dict[Stage, int] = {
        "prompt": prompt_bytes(),
        "picture": encode_bytes(model, job, layout.tiled_encode),
        "denoise": denoise_bytes(model, job),
        "decode": decode_bytes(model, job.pixels, layout.decode),
    }
    adapters = job.adapters * adapter_bytes(model)
    everywhere = STAGES if layout.placement == "resident" else ("denoise",)
    for stage in everywhere:
        weights[stage] += adapters * (2 if model.two_experts else 1)
    if layout.weight_type != "bf16":
        weights["denoise"] += widened_bytes(shape_of(model))
    if job.upscaled:
        weights["decode"] += UPSCALE_BYTES
    peaks = {s: weights[s] + int(FRAGMENTATION * live[s]) + RESERVED_BYTES for s in STAGES}
    if not job.has_image:
        del peaks["picture"]
    return replace(layout, stages=tuple(peaks.items()))


def _group_bytes(transformer_bytes: int, shape: Shape) -> int:
    """Bytes of a transformer on the GPU at a time while its blocks pass through it."""
    outside = outside_blocks_bytes(shape)
    block = max(0, transformer_bytes - outside) // (shape.layers + shape.vace_layers)
    return min(transformer_bytes, outside + BLOCKS_AT_ONCE * block)


def _host_bytes(hardware: Hardware) -> int:
    return int(HOST_SHARE * hardware.ram_bytes)


# --- What to say ---


def place(
    model: Model,
    installed: Installed,
    job: JobSize,
    hardware: Hardware,
    placement: Placement | None,
    weight_type: WeightType,
) -> Layout:
    """The layout for a job on this machine.

    Raises:
        Unsupported: the job does not fit; the error says what is missing and what would fit.
    """
    if hardware.device == "cpu":
        _check_host(installed, hardware)
        return Layout("resident", weight_type)
    if installed.tiny:
        return Layout(placement or "resident", weight_type, room_bytes=hardware.free_bytes)
    component_bytes = installed.component_bytes
    layout = choose(model, component_bytes, job, hardware, placement, weight_type)
    if layout is not None:
        return layout
    needed = _least(model, component_bytes, job, hardware, placement, weight_type)
    weights = sum(weight_bytes(model, component_bytes, weight_type).values())
    if needed.placement != "resident" and weights > _host_bytes(hardware):
        short = (
            f"{gb(weights)} of weights don't fit into {gb(hardware.ram_bytes)} of host memory, "
            "where they would wait"
        )
    else:
        short = (
            f"{model.id} needs at least {gb(needed.peak_bytes)} for this job, most of it to "
            f"{_STAGE_TASKS[needed.peak_stage]}"
        )
    would_fit = _would_fit(model, component_bytes, job, hardware, placement, weight_type)
    forced = "" if placement is None else f"; PLACEMENT is set to {placement}"
    raise Unsupported(
        f"{hardware.name} has {gb(hardware.free_bytes)} free: {short}{forced}{would_fit}",
        field="/input/model",
    )


def fits(
    model: Model, installed: Installed, job: JobSize, layout: Layout, hardware: Hardware
) -> bool:
    """Does a job fit this machine with this layout?"""
    if installed.tiny or hardware.device == "cpu":
        return True
    estimated = estimate(model, installed.component_bytes, job, layout)
    return estimated.peak_bytes <= hardware.free_bytes


def _check_host(installed: Installed, hardware: Hardware) -> None:
    weights = sum(loaded_bytes(installed, hardware).values())
    if weights > hardware.memory_bytes:
        raise Unsupported(
            f"Without a GPU this model needs {gb(weights)} of memory; this machine has "
            f"{gb(hardware.memory_bytes)}. {hardware.reason}",
            field="/input/model",
        )


def _least(
    model: Model,
    component_bytes: Mapping[str, int],
    job: JobSize,
    hardware: Hardware,
    placement: Placement | None,
    weight_type: WeightType,
) -> Layout:
    """The layout that takes the least of the GPU."""
    layouts = ladder(model, job, placement, weight_type)
    return min(
        (estimate(model, component_bytes, job, layout) for layout in layouts),
        key=lambda layout: layout.peak_bytes,
    )


def smaller_jobs(job: JobSize) -> Iterator[tuple[JobSize, str]]:
    """Smaller jobs of Wan's usual sizes and lengths, largest frame first, and each in words."""
    for frames in (job.frames, 81, 49, 33, 17):
        for width, height in ((1280, 720), (832, 480), (640, 384)):
            if frames * width * height < job.frames * job.pixels:
                smaller = replace(job, pixels=width * height, frames=frames, batch=1)
                yield smaller, f"{width}x{height} with {frames} frames"


def _would_fit(
    model: Model,
    component_bytes: Mapping[str, int],
    job: JobSize,
    hardware: Hardware,
    placement: Placement | None,
    weight_type: WeightType,
) -> str:
    """The end of an error's message: a smaller job or smaller weights that would fit."""
    for smaller, description in smaller_jobs(job):
        if choose(model, component_bytes, smaller, hardware, placement, weight_type):
            return f". {description} would fit"
    if weight_type == "bf16" and choose(model, component_bytes, job, hardware, placement, "int8"):
        return '. With precision "int8" it would fit'  # fp8 takes as much and is less exact
    return ""


_STAGE_TASKS: Final[Mapping[str, str]] = {
    "prompt": "read the prompt",
    "picture": "encode the picture",
    "denoise": "denoise",
    "decode": "decode",
}


def explain(layout: Layout, model: Model, installed: Installed, hardware: Hardware) -> list[str]:
    """The reasons for a layout, one a line."""
    if hardware.device == "cpu":
        return [f"device: CPU ({hardware.reason})"]
    if not layout.stages:
        return [f"device: {hardware.name}, tiny weights fit anywhere"]
    weights = sum(weight_bytes(model, installed.component_bytes, layout.weight_type).values())
    where = {
        "resident": f"all {gb(weights)} of weights stay on it",
        "sequential": f"its weights ({gb(weights)}) take turns: one part is on it at a time",
        "group": f"its weights ({gb(weights)}) pass through it block by block",
    }[layout.placement]
    lines = [
        f"device: {hardware.name}, {where}; about {gb(layout.peak_bytes)} of "
        f"{gb(hardware.free_bytes)} in use at most, to {_STAGE_TASKS[layout.peak_stage]}"
    ]
    if layout.placement == "sequential":
        lines.append("previews: none while denoising, when the VAE is not on the GPU")
    if layout.decode == "bf16":
        lines.append("decode: in bf16, as fp32 would take more memory than there is")
    if layout.decode == "tiled":
        lines.append(f"decode: in tiles of {TILE} pixels, as a whole frame does not fit")
    if layout.tiled_encode:
        lines.append(f"encode: in tiles of {TILE} pixels, as a whole frame does not fit")
    return lines


def notices(layout: Layout) -> list[Notice]:
    """Notices of what a user may not like about a layout."""
    found = []
    if layout.decode == "tiled" or layout.tiled_encode:
        found.append(
            Notice(
                "VAE_TILED",
                "This GPU holds frames of this size in tiles only; look for faint seams, or ask "
                "for a smaller size.",
            )
        )
    if layout.weight_type != "bf16":
        found.append(
            Notice(
                "WEIGHTS_QUANTIZED",
                f"Made with {layout.weight_type} weights; a seed gives another picture than with "
                "the model's own.",
            )
        )
    return found


def gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
