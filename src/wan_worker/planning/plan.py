"""Pure: Request + Hardware + installed models -> Plan, with a reason for every choice.

Rules, in order:
1. The model (model_choice).
2. Numbers that the request and its preset leave open: the model's native ones (defaults).
3. The size: as asked. It is generated on the next larger grid and cropped. With a picture and no
   size in the request: the picture's shape at the pixel budget. It is known once the picture is
   there (``fit_to_image``).
4. The length: as asked. It is generated at the next 4k+1 and trimmed.
5. ``upscale`` enlarges the cropped frames; a video's frame must then keep to a codec level.
6. ``acceleration``: which steps of the schedule are not computed (acceleration, step_cache).
7. The layout of the weights: the best one that fits the GPU (memory).
8. Several outputs are denoised in one call, up to the work of one long clip; else in turn.
9. How the same function is computed faster (speedups).

A refusal here costs nothing: nothing has been downloaded and torch is not imported.
Not covered: how long a job will take (timing), videos longer than one clip (segments).
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

from wan_worker.catalog.components import UPSCALER
from wan_worker.catalog.models import MAX_WORK, NEGATIVE_PROMPT, Installed, Model, Size
from wan_worker.errors import InvalidRequest, ModelUnavailable
from wan_worker.machine.hardware import Hardware
from wan_worker.planning import acceleration, activations, memory, speedups
from wan_worker.planning.activations import JobSize
from wan_worker.planning.defaults import resolve
from wan_worker.planning.deployment import Deployment
from wan_worker.planning.memory import Layout
from wan_worker.planning.model_choice import choose, install_hint
from wan_worker.planning.speedups import STOCK, Speedups
from wan_worker.request import formats
from wan_worker.request.formats import Mode
from wan_worker.request.loras import PlannedLora
from wan_worker.request.outputs import Output
from wan_worker.request.parse import Acceleration, Notice, Request
from wan_worker.settings import Placement

BATCH_TOKENS: Final = 32_760
"""Tokens in one denoising call: those of one 832x480 clip of 81 frames. That many keep an H100 busy
(a second clip in the batch saves nothing). It is fewer if the activations would not fit."""

NO_BATCH: Final = ("WanVACEPipeline",)
"""Pipelines of diffusers that refuse a list of generators."""


@dataclass(frozen=True)
class Plan:
    """Everything that generation needs to know, and why it was chosen so."""

    model: Model
    mode: Mode
    outputs: tuple[Output, ...]
    """What to make, in order: a prompt and a seed each."""
    batch_size: int
    """Outputs that one denoising call makes."""
    negative_prompt: str
    references: tuple[str, ...]
    """Request fields that hold the pictures to start from."""
    strength: float | None
    """Image-to-image's; None for everything else."""
    size: Size | None
    """Width and height before ``upscale``; None until the image that sets it has been seen."""
    upscale: int
    """How many times as wide and high the delivered frames are: 1, 2 or 4."""
    pixel_budget: int
    """Pixels of a frame, where a picture sets the shape."""
    num_frames: int
    fps: int
    num_inference_steps: int
    guidance_scale: float
    guidance_scale_2: float | None
    """Guidance of the low-noise expert; None where there is one transformer."""
    solver: str
    flow_shift: float
    output_format: str
    device: Literal["cuda", "cpu"]
    layout: Layout
    tiny: bool
    reasons: tuple[str, ...]
    notices: tuple[Notice, ...]
    enhancer: Literal["keep", "release"] | None = None
    """A language model rewrites the prompt; afterwards it stays in memory or is released. None: no
    rewriting."""
    loras: tuple[PlannedLora, ...] = ()
    acceleration: Acceleration = "exact"
    speedups: Speedups = STOCK
    """Faster ways to compute the same function."""
    reused: tuple[tuple[bool, ...], ...] = ()
    """For each transformer, whether each of its steps takes over the residual of the step before;
    empty where all are computed."""
    segments: tuple["Plan", ...] = ()
    """The plans of a long video's segments. Each segment after the first starts from the last frame
    of the one before, at this plan's generated size. Empty: one clip."""

    @property
    def placement(self) -> Placement:
        return self.layout.placement

    @property
    def pipeline(self) -> str:
        """Name of the diffusers pipeline class."""
        starts = bool(self.references) and self.strength is None
        name = self.model.image_pipeline if starts else self.model.text_pipeline
        if name is None:
            raise ValueError(f"{self.model.id} has no pipeline for this plan")
        return name

    @property
    def delivered_size(self) -> Size:
        """Width and height of the file."""
        if self.size is None:
            raise ValueError("the size is not known before the image is")
        return (self.size[0] * self.upscale, self.size[1] * self.upscale)

    @property
    def generated_size(self) -> Size:
        """Width and height on the model's grid, at least as large as asked."""
        if self.size is None:
            raise ValueError("the size is not known before the image is")
        grid = self.model.grid
        return (math.ceil(self.size[0] / grid) * grid, math.ceil(self.size[1] / grid) * grid)

    @property
    def generated_frames(self) -> int:
        """The next 4k+1 that is at least as long as asked."""
        if self.segments:
            return 1 + sum(segment.generated_frames - 1 for segment in self.segments)
        stride = self.model.temporal_stride
        return math.ceil((self.num_frames - 1) / stride) * stride + 1

    @property
    def steps_taken(self) -> int:
        """Denoising steps. Image-to-image skips the first ones, as its strength says."""
        if self.strength is None:
            return self.num_inference_steps
        return max(1, round(self.num_inference_steps * self.strength))

    @property
    def turbo(self) -> tuple[str, ...]:
        """Distilled weights that go onto the transformers, by component name; few steps are enough
        with them."""
        return self.model.turbo_names if self.acceleration == "turbo" else ()

    @property
    def reused_steps(self) -> int:
        """How many steps are not computed."""
        return sum(map(sum, self.reused))

    def public(self) -> dict[str, Any]:
        """The part of the response that says how the job ran."""
        clips = self.segments or (self,)
        return {
            "model": self.model.id,
            "device": self.device,
            "placement": self.placement,
            "precision": self.layout.weight_type,
            "peak_gb": round(self.layout.peak_bytes / 1e9, 1) or None,
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
            "guidance_scale_2": self.guidance_scale_2,
            "strength": self.strength,
            "solver": self.solver,
            "flow_shift": self.flow_shift,
            "negative_prompt": self.negative_prompt,
            "batch_size": self.batch_size,
            "upscale": self.upscale,
            "loras": [asdict(lora) for lora in self.loras],
            "acceleration": {
                "mode": self.acceleration,
                "steps": sum(clip.steps_taken for clip in clips),
                "reused_steps": sum(clip.reused_steps for clip in clips),
                "weights": list(dict.fromkeys(name for clip in clips for name in clip.turbo)),
            },
            "segments": [
                {"model": segment.model.id, "num_frames": segment.generated_frames}
                for segment in clips
            ],
            "reasons": list(self.reasons),
        }


