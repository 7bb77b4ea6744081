"""What has a job to do, stage by stage, counted? Operations, pixels, bytes: no seconds.

Pure. A job passes its stages in an order that its plan fixes: ``stages`` lists them, each with the
quantities of its work. A transformer's forward is counted by formula (flops), the decoder by the
pixels that come out of it.
Not covered: how long it takes (estimate), and what is not this worker's doing: waiting for the GPU,
pictures and LoRAs that are fetched, a language model's words.
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
"""Those that an estimate covers, as the response's timings name them."""

Kind = Literal[
    "import", "load", "arrange", "prompt", "remembered", "begin", "compile", "step", "reused",
    "decode", "upload", "bytes",
]  # fmt: skip
"""What a quantity is of. ``arrange``: a pipeline of parts in memory; ``remembered``: texts whose
embeddings are; ``begin``: what passes before the first step; ``compile``: blocks, for a size and
length that this process has not seen; ``reused``: a step that takes over the one before; ``bytes``:
of the file."""

TOY: Final = Shape(dim=128, ffn=384, layers=6)
"""The trained tiny transformers' (weights/tiny)."""

DECODE_FLOPS: Final = 8.47e6
DECODE_FLOPS_2_2: Final = 18.4e6
"""Operations per decoded pixel of Wan 2.1's and 2.2's VAE (benchmarks/roofline.py)."""
TOY_DECODE_FLOPS: Final = 2e5
"""Of the toy VAE, about: as long as it takes at the speed of the toy transformer's."""
UPSCALE_FLOPS: Final = 36e6
"""Operations of the upscaler per pixel that it is given: its 16.7 million weights, and the layers
behind its two enlargements."""


class Key(NamedTuple):
    """Quantities that take equally long per unit, whichever job they are in."""

    kind: Kind
    of: str
    """The model, component, format or place that it depends on."""
    how: str
    """On what, laid out how, by which kernel."""


STILL_FRAMES: Final = 20
"""Frames' worth of work that encoding a picture and any number of grey frames comes to: the larger
levels, nearly all of it, come to rest after 10 to 36 frames (benchmarks/levers.py: 0.27 of 81)."""


@dataclass(frozen=True)
class Quantity:
    """Some work: ``times`` as much as ``amount``, in the kind's unit.

    Operations for prompt, begin, step, reused and decode; bytes for load and upload; delivered
    pixels for bytes; 0 where nothing is counted.
    """

    key: Key
    amount: float = 0.0
    times: int = 1


@dataclass(frozen=True)
class StageWork:
    """One stay of the job in a stage."""

    stage: Stage
    once: tuple[Quantity, ...]
    """Whatever the number of steps."""
    steps: tuple[Quantity, ...] = ()
    """One for each step that the stage reports."""


@dataclass(frozen=True)
class AlreadyDone:
    """What of the work is done already, as the job finds the worker."""

    loaded: Collection[str]
    """Names of the pool's entries."""
    knows: Callable[[str, str], bool]
    """Is this text's embedding kept, of this encoder?"""
    imported: bool
    """The model libraries are."""
    to: str
    """Where the files go: folder, inline, bucket or caller."""
    seen: Callable[[Key, float], bool] = lambda key, amount: False
    """Has work of this kind and very amount been measured here?"""


