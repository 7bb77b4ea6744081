"""Which pictures does the job start from? They are fetched, decoded and brought to the plan's size.

Fit rule: the size comes from the request, or from the first picture that is there (from the last
frame's picture where it is the only one). Each picture is then scaled to cover that size and
cropped at the centre.

Promises: a picture is refused under the field that it was given in. With ``reference_fallback``
a picture that can't be used is left out with a warning.
Not covered: the rules of a single picture (images), of addresses (net), of models (planning), and
what is made without a picture (request.fallback).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from wan_worker.errors import FetchFailed, ImageRejected, UrlBlocked, WorkerError
from wan_worker.inputs import images, net
from wan_worker.inputs.dialing import Policy
from wan_worker.inputs.images import Decoded
from wan_worker.planning.plan import Plan, fit_to_image
from wan_worker.request.parse import REFERENCES, Notice, Picture, Request
from wan_worker.settings import Settings
from wan_worker.timing.progress import Control

if TYPE_CHECKING:
    from PIL.Image import Image

FETCH_SECONDS: Final = 30.0

PlanWithout = Callable[[str, Request, WorkerError], tuple[Request, Plan]]
"""Plans the request without the picture of a field; raises the error if that can't be planned."""


@dataclass(frozen=True)
class References:
    """RGB pictures at the plan's generated size."""

    first: "Image | None" = None
    """A video's first frame, or what an image is made from."""
    last: "Image | None" = None


def check(asked: Request) -> None:
    """Refuse what can't hold a picture.

    Raises:
        UrlBlocked: a path, or a URL of another scheme.
    """
    for picture in asked.pictures:
        images.kind(picture.source, picture.pointer)


def gather(
    asked: Request,
    planned: Plan,
    plan_without: PlanWithout,
    settings: Settings,
    policy: Policy,
    control: Control,
) -> tuple[Plan, References]:
    """Fetch the request's pictures, and let them set the plan's size where it is open.

    Raises:
        UrlBlocked, ImageRejected, FetchFailed: a picture can't be used, and the request has no
            fallback.
    """
    found: dict[str, Decoded] = {}
    for picture in asked.pictures:
        if picture.field not in asked.references:  # dropped together with an earlier one
            continue
        try:
            found[picture.field] = _fetch(picture, settings, policy, control)
        except (UrlBlocked, ImageRejected, FetchFailed) as problem:
            if not asked.reference_fallback:
                raise
            asked, planned = plan_without(picture.field, asked, problem)
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


def _fetch(picture: Picture, settings: Settings, policy: Policy, control: Control) -> Decoded:
    if images.kind(picture.source, picture.pointer) == "inline":
        data = images.decode_inline(picture.source, picture.pointer, settings.max_image_bytes)
    else:
        data = net.fetch(
            picture.source,
            policy,
            max_bytes=settings.max_image_bytes,
            seconds=min(FETCH_SECONDS, control.seconds_left or FETCH_SECONDS),
            field=picture.pointer,
            canceled=control.check,
        )
    return images.decode(data, picture.pointer, settings.max_image_pixels)
