"""Is this input right, and what exactly does it ask for?

``request`` turns an untrusted job into a frozen ``Request``, or raises ``InvalidRequest`` with the
JSON pointer and the rule. It never repeats a value: it could be a secret. A field of the request
comes before its preset, and that before the model's own default (planning.defaults).

The rules of single fields are the schema's (schema); the rules across fields are here.
Not covered: anything that depends on the machine or on installed models (planning), and what is
behind a URL (inputs).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from wan_worker.catalog.models import OTHER_NAMES, Size
from wan_worker.errors import InvalidRequest
from wan_worker.request import formats, loras, outputs
from wan_worker.request.formats import Mode
from wan_worker.request.legacy_envelope import open_envelope
from wan_worker.request.loras import Lora
from wan_worker.request.outputs import Output
from wan_worker.request.schema import Contract, check
from wan_worker.settings import Bucket, Secret, WeightType, is_endpoint

Acceleration = Literal["exact", "cached", "turbo"]
"""How far a job may depart from Wan's own function: not at all (``exact``), or to be faster."""

PROFILE_ONLY: Final = "profile belongs to job_type video_fast and video7b_fast_enhanced"

REFERENCES: Final = ("image_url", "last_image_url")
"""Fields that hold a picture to start from."""

STRENGTH: Final = 0.7
"""Image-to-image without a strength: the picture's layout stays and its style can change."""


@dataclass(frozen=True)
class Notice:
    """Something was done differently than asked, without failing: a warning of the response."""

    code: str
    message: str


@dataclass(frozen=True)
class Picture:
    """A picture to start from, as the request gives it."""

    field: str
    """One of ``REFERENCES``."""
    source: str
    """A URL, a data URI or base64."""
    pointer: str
    """JSON pointer that it was given under."""


@dataclass(frozen=True)
class Request:
    """What was asked for, with presets applied. None: the plan takes the model's own default."""

    job_id: str
    mode: Mode
    model: str
    outputs: tuple[Output, ...]
    """In order, at least one."""
    job_type: str | None = None
    negative_prompt: str | None = None
    image: str | None = None
    """The first frame of a video, or the picture that an image is made from."""
    last_image: str | None = None
    strength: float | None = None
    """How far an image may move away from its picture, 0 to 1; None: nothing to move from."""
    where: Mapping[str, str] = field(default_factory=dict, compare=False)
    """JSON pointer that each canonical field was given under."""
    reference_fallback: bool = False
    enhance_prompt: bool = False
    size: Size | None = None
    size_is_explicit: bool = False
    orientation: str | None = None
    num_frames: int | None = None
    duration: float | None = None
    fps: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    guidance_scale_2: float | None = None
    solver: str | None = None
    flow_shift: float | None = None
    upscale: int = 1
    """How many times as wide and high the delivered frames are: 1, 2 or 4."""
    loras: tuple[Lora, ...] = ()
    acceleration: Acceleration = "exact"
    precision: WeightType | None = None
    """Type of the transformers' weights; None leaves it to the operator."""
    output_format: str = "mp4"
    response_format: str = "url"
    callback_url: str | None = None
    bucket: Bucket | None = None
    notices: tuple[Notice, ...] = ()

    @property
    def prompt(self) -> str:
        """The first output's prompt."""
        return self.outputs[0].prompt

    def pointer(self, name: str) -> str:
        """Where the caller wrote this field, or would have to."""
        if name == "size" and "width" in self.where:
            name = "width"
        return self.where.get(name, f"/input/{name}")

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """The pictures that are given, in the order of ``REFERENCES``."""
        sources = zip(REFERENCES, (self.image, self.last_image), strict=True)
        return tuple(
            Picture(name, source, self.pointer(name))
            for name, source in sources
            if source is not None
        )

    @property
    def references(self) -> tuple[str, ...]:
        """Which of ``REFERENCES`` are given."""
        return tuple(picture.field for picture in self.pictures)

    def without(self, names: Iterable[str], notice: Notice) -> "Request":
        """The same request without these pictures, and a notice that says why."""
        image = None if "image_url" in names else self.image
        return replace(
            self,
            image=image,
            last_image=None if "last_image_url" in names else self.last_image,
            strength=None if image is None else self.strength,
            notices=(*self.notices, notice),
        )


