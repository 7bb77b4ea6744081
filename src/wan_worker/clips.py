"""From a plan to checked files, output by output: the part of a job that needs the GPU.

Outputs are denoised in batches of the plan's size and decoded one by one. A long video is made
segment by segment into one file.
Promises: a finished file is in ``made`` before the next one is begun, so that a later fault can't
lose it. Where a long video fails midway, the frames made until then are a file too.
Not covered: holding the GPU (worker), saving the files (delivery).
"""

import logging
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wan_worker.catalog.models import Installed
from wan_worker.errors import OutOfMemory
from wan_worker.faults import is_out_of_memory
from wan_worker.inputs.references import References
from wan_worker.machine.hardware import Hardware
from wan_worker.media import artifact, encode, upscale
from wan_worker.media.artifact import Artifact
from wan_worker.pipelines import generate, lora, offload
from wan_worker.pipelines.long_video import LongVideo
from wan_worker.pipelines.pool import Pool
from wan_worker.planning import out_of_memory
from wan_worker.planning.plan import Plan
from wan_worker.request.loras import Lora
from wan_worker.settings import Placement
from wan_worker.timing.progress import Control, Part
from wan_worker.weights.lora_files import LoraFile
from wan_worker.weights.real_esrgan import Parameters

if TYPE_CHECKING:
    from wan_worker.pipelines.generate import Frames


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClipContext:
    """What a job's clips are made with."""

    pool: Pool
    hardware: Hardware
    installed: Mapping[str, Installed]
    extras: Mapping[str, Installed]
    """Components beside the models, by name."""
    loras: tuple[LoraFile, ...]
    placement: Placement | None
    """The operator's; None leaves it to the plan."""
    ffmpeg: str
    folder: Path
    """The job's temp folder. Files in it are named by their output's index."""


def make(
    planned: Plan,
    pictures: References,
    context: ClipContext,
    made: list[Artifact],
    control: Control,
) -> Plan:
    """Make every output of the plan, and add its file to ``made``.

    Where memory runs out, the outputs that are not made yet get one more try, with less memory.

    Args:
        pictures: at the plan's generated size.

    Returns:
        The plan as it was carried out, with the notices from the way.

    Raises:
        OutOfMemory: in the second try too; its message says what would take less.
    """
    here = context.installed[planned.model.id]
    _use_threads(planned)
    try:
        return _make(planned, pictures, context, made, control)
    except Exception as problem:
        if not is_out_of_memory(problem):
            raise
    # Outside the except clause: its traceback would hold the tensors that must be freed.
    log.warning("out of memory in stage %s: trying again in less", control.stage)
    context.pool.free()
    control.parts = ()
    planned = out_of_memory.lower_layout(
        planned, here, context.hardware, context.placement, control.stage
    )
    try:
        return _make(planned, pictures, context, made, control)
    except Exception as problem:
        if not is_out_of_memory(problem):
            raise
    context.pool.free()
    raise OutOfMemory(
        f"Out of memory, in a second try with less of it too: {out_of_memory.advice(planned, here)}"
    )


def _make(
    planned: Plan,
    pictures: References,
    context: ClipContext,
    made: list[Artifact],
    control: Control,
) -> Plan:
    count = len(planned.outputs)
    with _pipeline(planned, context, control) as (pipeline, fits, planned):
        planned = _with_loras(planned, context.loras, fits)
        network = context.pool.upscaler(planned, context.extras)
        control.enter("prompt")
        embeds, negative_embeds, notices = generate.encode_prompts(
            pipeline, planned, context.pool.embeddings
        )
        for first in range(len(made), 0 if planned.segments else count, planned.batch_size):
            rows = slice(first, min(first + planned.batch_size, count))
            control.parts = _parts(rows.start, rows.stop, count)
            control.enter("denoise")
            batch = replace(planned, outputs=planned.outputs[rows])
            latents = generate.denoise(
                pipeline, batch, embeds[rows], negative_embeds, pictures, control
            )
            for index in range(rows.start, rows.stop):
                control.parts = _parts(index, index + 1, count)
                control.enter("decode_encode")
                clip = latents[index - first : index - first + 1]
                frames = generate.frames(pipeline.vae, clip, planned, control)
                made.append(_file(frames, network, index, planned, context, control))
    del pipeline  # the pool may have to drop its parts for those of the next segment
    for index in range(len(made), count if planned.segments else 0):
        control.parts = _parts(index, index + 1, count)
        video = LongVideo(
            of_output(planned, index),
            embeds[index : index + 1],
            negative_embeds,
            pictures,
            lambda segment: _pipeline(segment, context, control),
            control,
        )
        made.append(_file(video.frames(), network, index, planned, context, control))
        if video.failure is not None:  # raised only now, when its file is in ``made``
            raise video.failure
    control.parts = ()
    planned = context.pool.compiler.explain(planned)
    return replace(planned, notices=(*planned.notices, *notices))


