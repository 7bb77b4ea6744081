"""Which work does a job do, stage by stage? Counted in operations, pixels and bytes, not seconds.

Pure. A job's plan fixes the order of its stages. ``stages`` lists them, each with the quantities of
its work. A formula counts a transformer's forward (planning.flops). The decoder's work is counted
by the pixels that come out of it.
Not covered: how long the work takes (estimate), and what does not depend on this worker: waiting
for the GPU, fetching pictures and LoRAs, a language model's words.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple

from wan_worker.catalog.components import VAE_2_2
from wan_worker.catalog.models import MAX_PROMPT_TOKENS, Installed, Model
from wan_worker.planning.activations import Shape, latent_frames, shape_of
from wan_worker.planning.flops import forward_flops, picture_tokens
from wan_worker.planning.plan import Plan, job_size
from wan_worker.planning.speedups import Speedups

Stage = Literal["load", "prompt", "denoise", "decode_encode", "upload"]
STAGES: Final[tuple[Stage, ...]] = ("load", "prompt", "denoise", "decode_encode", "upload")
"""The stages that an estimate covers, named as in the response's timings."""

Kind = Literal[
    "import", "load", "arrange", "prompt", "remembered", "begin", "compile", "step", "reused",
    "decode", "upload", "bytes",
]  # fmt: skip
"""Kinds of work. ``arrange``: build a pipeline of parts in memory; ``remembered``: texts whose
embeddings are kept; ``begin``: work before the first step; ``compile``: compile blocks for a size
and length that is new to this process; ``reused``: a step that reuses the residual of the one
before; ``bytes``: size of the file."""

TOY: Final = Shape(dim=128, ffn=384, layers=6)
"""Shape of the trained tiny transformers (weights/tiny)."""

DECODE_FLOPS: Final = 8.47e6
DECODE_FLOPS_2_2: Final = 18.4e6
"""Operations per decoded pixel of the VAEs of Wan 2.1 and 2.2 (benchmarks/roofline.py)."""
TOY_DECODE_FLOPS: Final = 2e5
"""Operations that give about the toy VAE's time at the toy transformer's speed."""
UPSCALE_FLOPS: Final = 36e6
"""Operations of the upscaler per input pixel: its 16.7 million weights, and the layers behind its
two enlargements."""


class Key(NamedTuple):
    """Quantities with the same key take equally long per unit, in any job."""

    kind: Kind
    subject: str
    """The model, component, format or place that it depends on."""
    conditions: str
    """Device, layout and kernel."""


STILL_FRAMES: Final = 20
"""The work of encoding a picture and any number of grey frames, in frames. The larger levels are
nearly all of it, and stop changing after 10 to 36 frames (benchmarks/levers.py: 0.27 of 81)."""


@dataclass(frozen=True)
class Quantity:
    """Some work: ``times`` as much as ``amount``, in the kind's unit.

    The unit is operations for prompt, begin, step, reused and decode; bytes for load and upload;
    delivered pixels for bytes. ``amount`` is 0 if nothing is counted.
    """

    key: Key
    amount: float = 0.0
    times: int = 1


@dataclass(frozen=True)
class StageWork:
    """The counted work of one stage of a job."""

    stage: Stage
    once: tuple[Quantity, ...]
    """Work that does not depend on the number of steps."""
    steps: tuple[Quantity, ...] = ()
    """One quantity for each step that the stage reports."""


@dataclass(frozen=True)
class AlreadyDone:
    """The work that is already done when the job starts."""

    loaded: Collection[str]
    """Names of the pool's loaded entries."""
    has_embedding: Callable[[str, str], bool]
    """Is this text's embedding by this encoder kept?"""
    imported: bool
    """The model libraries are imported."""
    destination: str
    """Where the files go: folder, inline, bucket or caller."""
    measured: Callable[[Key, float], bool] = lambda key, amount: False
    """Has work of this kind and exactly this amount been measured here?"""