def request(job: Mapping[str, Any], contract: Contract) -> Request:
    """Validate one RunPod job.

    Args:
        job: the dict that RunPod hands to the handler: ``id``, ``input`` and maybe ``s3Config``.

    Raises:
        InvalidRequest: at the first rule that is broken; schema problems up to five at a time.
    """
    given = job.get("input")
    if not isinstance(given, dict):
        raise InvalidRequest(
            "input must be a JSON object with the request's fields", field="/input"
        )
    check(given, contract)
    fields, where = _canonical(given, contract.aliases)
    fields, where, ignored = open_envelope(fields, where)
    mode, preset = _mode_and_preset(fields, contract.presets)
    explicit_size = _explicit_size(fields, where)
    notices = (*(Notice(*about) for about in ignored), *_check_pictures(fields, where, mode))
    _check_lengths(fields, where, mode)
    output_format = formats.output_format(fields.get("output_format"), mode)
    formats.check_container(explicit_size, fields, output_format, where)
    size = explicit_size or _turn(_parse_size(preset.get("size")), fields.get("orientation"))
    length_given = "num_frames" in fields or "duration" in fields

    def pick(name: str) -> Any:
        return fields.get(name, preset.get(name))

    return Request(
        job_id=str(job.get("id", "local")),
        mode=mode,
        model=OTHER_NAMES.get(fields.get("model", ""), fields.get("model", "auto")),
        outputs=outputs.read(fields, where, any(name in fields for name in REFERENCES)),
        job_type=fields.get("job_type"),
        negative_prompt=fields.get("negative_prompt"),
        image=fields.get("image_url"),
        last_image=fields.get("last_image_url"),
        strength=_strength(fields, mode),
        where=where,
        reference_fallback=bool(fields.get("reference_fallback", False)),
        enhance_prompt=bool(pick("enhance_prompt")),
        size=size,
        size_is_explicit=explicit_size is not None,
        orientation=fields.get("orientation"),
        num_frames=_whole(fields.get("num_frames") if length_given else preset.get("num_frames")),
        duration=fields.get("duration"),
        fps=_whole(pick("fps")),
        num_inference_steps=_whole(pick("num_inference_steps")),
        guidance_scale=pick("guidance_scale"),
        guidance_scale_2=fields.get("guidance_scale_2"),
        solver=pick("solver"),
        flow_shift=pick("flow_shift"),
        upscale=int(fields.get("upscale", 1)),
        loras=loras.parse(fields.get("loras", [])),
        acceleration=fields.get("acceleration", "exact"),
        precision=None if fields.get("precision") == "auto" else fields.get("precision"),
        output_format=output_format,
        response_format=fields.get("response_format", "url"),
        callback_url=fields.get("callback_url"),
        bucket=_job_bucket(job.get("s3Config")),
        notices=notices,
    )


