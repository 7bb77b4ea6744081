"""Which pictures does the job start from? Fetched, decoded, and at the size of its plan.

Fit rule: the size comes from the request, or from the first picture that is there (the last frame's
where it is alone); each picture is then scaled to cover that size and cropped at the centre.

Promises: a picture is refused by the field that it was given under; with ``reference_fallback`` one
that can't be used is left out with a warning, all of them where no model serves the rest.
Not covered: the rules of a single picture (images), of addresses (net), of models (plan).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from wan_worker.errors import (
    FetchFailed,
    ImageRejected,
    ModelUnavailable,
    UrlBlocked,
    WorkerError,
)
from wan_worker.inputs import images, net
from wan_worker.inputs.dialing import Policy
from wan_worker.inputs.images import Decoded
from wan_worker.planning.plan import Plan, fit_to_image
from wan_worker.request.parse import REFERENCES, Notice, Request
from wan_worker.settings import Settings
from wan_worker.timing.progress import Control

if TYPE_CHECKING:
    from PIL.Image import Image

FETCH_SECONDS: Final = 30.0

Replan = Callable[[Request], Plan]
"""The plan of a request, or the error that refuses it."""


@dataclass(frozen=True)
class References:
    """RGB pictures at the plan's generated size."""

    first: "Image | None" = None
    """A video's first frame, or what an image is made from."""
    last: "Image | None" = None


def plan_with(asked: Request, replan: Replan) -> tuple[Request, Plan]:
    """The plan; with ``reference_fallback``, of fewer pictures where no model is here for them."""
    try:
        return asked, replan(asked)
    except ModelUnavailable as problem:
        if not asked.references or asked.model != "auto" or not asked.reference_fallback:
            raise
        return _plan_without("last_image_url", asked, problem, replan)


def check(asked: Request) -> None:
    """Refuse what can't hold a picture.

    Raises:
        UrlBlocked: a path, or a URL of another scheme.
    """
    for name in asked.references:
        images.kind(asked.reference(name) or "", asked.pointer(name))


def gather(
    asked: Request,
    planned: Plan,
    replan: Replan,
    settings: Settings,
    policy: Policy,
    control: Control,
) -> tuple[Plan, References]:
    """Fetch the request's pictures, and settle the plan's size by them.

    Raises:
        UrlBlocked, ImageRejected, FetchFailed: a picture can't be used, and must be.
    """
    found: dict[str, Decoded] = {}
    for name in asked.references:
        if name not in asked.references:  # given up by an earlier one
            continue
        try:
            found[name] = _fetch(asked, name, settings, policy, control)
        except (UrlBlocked, ImageRejected, FetchFailed) as problem:
            if not asked.reference_fallback:
                raise
            asked, planned = _plan_without(name, asked, problem, replan)
    pictures = {name: found[name] for name in asked.references}
    if not pictures:
        return planned, References()
    planned = fit_to_image(planned, *(decoded.image.size for decoded in pictures.values()))
    notices = [Notice(*warning) for decoded in pictures.values() for warning in decoded.warnings]
    size = planned.generated_size
    first, last = (
        images.cover(pictures[name].image, *size) if name in pictures else None
        for name in REFERENCES
    )
    return replace(planned, notices=(*planned.notices, *notices)), References(first, last)


def _plan_without(
    name: str, asked: Request, problem: WorkerError, replan: Replan
) -> tuple[Request, Plan]:
    """Plan without one picture, else without any; raise the problem where neither will do."""
    some = (name,) if name in asked.references else ()
    for dropped in dict.fromkeys((some or asked.references, asked.references)):
        fewer = asked.without(dropped, _why(asked, dropped, problem))
        if not fewer.references and not fewer.prompt:
            continue
        try:
            return fewer, replan(fewer)
        except WorkerError:
            continue  # the picture is what to mend
    raise problem


def _why(asked: Request, dropped: tuple[str, ...], problem: WorkerError) -> Notice:
    left = [name for name in asked.references if name not in dropped]
    start = f"Made without {' and '.join(dropped)}" if left else "Made from the prompt alone"
    return Notice(
        "REFERENCE_UNUSABLE",
        f"{start}; the reference image failed with {problem.code}: {problem.message}",
    )


def _fetch(
    asked: Request, name: str, settings: Settings, policy: Policy, control: Control
) -> Decoded:
    text, where = asked.reference(name), asked.pointer(name)
    if text is None:
        raise ValueError(f"{name} is not given")
    if images.kind(text, where) == "inline":
        data = images.decode_inline(text, where, settings.max_image_bytes)
    else:
        data = net.fetch(
            text,
            policy,
            max_bytes=settings.max_image_bytes,
            seconds=min(FETCH_SECONDS, control.seconds_left or FETCH_SECONDS),
            field=where,
            canceled=control.check,
        )
    return images.decode(data, where, settings.max_image_pixels)