def _use_threads(planned: Plan) -> None:
    """Set torch's threads for this job. The next job sets its own."""
    import torch

    usual = _usual_threads()  # before anything is set, also where this job has a number of its own
    torch.set_num_threads(planned.speedups.threads or usual)


@cache
def _usual_threads() -> int:
    """torch's own choice. The first call must come before anything is set."""
    import torch

    return torch.get_num_threads()


@contextmanager
def _pipeline(
    planned: Plan, context: ClipContext, control: Control
) -> Iterator[tuple[Any, tuple[lora.Fit, ...], Plan]]:
    """The plan's pipeline with the job's LoRAs on it, how they fit, and the updated plan."""
    control.enter("load")
    here = context.installed[planned.model.id]
    pipeline = context.pool.pipeline(planned, here, control.check)
    with lora.applied(pipeline, (*_distilled(planned, context), *context.loras)) as fits:
        # After the LoRAs: offload hooks take stock of the weights when they are put on.
        offload.arrange(pipeline, planned)
        planned = context.pool.attention.use(pipeline, planned)
        with context.pool.compiler.applied(pipeline, planned):
            yield pipeline, fits, planned


def _distilled(planned: Plan, context: ClipContext) -> tuple[LoraFile, ...]:
    """The plan's distilled weights, as LoRAs of the job."""
    files = []
    for one in planned.model.turbo if planned.turbo else ():
        name = one.component.name
        path = context.extras[name].folders[name] / one.component.file
        files.append(LoraFile(Lora(name, stage=one.stage, field="/input/acceleration"), path))
    return tuple(files)


def _with_loras(planned: Plan, files: tuple[LoraFile, ...], fits: tuple[lora.Fit, ...]) -> Plan:
    """The plan with the hash, matched tensors and notices of each LoRA on the model."""
    asked_for = fits[len(fits) - len(files) :]  # those of the distilled weights come before them
    known = tuple(
        replace(asked, sha256=file.sha256, matched=fit.matched)
        for asked, file, fit in zip(planned.loras, files, asked_for, strict=True)
    )
    notices = tuple(notice for fit in fits for notice in fit.notices)
    return replace(planned, loras=known, notices=(*planned.notices, *notices))


def of_output(planned: Plan, index: int) -> Plan:
    """The same plan for one of its outputs."""
    row = slice(index, index + 1)
    segments = tuple(replace(s, outputs=s.outputs[row]) for s in planned.segments)
    return replace(planned, outputs=planned.outputs[row], segments=segments)


def _file(
    source: Generator["Frames", None, None],
    network: Parameters | None,
    index: int,
    planned: Plan,
    context: ClipContext,
    control: Control,
) -> Artifact:
    """One output's frames as a checked file."""
    spec = _spec(planned)
    target = context.folder / f"{index}.{encode.EXTENSIONS[planned.output_format]}"
    # Closed here: the garbage collector would close a decode later, and clear the VAE's caches in
    # the middle of the next job.
    with (
        closing(source),
        closing(
            upscale.frames(source, network, planned.upscale, context.hardware, control)
        ) as frames,
        artifact.reader(target, spec, context.ffmpeg) as reader,
    ):
        written = encode.write(frames, target, spec, control, context.ffmpeg)
        if written == spec.num_frames:  # fewer: an error ended it, which names its own stage
            control.enter("check")
        return artifact.check(target, replace(spec, num_frames=written), control, reader)


def _parts(first: int, last: int, count: int) -> tuple[Part, ...]:
    """Outputs ``first`` up to ``last``, exclusive, from 0. Empty where there is one output."""
    return (Part("output", first + 1, last, count),) if count > 1 else ()


def _spec(planned: Plan) -> encode.Spec:
    width, height = planned.delivered_size
    return encode.Spec(
        format=planned.output_format,
        width=width,
        height=height,
        num_frames=planned.num_frames,
        fps=planned.fps if planned.mode == "video" else None,
        may_end_early=bool(planned.segments),
    )
