"""Which model takes the request?

1. The one that was named, or a refusal that says what it can't do and which models can. A named
   model is never swapped.
2. Else DEFAULT_MODEL, where it is installed and serves the request.
3. Else the best installed one that serves it: the catalog's order, best last, but one that loses
   detail at the wanted size gives way to one that does not.

Pure; the catalog says by data which pictures a model takes.
Not covered: whether it fits this machine (plan).
"""

from collections.abc import Callable, Mapping

from wan_worker.catalog.models import MODELS, Installed, Model, Size
from wan_worker.errors import InvalidRequest, ModelUnavailable, Unsupported
from wan_worker.request.parse import Acceleration, Request

Refusal = InvalidRequest | Unsupported


def choose(
    request: Request, installed: Mapping[str, Installed], default_model: str | None
) -> tuple[Model, str]:
    """The model, and the reason for it.

    Raises:
        InvalidRequest: the request and the model that it names contradict each other.
        Unsupported: no model makes that size.
        ModelUnavailable: a model that could is known but not installed.
    """
    if request.model != "auto":
        model = MODELS[request.model]
        refusal = why_not(request, model)
        if refusal is not None:
            raise refusal
        if model.id not in installed:
            raise ModelUnavailable(install_hint(model.id), field=request.pointer("model"))
        return model, f"model: {model.id}, as named"
    able = [m for m in MODELS.values() if why_not(request, m) is None]
    here = [m for m in able if m.id in installed]
    if not here:
        raise _nothing_here(request, installed, able)
    for model in here:
        if model.id == default_model:
            return model, f"model: {model.id}, DEFAULT_MODEL, which {_kind(request)}"
    return _best(request, here)


def why_not(request: Request, model: Model) -> Refusal | None:
    """Why this model can't serve the request, or None."""
    problem = _wrong_start(request, model)
    if problem is not None:
        field, rule = problem
        able = _others(lambda m: _wrong_start(request, m) is None)
        return InvalidRequest(rule + able, field=field)
    if request.guidance_scale_2 is not None and not model.two_experts:
        return InvalidRequest(
            f"{model.id} has no second expert; give guidance_scale alone"
            + _others(lambda m: m.two_experts and _wrong_start(request, m) is None),
            field=request.pointer("guidance_scale_2"),
        )
    staged = [lora for lora in request.loras if lora.stage != "both"]
    if staged and not model.two_experts:
        return InvalidRequest(
            f"{model.id} has one expert; leave stage out", field=f"{staged[0].field}/stage"
        )
    if not accelerates(model, request.acceleration):
        lacks = {
            "cached": f"Nobody has published for {model.id} which steps could be spared",
            "turbo": f"No weights for few steps are known for {model.id}",
        }
        mode = request.acceleration
        return InvalidRequest(
            lacks[mode]
            + _others(lambda m: accelerates(m, mode) and _wrong_start(request, m) is None),
            field=request.pointer("acceleration"),
        )
    size = _bound(request)
    if size is not None and _area(size) > model.max_pixels:
        return Unsupported(
            f"{model.id} is stable up to {model.max_pixels} pixels a frame, and "
            f"{size[0]}x{size[1]} has {_area(size)}"
            + _others(lambda m: _area(size) <= m.max_pixels and _wrong_start(request, m) is None),
            field=request.pointer("size"),
        )
    return None


def accelerates(model: Model, mode: Acceleration) -> bool:
    """Has somebody published what this acceleration needs to know of the model?"""
    if mode == "cached":
        return model.magcache is not None
    return mode == "exact" or bool(model.turbo)


def loses_detail(model: Model, area: int) -> bool:
    """Is a frame of that many pixels well under what the model is made for?"""
    return area < model.min_pixels * 0.9


def install_hint(*names: str) -> str:
    """What to do about a model or extras that are not there."""
    return (
        f"{', '.join(names)} is not installed in this worker; install it with: "
        f"python download_weights.py --models {' '.join(names)}"
    )


def _wrong_start(request: Request, model: Model) -> tuple[str, str] | None:
    """Field and rule, where the model does not start from what is given."""
    first, last = request.image is not None, request.last_image is not None
    if request.mode == "image":
        if model.text_pipeline is None:
            return request.pointer("model"), f"{model.id} makes videos only"
        return None
    if first and model.image == "none":
        return request.pointer("image_url"), f"{model.id} takes no image"
    if last and model.last_image == "none":
        return request.pointer("last_image_url"), f"{model.id} takes no last image"
    if not first and (model.image == "required" or not (last or model.text_pipeline)):
        return request.pointer("image_url"), f"{model.id} needs an image"
    if not last and model.last_image == "required":
        return request.pointer("last_image_url"), f"{model.id} needs a last image"
    return None


def _best(request: Request, here: list[Model]) -> tuple[Model, str]:
    best = here[-1]
    sharp = here
    if request.size is not None:
        # Where all lose some, those that are made for the least.
        area = max(_area(request.size), min(model.min_pixels for model in here))
        sharp = [model for model in here if not loses_detail(model, area)]
    why = f"the best installed one that {_kind(request)}"
    if sharp[-1] is not best and request.size is not None:
        why += f"; {best.id} loses detail at {request.size[0]}x{request.size[1]}"
    return sharp[-1], f"model: {sharp[-1].id}, {why}"


def _nothing_here(
    request: Request, installed: Mapping[str, Installed], able: list[Model]
) -> Refusal | ModelUnavailable:
    """A size that the installed models don't make is the answer, before one that is not here."""
    starting = [m for m in MODELS.values() if _wrong_start(request, m) is None]
    near = [m for m in starting if m.id in installed] or ([] if able else starting)
    refusal = why_not(request, near[-1]) if near else None
    if refusal is not None:
        return refusal
    if not able:
        return Unsupported("No model serves this request", field="/input")
    return ModelUnavailable(
        f"No installed model {_kind(request)}. {', '.join(m.id for m in able)} could; install one "
        f"with: python download_weights.py --models {able[0].id}",
        field=request.pointer("model"),
    )


def _kind(request: Request) -> str:
    if request.mode == "image":
        return "redraws an image" if request.image is not None else "makes pictures from text"
    match request.image is not None, request.last_image is not None:
        case True, True:
            return "takes a first and a last image"
        case True, False:
            return "takes an image"
        case False, True:
            return "takes a last image"
    return "makes pictures from text"


def _bound(request: Request) -> Size | None:
    """The size that must be made; a preset's gives way to the model's where a picture sets it."""
    return request.size if request.size_is_explicit or not request.references else None


def _others(able: Callable[[Model], bool]) -> str:
    names = [model.id for model in MODELS.values() if able(model)]
    return f"; models that can: {', '.join(names)}" if names else ""


def _area(size: Size) -> int:
    return size[0] * size[1]