def tokens(model: Model, size: tuple[int, int], frames: int) -> int:
    """Tokens of a clip: one for each 2x2 latents of each latent frame."""
    per_frame = (size[0] // model.grid) * (size[1] // model.grid)
    return ((frames - 1) // model.temporal_stride + 1) * per_frame


def stages(
    planned: Plan, installed: Mapping[str, Installed], done: AlreadyDone
) -> tuple[StageWork, ...]:
    """The stages of a job in order, from the moment that it has the GPU.

    Args:
        installed: by model id; for a model that is not installed, the catalog's sizes count.
    """
    return tuple(_stages(planned, installed, done))


def _stages(
    planned: Plan, installed: Mapping[str, Installed], done: AlreadyDone
) -> Iterator[StageWork]:
    yield _load(planned, installed, done)
    yield _prompt(planned, installed, done)
    count = len(planned.outputs)
    done = replace(done, imported=True, loaded={*done.loaded, *_entries(planned)})
    if planned.segments:
        for _ in range(count):
            for segment in planned.segments:
                segment = replace(segment, size=segment.size or planned.size)
                yield _load(segment, installed, done)
                done = replace(done, loaded={*done.loaded, *_entries(segment)})
                yield _denoise(segment, 1, done)
                yield _decode(segment, planned)
    else:
        for first in range(0, count, planned.batch_size):
            rows = min(planned.batch_size, count - first)
            yield _denoise(planned, rows, done)
            for _ in range(rows):
                yield _decode(planned, planned)
    pixels = (planned.pixel_budget if planned.size is None else _area(planned.size)) * (
        planned.num_frames * planned.upscale**2
    )
    made = Quantity(Key("bytes", planned.output_format, _tiny_key(planned)), pixels, count)
    yield StageWork("upload", (made, Quantity(Key("upload", done.destination, ""), times=count)))


def _load(planned: Plan, installed: Mapping[str, Installed], done: AlreadyDone) -> StageWork:
    missing = [name for entry, name in _entries(planned).items() if entry not in done.loaded]
    layout_key = _layout_key(planned)
    work = [Quantity(Key("arrange", planned.model.id, layout_key))]
    if missing:
        sizes = {c.name: c.stored_bytes for c in planned.model.components}
        if planned.model.id in installed:
            sizes = dict(installed[planned.model.id].component_bytes)
        # One key for all models: their files load alike.
        work.append(Quantity(Key("load", "", layout_key), sum(sizes[name] for name in missing)))
    if not done.imported:
        work.append(Quantity(Key("import", "", "")))
    return StageWork("load", tuple(work))


def _prompt(planned: Plan, installed: Mapping[str, Installed], done: AlreadyDone) -> StageWork:
    encoder = next(c for c in planned.model.components if c.role == "text_encoder")
    texts = {output.prompt for output in planned.outputs}
    if planned.guidance_scale > 1:
        texts.add(planned.negative_prompt)
    new = sum(not done.has_embedding(text, encoder.name) for text in texts)
    if not new:
        return StageWork(
            "prompt", (Quantity(Key("remembered", encoder.name, _layout_key(planned))),)
        )
    size = encoder.stored_bytes
    if planned.model.id in installed:
        size = installed[planned.model.id].component_bytes[encoder.name]
    # Each token takes two operations for each weight of two bytes.
    flops = size * MAX_PROMPT_TOKENS
    return StageWork(
        "prompt", (Quantity(Key("prompt", encoder.name, _layout_key(planned)), flops, new),)
    )


def _denoise(planned: Plan, rows: int, done: AlreadyDone) -> StageWork:
    """The denoising of ``rows`` outputs at a time."""
    model, layout_key = planned.model, _layout_key(planned)
    job = job_size(planned)
    count = latent_frames(job) * (job.pixels // model.grid**2)
    shape = TOY if planned.tiny else shape_of(model)
    flops = rows * forward_flops(shape, count, 0 if planned.tiny else picture_tokens(model))
    encoded = 0.0
    if planned.references:
        # The 5B encodes the picture alone. The others encode a clip that begins with it.
        frames = 1 if model.expand_timesteps or planned.strength is not None else job.frames
        if not planned.layout.tiled_encode:
            frames = min(frames, STILL_FRAMES)
        encoded = job.pixels * frames * _decode_flops(planned)
    forwards = 2 if planned.guidance_scale > 1 else 1
    reused = [reused_step for expert in planned.reused for reused_step in expert]
    reused = reused or [False] * planned.steps_taken
    step_key = f"{layout_key}{_speedups_key(planned.speedups)}"
    computed_step = Quantity(Key("step", model.id, step_key), flops, forwards)
    reused_step = Quantity(Key("reused", model.id, step_key), flops, forwards)
    once = [Quantity(Key("begin", model.id, layout_key), encoded)]
    if planned.speedups.compiled and not done.measured(computed_step.key, flops):
        once.append(Quantity(Key("compile", model.id, layout_key)))
    return StageWork(
        "denoise",
        tuple(once),
        tuple(reused_step if reuse else computed_step for reuse in reused),
    )


def _decode(segment: Plan, planned: Plan) -> StageWork:
    job = job_size(segment)
    decode_key = f"{segment.device} {segment.layout.decode}{_tiny_key(segment)}"
    vae = next(c.name for c in segment.model.components if c.role == "vae")
    flops = _decode_flops(segment)
    if planned.upscale > 1:
        decode_key, flops = f"{decode_key} x{planned.upscale}", flops + UPSCALE_FLOPS
    key = Key("decode", f"{vae} {planned.output_format}", decode_key)
    return StageWork("decode_encode", (Quantity(key, flops * job.pixels * job.frames),))


def _decode_flops(planned: Plan) -> float:
    """Operations per decoded pixel."""
    if planned.tiny:
        return TOY_DECODE_FLOPS
    return DECODE_FLOPS_2_2 if VAE_2_2 in planned.model.components else DECODE_FLOPS


def _entries(planned: Plan) -> dict[str, str]:
    """The pool's entries for a plan's components, and the components' names."""
    kind = planned.layout.weight_type
    return {component.entry(kind): component.name for component in planned.model.components}


def _layout_key(planned: Plan) -> str:
    lora = " lora" if planned.loras or planned.turbo else ""
    layout = planned.layout
    return f"{planned.device} {layout.placement} {layout.weight_type}{lora}{_tiny_key(planned)}"


def _speedups_key(speedups: Speedups) -> str:
    """The speedups: they compute the same, at another speed."""
    threads = "" if speedups.threads is None else f" {speedups.threads} threads"
    batched = " together" if speedups.batched_guidance else ""
    return f" {speedups.attention[0]}{threads}{batched}{' compiled' if speedups.compiled else ''}"


def _tiny_key(planned: Plan) -> str:
    return " tiny" if planned.tiny else ""


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]
