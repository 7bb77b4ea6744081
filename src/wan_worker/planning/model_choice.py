"""Which model takes the request?

1. The model that the request names. If it can't serve the request, the refusal says what it can't
   do and which models can. A named model is never swapped.
2. Otherwise DEFAULT_MODEL, if it is installed and serves the request.
3. Otherwise the best installed model that serves it. The catalog lists the best one last. But a
   model that loses detail at the wanted size gives way to one that does not.

Pure; the catalog's data says which pictures a model takes.
Not covered: whether the model fits this machine (plan).
"""

from collections.abc import Callable, Mapping

from wan_worker.catalog.models import MODELS, Installed, Model, Size
from wan_worker.errors import InvalidRequest, ModelUnavailable, Unsupported
from wan_worker.request.parse import Acceleration, Request

Refusal = InvalidRequest | Unsupported


def choose(
    request: Request, installed: Mapping[str, Installed], default_model: str | None
) -> tuple[Model, str]:
    """The model, and the reason for the choice.

    Raises:
        InvalidRequest: the request and the model that it names contradict each other.
        Unsupported: no model makes that size.
        ModelUnavailable: a known model could serve the request, but is not installed.
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
    candidates = [m for m in able if m.id in installed]
    if not candidates:
        raise _none_installed(request, installed, able)
    for model in candidates:
        if model.id == default_model:
            return model, f"model: {model.id}, DEFAULT_MODEL, which {_task(request)}"
    return _best(request, candidates)


def why_not(request: Request, model: Model) -> Refusal | None:
    """Why this model can't serve the request, or None."""
    problem = _wrong_pictures(request, model)
    if problem is not None:
        field, rule = problem
        able = _alternatives(lambda m: _wrong_pictures(request, m) is None)
        return InvalidRequest(rule + able, field=field)
    if request.guidance_scale_2 is not None and not model.two_experts:
        return InvalidRequest(
            f"{model.id} has no second expert; give guidance_scale alone"
            + _alternatives(lambda m: m.two_experts and _wrong_pictures(request, m) is None),
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
            + _alternatives(lambda m: accelerates(m, mode) and _wrong_pictures(request, m) is None),
            field=request.pointer("acceleration"),
        )
    size = _required_size(request)
    if size is not None and _area(size) > model.max_pixels:
        return Unsupported(
            f"{model.id} is stable up to {model.max_pixels} pixels a frame, and "
            f"{size[0]}x{size[1]} has {_area(size)}"
            + _alternatives(
                lambda m: _area(size) <= m.max_pixels and _wrong_pictures(request, m) is None
            ),
            field=request.pointer("size"),
        )
    return None


def accelerates(model: Model, mode: Acceleration) -> bool:
    """Has somebody published the data that this acceleration needs for the model?"""
    if mode == "cached":
        return model.magcache is not None
    return mode == "exact" or bool(model.turbo)


def loses_detail(model: Model, area: int) -> bool:
    """Is a frame of so many pixels well below the sizes that the model is made for?"""
    return area < model.min_pixels * 0.9


def install_hint(*names: str) -> str:
    """How to install a model or extras that are not there."""
    return (
        f"{', '.join(names)} is not installed in this worker; install it with: "
        f"python download_weights.py --models {' '.join(names)}"
    )


def _wrong_pictures(request: Request, model: Model) -> tuple[str, str] | None:
    """The field and the rule, if the model can't start from the given pictures."""
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


def _best(request: Request, candidates: list[Model]) -> tuple[Model, str]:
    best = candidates[-1]
    detailed = candidates
    if request.size is not None:
        # If all lose detail: the models that are made for the smallest size.
        area = max(_area(request.size), min(model.min_pixels for model in candidates))
        detailed = [model for model in candidates if not loses_detail(model, area)]
    why = f"the best installed one that {_task(request)}"
    if detailed[-1] is not best and request.size is not None:
        why += f"; {best.id} loses detail at {request.size[0]}x{request.size[1]}"
    return detailed[-1], f"model: {detailed[-1].id}, {why}"


def _none_installed(
    request: Request, installed: Mapping[str, Installed], able: list[Model]
) -> Refusal | ModelUnavailable:
    """Why no installed model serves the request: its size, or else which model to install."""
    starting = [m for m in MODELS.values() if _wrong_pictures(request, m) is None]
    near = [m for m in starting if m.id in installed] or ([] if able else starting)
    refusal = why_not(request, near[-1]) if near else None
    if refusal is not None:
        return refusal
    if not able:
        return Unsupported("No model serves this request", field="/input")
    return ModelUnavailable(
        f"No installed model {_task(request)}. {', '.join(m.id for m in able)} could; install one "
        f"with: python download_weights.py --models {able[0].id}",
        field=request.pointer("model"),
    )


def _task(request: Request) -> str:
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


def _required_size(request: Request) -> Size | None:
    """The size that must be made. With a picture, a preset's size gives way to the model's."""
    return request.size if request.size_is_explicit or not request.references else None


def _alternatives(able: Callable[[Model], bool]) -> str:
    names = [model.id for model in MODELS.values() if able(model)]
    return f"; models that can: {', '.join(names)}" if names else ""


def _area(size: Size) -> int:
    return size[0] * size[1]