def tokens(model: Model, size: tuple[int, int], frames: int) -> int:
    """Of a clip: one for each 2x2 latents of each latent frame."""
    per_frame = (size[0] // model.grid) * (size[1] // model.grid)
    return ((frames - 1) // model.temporal_stride + 1) * per_frame


def stages(
    planned: Plan, installed: Mapping[str, Installed], done: AlreadyDone
) -> tuple[StageWork, ...]:
    """The stages of a job in order, from the moment that it has the GPU.

    Args:
        installed: by model id; of a model that is not here, the catalog's sizes are taken.
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
    made = Quantity(Key("bytes", planned.output_format, _toy(planned)), pixels, count)
    yield StageWork("upload", (made, Quantity(Key("upload", done.to, ""), times=count)))


def _load(planned: Plan, installed: Mapping[str, Installed], done: AlreadyDone) -> StageWork:
    missing = [name for entry, name in _entries(planned).items() if entry not in done.loaded]
    how = _how(planned)
    work = [Quantity(Key("arrange", planned.model.id, how))]
    if missing:
        sizes = {c.name: c.stored_bytes for c in planned.model.components}
        if planned.model.id in installed:
            sizes = dict(installed[planned.model.id].component_bytes)
        # Of all models together: files are files.
        work.append(Quantity(Key("load", "", how), sum(sizes[name] for name in missing)))
    if not done.imported:
        work.append(Quantity(Key("import", "", "")))
    return StageWork("load", tuple(work))


def _prompt(planned: Plan, installed: Mapping[str, Installed], done: AlreadyDone) -> StageWork:
    encoder = next(c for c in planned.model.components if c.role == "text_encoder")
    texts = {output.prompt for output in planned.outputs}
    if planned.guidance_scale > 1:
        texts.add(planned.negative_prompt)
    new = sum(not done.knows(text, encoder.name) for text in texts)
    if not new:
        return StageWork("prompt", (Quantity(Key("remembered", encoder.name, _how(planned))),))
    size = encoder.stored_bytes
    if planned.model.id in installed:
        size = installed[planned.model.id].component_bytes[encoder.name]
    # Two operations for each weight of two bytes and each token.
    flops = size * MAX_PROMPT_TOKENS
    return StageWork("prompt", (Quantity(Key("prompt", encoder.name, _how(planned)), flops, new),))


def _denoise(planned: Plan, rows: int, done: AlreadyDone) -> StageWork:
    """Of so many outputs at a time."""
    model, how = planned.model, _how(planned)
    job = job_size(planned)
    count = latent_frames(job) * (job.pixels // model.grid**2)
    shape = TOY if planned.tiny else shape_of(model)
    flops = rows * forward_flops(shape, count, 0 if planned.tiny else picture_tokens(model))
    encoded = 0.0
    if planned.references:
        # The 5B encodes the picture alone, the others a clip that begins with it.
        frames = 1 if model.expand_timesteps or planned.strength is not None else job.frames
        if not planned.layout.tiled_encode:
            frames = min(frames, STILL_FRAMES)
        encoded = job.pixels * frames * _decode_flops(planned)
    forwards = 2 if planned.guidance_scale > 1 else 1
    reused = [spared for expert in planned.reused for spared in expert]
    reused = reused or [False] * planned.steps_taken
    chosen = f"{how}{_computed(planned.speedups)}"
    computed = Quantity(Key("step", model.id, chosen), flops, forwards)
    spared = Quantity(Key("reused", model.id, chosen), flops, forwards)
    once = [Quantity(Key("begin", model.id, how), encoded)]
    if planned.speedups.compiled and not done.seen(computed.key, flops):
        once.append(Quantity(Key("compile", model.id, how)))
    return StageWork(
        "denoise",
        tuple(once),
        tuple(spared if one else computed for one in reused),
    )


def _decode(segment: Plan, planned: Plan) -> StageWork:
    job = job_size(segment)
    how = f"{segment.device} {segment.layout.decode}{_toy(segment)}"
    vae = next(c.name for c in segment.model.components if c.role == "vae")
    flops = _decode_flops(segment)
    if planned.upscale > 1:
        how, flops = f"{how} x{planned.upscale}", flops + UPSCALE_FLOPS
    key = Key("decode", f"{vae} {planned.output_format}", how)
    return StageWork("decode_encode", (Quantity(key, flops * job.pixels * job.frames),))


def _decode_flops(planned: Plan) -> float:
    """Per pixel."""
    if planned.tiny:
        return TOY_DECODE_FLOPS
    return DECODE_FLOPS_2_2 if VAE_2_2 in planned.model.components else DECODE_FLOPS


def _entries(planned: Plan) -> dict[str, str]:
    """The pool's entries of a plan's components, and their names."""
    kind = planned.layout.weight_type
    return {component.entry(kind): component.name for component in planned.model.components}


def _how(planned: Plan) -> str:
    adapted = " lora" if planned.loras or planned.turbo else ""
    layout = planned.layout
    return f"{planned.device} {layout.placement} {layout.weight_type}{adapted}{_toy(planned)}"


def _computed(speedups: Speedups) -> str:
    """Ways to compute the same that differ in speed."""
    threads = "" if speedups.threads is None else f" {speedups.threads} threads"
    together = " together" if speedups.batched_guidance else ""
    return f" {speedups.attention[0]}{threads}{together}{' compiled' if speedups.compiled else ''}"


def _toy(planned: Plan) -> str:
    return " tiny" if planned.tiny else ""


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]
