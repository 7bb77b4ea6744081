"""Is a video longer than its model was trained for? Then it is made in segments.

A Wan model works well at the length that it was trained on. Beyond that it repeats itself, and its
cost grows with the square of the length. So a longer video is planned as a chain. Segment 1 is made
as asked. A model that starts from a picture makes each further segment from the last frame so far.
That frame is in both segments and is delivered once. Segment k of an output has its seed + k - 1.

``make`` plans every job: it answers with a plan of one clip wherever one clip is enough.
Not covered: making the frames (pipelines.long_video).
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Final

from wan_worker.catalog.models import MODELS, Model
from wan_worker.errors import InvalidRequest, ModelUnavailable, WorkerError
from wan_worker.planning import plan
from wan_worker.planning.activations import shape_of
from wan_worker.planning.deployment import Deployment
from wan_worker.planning.memory import gb, loaded_bytes, stay_together
from wan_worker.planning.model_choice import accelerates
from wan_worker.planning.plan import Plan
from wan_worker.request.outputs import LARGEST_SEED, Output
from wan_worker.request.parse import Notice, Request

MAX_SEGMENTS: Final = 8
"""Each segment starts from pixels that a model drew, so faults add up; 40 s at 16 fps."""

LAST_FRAME: Final = "the last frame of the segment before"
"""Stands for the picture in the request of a further segment."""


def make(request: Request, deployment: Deployment) -> Plan:
    """The plan of a job: one clip, or a chain of clips. Raises as ``plan.make`` does, and more.

    Raises:
        InvalidRequest: the video is longer than a chain may be.
        ModelUnavailable: it is longer than one clip may be, and no installed model can go on.
    """

    plan_clip = partial(plan.make, deployment=deployment)
    if request.mode == "image" or (request.num_frames is None and request.duration is None):
        return plan_clip(request)
    start = plan_clip(replace(request, num_frames=1, duration=None, notices=()))
    model, frames = start.model, request.num_frames
    if request.duration is not None:
        frames = max(1, round(request.duration * start.fps))
    if frames is None or frames <= model.native_frames + model.temporal_stride:
        return plan_clip(request)
    for following in _candidates(model, request):
        lengths = split(frames, min(model.native_frames, following.native_frames), model)
        first, *others = _requests(request, start, following, lengths, frames)
        first_plan = plan_clip(first)  # an error here is an error of the request
        try:
            segments = (first_plan, *map(plan_clip, others))
        except WorkerError:
            continue  # it is not installed, its range is too small, or it does not fit
        if len(segments) > MAX_SEGMENTS:
            longest = MAX_SEGMENTS * (model.native_frames - 1) + 1
            raise InvalidRequest(
                f"{model.id} makes up to {longest} frames in {MAX_SEGMENTS} segments, "
                f"{longest / start.fps:.1f} s at {start.fps} fps",
                field=_pointer(request),
            )
        return _joined(frames, start, segments, deployment)
    return _one_pass(
        request, start, frames, plan_clip(request) if frames <= model.max_frames else None
    )


def split(frames: int, longest: int, model: Model) -> tuple[int, ...]:
    """Frames that each segment generates; they include the frame shared with the one before.

    All are 4k+1, none is over ``longest``, and they differ by one latent frame at most: a short
    last segment would hardly move.
    """
    stride = model.temporal_stride
    latent_frames = math.ceil((frames - 1) / stride)
    count = math.ceil(latent_frames / ((longest - 1) // stride))
    base, extra = divmod(latent_frames, count)
    return tuple((base + (index < extra)) * stride + 1 for index in range(count))


def _candidates(model: Model, request: Request) -> Iterator[Model]:
    """Models that can go on from a frame of this one, best first. LoRAs must fit both."""
    if _starts_from_a_picture(model):
        yield model
    if model.image != "none":
        return
    for other in reversed(tuple(MODELS.values())):
        if not accelerates(other, request.acceleration):
            continue
        if request.loras and shape_of(other).dim != shape_of(model).dim:
            continue
        geometry = (other.grid, other.temporal_stride, other.fps)
        if _starts_from_a_picture(other) and geometry == (
            model.grid,
            model.temporal_stride,
            model.fps,
        ):
            yield other


def _starts_from_a_picture(model: Model) -> bool:
    return model.image != "none" and model.last_image != "required"


def _requests(
    request: Request, start: Plan, following: Model, lengths: tuple[int, ...], frames: int
) -> Iterator[Request]:
    """The request for each segment, as if it were a job of its own."""
    surplus = 1 + sum(length - 1 for length in lengths) - frames
    for index, length in enumerate(lengths):
        last = index == len(lengths) - 1
        asked = replace(
            request,
            model=start.model.id,
            last_image=request.last_image if last else None,
            num_frames=length - (surplus if last else 0),
            duration=None,
            notices=(),
        )
        if index > 0:
            outputs = tuple(
                Output(output.prompt, (output.seed + index) % (LARGEST_SEED + 1))
                for output in request.outputs
            )
            asked = replace(asked, model=following.id, image=LAST_FRAME, outputs=outputs)
            if start.size is not None:
                asked = replace(asked, size=start.size, size_is_explicit=True)
        yield asked


def _joined(frames: int, start: Plan, segments: tuple[Plan, ...], deployment: Deployment) -> Plan:
    first, second = segments[0], segments[1]
    count, model, following = len(segments), first.model, second.model
    lengths = [first.num_frames, *(segment.num_frames - 1 for segment in segments[1:])]
    reasons = [reason for reason in start.reasons if reason.startswith("model")]
    reasons += [r for r in first.reasons if not r.startswith(("batch_size", "model"))]
    reasons.append(
        f"segments: {' + '.join(map(str, lengths))} frames, each from the last one before"
    )
    if len(first.outputs) > 1:
        reasons.append("batch_size: 1, the segments of a long video follow each other")
    if following is not model:
        reasons.append(
            f"model: {following.id} for segments 2 to {count}, the best installed one that goes on "
            f"from a frame of {model.id}"
        )
        not_repeated = ("model", "size", "num_frames", "generated", "batch_size")
        reasons += [
            f"segments 2 to {count}: {reason}"
            for reason in second.reasons
            if reason not in first.reasons and not reason.startswith(not_repeated)
        ]
        reasons.append(_memory_reason(first, second, deployment))
    notice = Notice(
        "CHAINED",
        f"{model.id} was trained on {model.native_frames} frames: the video is made in {count} "
        "segments, each from the last frame before it; what leaves the picture may come back "
        "changed.",
    )
    return replace(
        first,
        num_frames=frames,
        batch_size=1,
        segments=segments,
        reasons=tuple(reasons),
        notices=(*first.notices, notice),
    )


def _memory_reason(first: Plan, second: Plan, deployment: Deployment) -> str:
    hardware, installed = deployment.hardware, deployment.installed
    first_bytes, second_bytes = (
        loaded_bytes(installed[segment.model.id], hardware) for segment in (first, second)
    )
    both = gb(sum({**first_bytes, **second_bytes}.values()))
    if stay_together(hardware, first.layout, second.layout, first_bytes, second_bytes):
        return f"memory: both models stay loaded, {both}"
    return f"memory: the models take turns, {both} together do not fit"


def _one_pass(request: Request, start: Plan, frames: int, single: Plan | None) -> Plan:
    """The plan if no installed model can go on: one clip, with a warning, or a refusal."""
    area = 0 if start.size is None else start.size[0] * start.size[1]
    fitting = [
        m for m in _candidates(start.model, request) if m.max_pixels >= area and m != start.model
    ]
    if single is not None:
        why = f"; {fitting[-1].id}, installed, would make it in segments" if fitting else ""
        return replace(single, reasons=(*single.reasons, f"segments: 1{why}"))
    longest = f"{start.model.id} makes up to {start.model.max_frames} frames at a time"
    if not fitting:
        raise InvalidRequest(
            f"{longest}, {start.model.max_frames / start.fps:.1f} s at {start.fps} fps",
            field=_pointer(request),
        )
    raise ModelUnavailable(
        f"{longest}; longer videos need a model that goes on from their last frame on this GPU: "
        f"{', '.join(m.id for m in fitting)}. Install one with: "
        f"python download_weights.py --models {fitting[-1].id}",
        field=_pointer(request),
    )


def _pointer(request: Request) -> str:
    return request.pointer("num_frames" if request.duration is None else "duration")