def make(request: Request, deployment: Deployment) -> Plan:
    """Decide everything that can be decided before the first byte is fetched.

    Raises:
        InvalidRequest: the request and the model that it names contradict each other.
        Unsupported: no model, or not this GPU, can do it.
        ModelUnavailable: a model that could is known but not installed.
    """
    hardware, extras = deployment.hardware, deployment.extras
    able = acceleration.with_turbo_weights(request, deployment.installed, extras)
    model, why = choose(request, able, deployment.default_model)
    reasons = [why]
    notices = list(request.notices)
    if request.acceleration == "turbo":
        request, why, minded = acceleration.turbo_settings(request, model, extras)
        reasons.append(why)
        notices += minded
    here = deployment.installed[model.id]

    resolved = resolve(request, model, tiny=here.tiny)
    reasons += resolved.reasons
    notices += resolved.notices
    area = resolved.area
    formats.check_upscaled(request.mode, area, request.upscale, request.pointer("upscale"))
    if request.upscale > 1 and UPSCALER.name not in extras:
        raise ModelUnavailable(install_hint(UPSCALER.name), field=request.pointer("upscale"))
    beside = [UPSCALER.name] if request.upscale > 1 else []
    if request.acceleration == "turbo":
        beside += model.turbo_names
    reasons += formats.reasons(request.output_format, resolved.fps, request.upscale)
    if request.mode == "video" and resolved.fps != model.fps:
        speed = "slower" if resolved.fps < model.fps else "faster"
        reasons.append(
            f"motion: {speed} than life, drawn for {model.fps} fps and played at {resolved.fps}"
        )
    reasons += [lora.reason for lora in request.loras]

    plan = Plan(
        model=model,
        mode=request.mode,
        outputs=request.outputs,
        batch_size=1,
        negative_prompt=(
            NEGATIVE_PROMPT if request.negative_prompt is None else request.negative_prompt
        ),
        references=request.references,
        strength=request.strength,
        size=resolved.size,
        upscale=request.upscale,
        pixel_budget=resolved.pixel_budget,
        num_frames=resolved.num_frames,
        fps=resolved.fps,
        num_inference_steps=resolved.num_inference_steps,
        guidance_scale=resolved.guidance_scale,
        guidance_scale_2=resolved.guidance_scale_2,
        solver=resolved.solver,
        flow_shift=resolved.flow_shift,
        output_format=request.output_format,
        device=hardware.device,
        layout=Layout("resident"),
        tiny=here.tiny or any(extras[name].tiny for name in beside),
        reasons=tuple(reasons),
        notices=tuple(notices),
        loras=tuple(PlannedLora.of(lora) for lora in request.loras),
        acceleration=request.acceleration,
    )
    if request.acceleration == "cached":
        reused, why = acceleration.cached_steps(
            model, plan.solver, plan.flow_shift, plan.num_inference_steps, plan.steps_taken
        )
        plan = replace(plan, reused=reused, reasons=(*plan.reasons, why))
    if area * plan.generated_frames * plan.num_inference_steps * len(plan.outputs) > MAX_WORK:
        raise InvalidRequest(
            "Size x frames x steps x outputs is over this worker's limit of "
            f"{MAX_WORK:.3g} pixel-steps; lower one of them",
            field=request.pointer("num_inference_steps"),
        )
    kind = request.precision or deployment.weight_type or "bf16"
    if kind != "bf16":
        why = "as asked" if request.precision else "as WEIGHT_TYPE sets it for this worker"
        plan = replace(plan, reasons=(*plan.reasons, f"precision: {kind}, {why}"))
    layout = memory.place(model, here, job_size(plan, area), hardware, deployment.placement, kind)
    plan = replace(
        plan,
        layout=layout,
        reasons=(*plan.reasons, *memory.explain(layout, model, here, hardware)),
        notices=(*plan.notices, *memory.notices(layout)),
    )
    if len(plan.outputs) > 1:
        together, why = batch_size(plan, area, here, hardware)
        plan = replace(plan, batch_size=together, reasons=(*plan.reasons, why))
    job = job_size(plan, area, plan.batch_size)
    calls = math.ceil(len(plan.outputs) / plan.batch_size)
    steps = calls * (plan.steps_taken - plan.reused_steps)
    found, said = speedups.choose(model, here, job, layout, hardware, steps, deployment.compiling)
    plan = replace(plan, speedups=found, reasons=(*plan.reasons, *said))
    return _explain_grid(plan) if plan.size is not None else plan