def _canonical(
    given: dict[str, Any], aliases: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The same fields under their canonical names, and the pointer that each was given under."""
    fields: dict[str, Any] = {}
    where: dict[str, str] = {}
    for name, value in given.items():
        target = aliases.get(name, name)
        if target in fields:
            raise InvalidRequest(
                f"{where[target].rpartition('/')[2]} and {name} mean the same; give one of them",
                field=f"/input/{name}",
            )
        fields[target] = value
        where[target] = f"/input/{name}"
    return fields, where


def _mode_and_preset(
    fields: dict[str, Any], presets: Mapping[str, Any]
) -> tuple[Mode, Mapping[str, Any]]:
    job_type, mode = fields.get("job_type"), fields.get("mode")
    if mode == "info":  # of a request inside one
        raise InvalidRequest("Must be one of: image, video", field="/input/mode")
    for name in ("report", "request", "priority", "other"):
        if name in fields:
            raise InvalidRequest("Belongs to mode info", field=f"/input/{name}")
    if job_type is None:
        if mode is None:
            raise InvalidRequest(
                "Say what to make: mode image or video, or a job_type", field="/input/mode"
            )
        if "profile" in fields:
            raise InvalidRequest(PROFILE_ONLY, field="/input/profile")
        return mode, {}
    preset = presets[job_type]
    if mode is not None and mode != preset["mode"]:
        raise InvalidRequest(
            f"mode does not fit job_type {job_type}, which makes a {preset['mode']}",
            field="/input/mode",
        )
    if "profiles" not in preset:
        if "profile" in fields:
            raise InvalidRequest(PROFILE_ONLY, field="/input/profile")
        return preset["mode"], preset["values"]
    return preset["mode"], preset["profiles"][fields.get("profile", "balanced")]


def _explicit_size(fields: dict[str, Any], where: dict[str, str]) -> Size | None:
    width, height, text = fields.get("width"), fields.get("height"), fields.get("size")
    if text is not None and (width is not None or height is not None):
        raise InvalidRequest("Give size, or width and height, not both", field=where["size"])
    if (width is None) != (height is None):
        absent = "width" if width is None else "height"
        raise InvalidRequest("width and height go together", field=f"/input/{absent}")
    size = (int(width), int(height)) if width is not None and height is not None else None
    if text is not None:
        size = _parse_size(text)
        if size is None or not all(16 <= side <= 1920 for side in size):
            raise InvalidRequest(
                "Must be width x height such as 832x480, each from 16 to 1920", field=where["size"]
            )
    if size is None:
        return None
    if fields.get("orientation") is not None and size != _turn(size, fields["orientation"]):
        raise InvalidRequest(
            "orientation contradicts the size; leave one of them out", field="/input/orientation"
        )
    return size


def _parse_size(text: str | None) -> Size | None:
    # fullmatch: a schema's $ lets a trailing newline through.
    match = re.fullmatch(r"([0-9]{2,4})[x*]([0-9]{2,4})", text or "", re.ASCII)
    return (int(match[1]), int(match[2])) if match else None


def _turn(size: Size | None, orientation: str | None) -> Size | None:
    if size is None or orientation is None:
        return size
    long, short = max(size), min(size)
    return (short, long) if orientation == "portrait" else (long, short)


def _check_pictures(
    fields: dict[str, Any], where: dict[str, str], mode: Mode
) -> tuple[Notice, ...]:
    """Pictures that the mode has no use for; with the old fallback they are dropped."""
    notices: tuple[Notice, ...] = ()
    if mode == "image" and "last_image_url" in fields:
        if not fields.get("reference_fallback"):
            raise InvalidRequest("An image has no last frame", field=where["last_image_url"])
        del fields["last_image_url"]
        notices = (Notice("REFERENCE_IGNORED", "The last image was not used: an image has one."),)
    if "strength" in fields and (mode == "video" or "image_url" not in fields):
        raise InvalidRequest(
            "Belongs to mode image with an image_url, which it says how far to move away from",
            field="/input/strength",
        )
    return notices


def _strength(fields: dict[str, Any], mode: Mode) -> float | None:
    if mode == "video" or "image_url" not in fields:
        return None
    return float(fields.get("strength", STRENGTH))


def _check_lengths(fields: dict[str, Any], where: dict[str, str], mode: Mode) -> None:
    if mode == "image":
        if fields.get("num_frames") not in (None, 1):
            raise InvalidRequest("An image has one frame", field=where["num_frames"])
        for name in ("duration", "fps"):
            if name in fields:
                raise InvalidRequest("Belongs to mode video", field=f"/input/{name}")
    if "num_frames" in fields and "duration" in fields:
        raise InvalidRequest("Give num_frames or duration, not both", field="/input/duration")


def _whole(value: int | float | None) -> int | None:
    """JSON Schema counts 1.0 as the integer 1; the libraries below do not."""
    return None if value is None else int(value)


def _job_bucket(given: object) -> Bucket | None:
    """RunPod's per-job ``s3Config``, beside ``input``."""
    if given is None or given == {}:
        return None
    names = ("endpointUrl", "accessId", "accessSecret", "bucketName")
    if not isinstance(given, dict):
        raise InvalidRequest("Must be an object", field="/s3Config")
    for name in names:
        value = given.get(name)
        if not isinstance(value, str) or not re.fullmatch(r"[\x21-\x7e]+", value):
            raise InvalidRequest("Must be text without spaces", field=f"/s3Config/{name}")
    if not is_endpoint(given["endpointUrl"]):
        raise InvalidRequest(
            "Must be the store's URL, such as https://s3.example.com", field="/s3Config/endpointUrl"
        )
    if not re.fullmatch(r"[A-Za-z0-9._-]{3,63}", given["bucketName"]):
        raise InvalidRequest(
            "Must be 3 to 63 letters, digits, dots, dashes or underscores",
            field="/s3Config/bucketName",
        )
    return Bucket(
        endpoint_url=given["endpointUrl"].rstrip("/"),
        access_key_id=Secret(given["accessId"]),
        secret_access_key=Secret(given["accessSecret"]),
        name=given["bucketName"],
    )
