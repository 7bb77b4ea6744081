"""Which size, length and numbers apply if the request and its preset leave them open? Pure.

What the request asks for is taken. Otherwise the model's own value is taken, with a reason for
each. A shape that comes from a picture is not known yet: only its number of pixels is resolved.
Not covered: the model (model_choice), where it runs (memory).
"""

from dataclasses import dataclass
from typing import Any

from wan_worker.catalog.models import Model, Size
from wan_worker.errors import InvalidRequest
from wan_worker.planning import solvers
from wan_worker.planning.model_choice import loses_detail
from wan_worker.request.parse import Notice, Request


@dataclass(frozen=True)
class Resolved:
    """All numbers of a job. Only a shape that comes from a picture is still open."""

    size: Size | None
    """Width and height as delivered, before upscaling; None: the picture's shape."""
    pixel_budget: int
    """Pixels of a frame if the shape is the picture's."""
    num_frames: int
    fps: int
    num_inference_steps: int
    guidance_scale: float
    guidance_scale_2: float | None
    solver: str
    flow_shift: float
    reasons: tuple[str, ...]
    notices: tuple[Notice, ...]

    @property
    def area(self) -> int:
        """Pixels of a frame, at most."""
        return self.pixel_budget if self.size is None else _area(self.size)


def resolve(request: Request, model: Model, *, tiny: bool) -> Resolved:
    """The request's numbers for a model.

    Args:
        tiny: whether the model is the toy one, for which no size is too small.

    Raises:
        InvalidRequest: the request asks for more frames than the model makes at a time.
    """
    reasons: list[str] = []
    notices: list[Notice] = []
    size, budget = request.size, model.default_size[0] * model.default_size[1]
    if request.mode == "image" and size is not None:
        budget = max(budget, min(_area(size), model.max_pixels))
    if request.references and not request.size_is_explicit:
        if size is not None and size[0] * size[1] < budget:
            budget = size[0] * size[1]
            reasons.append(f"size: the image's shape at the preset's {budget} pixels")
        else:
            reasons.append(f"size: the image's shape at {model.id}'s {budget} pixels")
        if size is not None and size[0] * size[1] > budget:
            notices.append(
                Notice(
                    "SIZE_REDUCED",
                    f"The preset asks for {size[0]}x{size[1]}; {model.id} is made for "
                    f"{budget} pixels, so the image's shape was taken at that area.",
                )
            )
        size = None
    elif size is None:
        size = _oriented(model.default_size, request.orientation)
        reasons.append(f"size: {size[0]}x{size[1]}, native to {model.id}")
    area = budget if size is None else size[0] * size[1]
    if not tiny and loses_detail(model, area):
        notices.append(
            Notice(
                "SMALL_SIZE", f"{model.id} loses detail below {model.min_pixels} pixels a frame."
            )
        )

    fps = model.fps if request.mode == "image" else _pick(request.fps, model.fps, "fps", reasons)
    num_frames = _num_frames(request, model, fps, reasons)
    if num_frames > model.native_frames + model.temporal_stride:
        notices.append(
            Notice(
                "BEYOND_NATIVE_LENGTH",
                f"{model.id} was trained on {model.native_frames} frames; "
                "longer clips may repeat or lose their subject.",
            )
        )
    steps = _pick(request.num_inference_steps, model.steps, "num_inference_steps", reasons)
    guidance = _pick(request.guidance_scale, model.guidance_scale, "guidance_scale", reasons)
    guidance_2 = _guidance_2(request, model, reasons, notices)
    solver = _pick(request.solver, solvers.DEFAULT, "solver", reasons)
    flow_shift = request.flow_shift
    if flow_shift is None and model.flow_shift is not None:
        flow_shift = _pick(None, model.flow_shift, "flow_shift", reasons)
    elif flow_shift is None:
        # Wan's own scheduler configuration has these two values, for 480p and 720p.
        flow_shift = 3.0 if area <= 854 * 480 else 5.0
        reasons.append(f"flow_shift: {flow_shift}, Wan's own for {area} pixels a frame")
    return Resolved(
        size=size,
        pixel_budget=budget,
        num_frames=num_frames,
        fps=fps,
        num_inference_steps=steps,
        guidance_scale=float(guidance),
        guidance_scale_2=guidance_2,
        solver=solver,
        flow_shift=float(flow_shift),
        reasons=tuple(reasons),
        notices=tuple(notices),
    )


def _num_frames(request: Request, model: Model, fps: int, reasons: list[str]) -> int:
    if request.mode == "image":
        return 1
    if request.duration is not None:
        frames, field = max(1, round(request.duration * fps)), "duration"
        reasons.append(f"num_frames: {frames}, {request.duration:g} s at {fps} fps")
    else:
        frames = _pick(request.num_frames, model.native_frames, "num_frames", reasons)
        field = "num_frames"
    if frames > model.max_frames:
        raise InvalidRequest(
            f"{model.id} makes up to {model.max_frames} frames, "
            f"{model.max_frames / fps:.1f} s at {fps} fps",
            field=request.pointer(field),
        )
    return frames


def _guidance_2(
    request: Request, model: Model, reasons: list[str], notices: list[Notice]
) -> float | None:
    if not model.two_experts:
        return None
    if request.guidance_scale_2 is not None:
        if request.guidance_scale == 1:
            notices.append(
                Notice("GUIDANCE_OFF", "guidance_scale 1 turns guidance off for both experts.")
            )
        return float(request.guidance_scale_2)
    if request.guidance_scale is None:
        return float(_pick(None, model.guidance_scale_2, "guidance_scale_2", reasons))
    reasons.append("guidance_scale_2: as guidance_scale, for the low-noise expert too")
    return float(request.guidance_scale)


def _pick(asked: Any, native: Any, name: str, reasons: list[str]) -> Any:
    if asked is not None:
        return asked
    reasons.append(f"{name}: {native}, the model's default")
    return native


def _oriented(size: Size, orientation: str | None) -> Size:
    return (size[1], size[0]) if orientation == "portrait" else size


def _area(size: Size) -> int:
    return size[0] * size[1]