def batch_size(plan: Plan, area: int, here: Installed, hardware: Hardware) -> tuple[int, str]:
    """How many outputs one denoising call makes, and why.

    A GPU is fed better by several small outputs at a time: as many as stay within BATCH_TOKENS, and
    within the GPU's memory in the plan's layout.

    Args:
        area: pixels of a frame, at most.
    """
    wanted = len(plan.outputs)
    if plan.device == "cpu":
        return 1, "batch_size: 1, a CPU gains nothing from more"
    if plan.pipeline in NO_BATCH:
        return 1, f"batch_size: 1, {plan.model.id}'s pipeline makes one at a time"
    latent_frames = (plan.generated_frames - 1) // plan.model.temporal_stride + 1
    tokens = latent_frames * math.ceil(area / plan.model.grid**2)
    fitting = max(1, min(wanted, BATCH_TOKENS // tokens))
    while fitting > 1 and not memory.fits(
        plan.model, here, job_size(plan, area, fitting), plan.layout, hardware
    ):
        fitting -= 1
    # Even batches: four outputs where three would fit go as two and two.
    size = math.ceil(wanted / math.ceil(wanted / fitting))
    return size, f"batch_size: {size} of {wanted} outputs at a time, {tokens} tokens each"


def job_size(plan: Plan, area: int | None = None, batch: int = 1) -> JobSize:
    """The size of the plan's job, as memory estimates need it.

    Args:
        area: pixels of a frame, at most, where the size waits for the picture.
    """
    pixels = plan.pixel_budget if area is None else area
    if plan.size is not None:
        pixels = plan.generated_size[0] * plan.generated_size[1]
    return JobSize(
        pixels,
        plan.generated_frames,
        bool(plan.references),
        batch,
        upscaled=plan.upscale > 1,
        adapters=len(plan.loras) + bool(plan.turbo),
        residuals=(1 + (plan.guidance_scale > 1)) if plan.reused_steps else 0,
        guided=plan.guidance_scale > 1,
        batched_guidance=plan.speedups.batched_guidance,
    )


def tokens(plan: Plan) -> int:
    """Tokens of one output, as the transformer sees it."""
    return activations.tokens(plan.model, job_size(plan))


def fit_to_image(plan: Plan, image_size: Size, *other_sizes: Size) -> Plan:
    """Set the size of a plan whose shape comes from its pictures, by the first of them.

    Each side is floored to the grid, as Wan's own image-to-video code does.
    """
    if any(_shape_differs(size, image_size) for size in other_sizes):
        why = "last_image_url: its shape is not the first image's; scaled to cover and cropped"
        plan = replace(plan, reasons=(*plan.reasons, why))
    if plan.size is not None:
        return plan
    width, height = image_size
    grid, budget = plan.model.grid, plan.pixel_budget
    # In integers: a float root of 480 squared can be 479.99, which would cost a step of the grid.
    fitted_height = max(grid, math.isqrt(budget * height // width) // grid * grid)
    fitted_width = max(grid, math.isqrt(budget * width // height) // grid * grid)
    return _explain_grid(replace(plan, size=(fitted_width, fitted_height)))


def _explain_grid(plan: Plan) -> Plan:
    """Add the reasons for generating more than is delivered."""
    reasons = []
    if plan.size is not None and plan.generated_size != plan.size:
        wide, high = plan.generated_size
        reasons.append(f"generated at {wide}x{high}, the grid of {plan.model.grid}, and cropped")
    if plan.generated_frames != plan.num_frames:
        reasons.append(f"generated {plan.generated_frames} frames (4k+1) and trimmed")
    return replace(plan, reasons=(*plan.reasons, *reasons))


def _shape_differs(size: Size, other: Size) -> bool:
    """Do two shapes differ by more than one pixel in a hundred?"""
    return abs(size[0] * other[1] / (size[1] * other[0]) - 1) > 0.01


def _area(size: Size) -> int:
    return size[0] * size[1]
