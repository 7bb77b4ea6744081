"""Is this input right, and what exactly does it ask for?

``parse`` turns an untrusted job into a frozen ``Request``, or raises ``InvalidRequest`` naming the
JSON pointer and the rule. It never repeats a value: it could be a secret. Order of precedence:
a field of the request, then its preset, then (in plan) the model's own default.

``schemas/request.schema.json`` is the truth about single fields, aliases included; this module adds
what a schema can't say: values that JSON Schema lets through, and rules across fields.
Not covered: anything that depends on the machine or on installed models (plan), and what is behind
a URL (net, images).
"""

import difflib
import json
import math
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError

from wan_worker.catalog import Size
from wan_worker.errors import ConfigInvalid, InvalidRequest
from wan_worker.settings import Bucket, Secret, is_endpoint

SCHEMAS_DIR: Final = Path(__file__).resolve().parents[2] / "schemas"
MAX_DEPTH: Final = 8
MAX_VALUES: Final = 2_000
MAX_PROBLEMS: Final = 5
DRAWN_SEEDS: Final = 2**32
"""Drawn seeds stay below 2^53, so that JavaScript clients can read them back exactly."""

VIDEO_FORMATS: Final = ("mp4",)
IMAGE_FORMATS: Final = ("png", "jpeg", "webp")

# C0 and C1 controls but for tab, newline and carriage return, and lone surrogates.
_BAD_CHARACTERS: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
# In names also line breaks: names are written to the log.
_BAD_IN_NAMES: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

Mode = Literal["image", "video"]


@dataclass(frozen=True)
class Notice:
    """What went otherwise than asked, without failing: an entry of the response's warnings."""

    code: str
    message: str


@dataclass(frozen=True)
class Contract:
    """The schema, its aliases and the presets, loaded once."""

    validator: Draft202012Validator
    fields: tuple[str, ...]
    """Names that a request may use, aliases included."""
    aliases: Mapping[str, str]
    """Alias to canonical name."""
    presets: Mapping[str, Any]


@dataclass(frozen=True)
class Request:
    """What was asked for, with presets applied. None: the model's own default (plan decides)."""

    job_id: str
    mode: Mode
    model: str
    prompt: str
    seed: int
    job_type: str | None = None
    negative_prompt: str | None = None
    image: str | None = None
    where: Mapping[str, str] = field(default_factory=dict, compare=False)
    """JSON pointer that each canonical field was given under."""
    reference_fallback: bool = False
    size: Size | None = None
    size_is_explicit: bool = False
    orientation: str | None = None
    num_frames: int | None = None
    duration: float | None = None
    fps: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    solver: str | None = None
    flow_shift: float | None = None
    output_format: str = "mp4"
    response_format: str = "url"
    callback_url: str | None = None
    bucket: Bucket | None = None
    notices: tuple[Notice, ...] = ()

    def pointer(self, name: str) -> str:
        """Where the caller wrote this field, or would have to."""
        if name == "size" and "width" in self.where:
            name = "width"
        return self.where.get(name, f"/input/{name}")

    def without_image(self, notice: Notice) -> "Request":
        """The same request as plain generation, saying why."""
        return replace(self, image=None, notices=(*self.notices, notice))


def load_contract(folder: Path = SCHEMAS_DIR) -> Contract:
    """Read schema and presets.

    Raises:
        ConfigInvalid: if a file is missing, no JSON, or no valid schema.
    """
    try:
        schema = json.loads((folder / "request.schema.json").read_text("utf-8"))
        presets = json.loads((folder / "presets.json").read_text("utf-8"))
        Draft202012Validator.check_schema(schema)
        fields = schema["properties"]
        aliases = {name: f["x-alias-of"] for name, f in fields.items() if "x-alias-of" in f}
        validator = Draft202012Validator(schema)
        _check_presets(presets, validator, fields["job_type"]["enum"], fields["profile"]["enum"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SchemaError) as error:
        raise ConfigInvalid(
            f"schemas/ is not usable ({type(error).__name__}): the image is built wrong"
        ) from error
    return Contract(validator, tuple(fields), aliases, presets)


def _check_presets(
    presets: Any, validator: Draft202012Validator, job_types: list[str], profiles: list[str]
) -> None:
    """Raise ValueError unless every preset is there and holds values that a request could."""
    if list(presets) != job_types:
        raise ValueError("presets.json and the schema name different job types")
    for preset in presets.values():
        variants = preset["profiles"] if "profiles" in preset else {"": preset["values"]}
        if "profiles" in preset and list(variants) != profiles:
            raise ValueError("presets.json and the schema name different profiles")
        for values in variants.values():
            if not validator.is_valid({"mode": preset["mode"], **values}):
                raise ValueError("a preset breaks the schema")


def parse(job: Mapping[str, Any], contract: Contract) -> Request:
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
    _check_values(given)
    _check_schema(given, contract)
    fields, where = _canonical(given, contract.aliases)
    fields, where, notices = _open_envelope(fields, where)
    mode, preset = _mode_and_preset(fields, contract.presets)
    explicit_size = _explicit_size(fields, where, mode)
    image = fields.get("image_url")
    if mode == "image" and image is not None:
        if not fields.get("reference_fallback"):
            raise InvalidRequest(
                "A start image is for videos; mode image takes a prompt only",
                field=where["image_url"],
            )
        image = None
        notices.append(
            Notice(
                "REFERENCE_IGNORED",
                "An image was made from the prompt alone: a reference image only starts videos.",
            )
        )
    _check_prompt(fields, image)
    _check_lengths(fields, where, mode)
    size = explicit_size or _turn(_parse_size(preset.get("size")), fields.get("orientation"))
    length_given = "num_frames" in fields or "duration" in fields

    def pick(name: str) -> Any:
        return fields.get(name, preset.get(name))

    return Request(
        job_id=str(job.get("id", "local")),
        mode=mode,
        model=fields.get("model", "auto"),
        prompt=fields.get("prompt", ""),
        seed=_seed(fields.get("seed")),
        job_type=fields.get("job_type"),
        negative_prompt=fields.get("negative_prompt"),
        image=image,
        where=where,
        reference_fallback=bool(fields.get("reference_fallback", False)),
        size=size,
        size_is_explicit=explicit_size is not None,
        orientation=fields.get("orientation"),
        num_frames=_whole(fields.get("num_frames") if length_given else preset.get("num_frames")),
        duration=fields.get("duration"),
        fps=_whole(pick("fps")),
        num_inference_steps=_whole(pick("num_inference_steps")),
        guidance_scale=pick("guidance_scale"),
        solver=pick("solver"),
        flow_shift=pick("flow_shift"),
        output_format=_output_format(fields.get("output_format"), mode),
        response_format=fields.get("response_format", "url"),
        callback_url=fields.get("callback_url"),
        bucket=_job_bucket(job.get("s3Config")),
        notices=tuple(notices),
    )


def _check_values(given: dict[str, Any]) -> None:
    """Refuse what passes JSON Schema but breaks what comes after it.

    NaN passes minimum and maximum, infinity crashes integer checks, a lone surrogate can't be
    encoded into the answer, and deep nesting exhausts the stack of recursive code.
    """
    pending: list[tuple[str, Any, int]] = [("/input", given, 0)]
    seen = 1
    while pending:
        pointer, value, depth = pending.pop()
        if isinstance(value, dict | list):
            seen += len(value)
        if depth > MAX_DEPTH or seen > MAX_VALUES:
            raise InvalidRequest(
                f"The input is nested deeper than {MAX_DEPTH} levels or holds more than "
                f"{MAX_VALUES} values",
                field="/input",
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidRequest("Must be a finite number", field=pointer)
        if isinstance(value, str) and _BAD_CHARACTERS.search(value):
            raise InvalidRequest(
                "Must be text without control characters or lone surrogates", field=pointer
            )
        if isinstance(value, dict):
            for key, inner in value.items():
                if not isinstance(key, str) or _BAD_IN_NAMES.search(key):
                    raise InvalidRequest("Field names must be plain text", field=pointer)
                pending.append((f"{pointer}/{_escape(key)}", inner, depth + 1))
        elif isinstance(value, list):
            pending.extend((f"{pointer}/{i}", inner, depth + 1) for i, inner in enumerate(value))


def _check_schema(given: dict[str, Any], contract: Contract) -> None:
    problems = [
        problem
        for error in sorted(contract.validator.iter_errors(given), key=lambda e: str(list(e.path)))
        for problem in _describe(error, contract.fields)
    ]
    if not problems:
        return
    first_pointer, first_message = problems[0]
    rest = "".join(f"; {pointer}: {message}" for pointer, message in problems[1:MAX_PROBLEMS])
    hidden = len(problems) - MAX_PROBLEMS
    more = f"; and {hidden} more" if hidden > 0 else ""
    raise InvalidRequest(first_message + rest + more, field=first_pointer)


def _describe(error: ValidationError, known: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """JSON pointer and rule for one schema error, in our words: the library's quote the value."""
    pointer = "/input" + "".join(f"/{_escape(str(part))}" for part in error.absolute_path)
    rule: Any = error.validator_value
    instance: Any = error.instance
    match error.validator:
        case "additionalProperties":
            for name in sorted(set(instance) - set(known)):
                near = difflib.get_close_matches(name[:80], known, n=1, cutoff=0.6)
                hint = f"did you mean {near[0]}?" if near else "the README lists every field"
                yield f"{pointer}/{_escape(name)}", f"Unknown field; {hint}"
        case "type":
            wanted = rule if isinstance(rule, str) else " or ".join(rule)
            yield pointer, f"Must be of type {wanted}"
        case "enum":
            yield pointer, f"Must be one of: {', '.join(rule)}"
        case "minimum":
            yield pointer, f"Must be at least {rule}"
        case "maximum":
            yield pointer, f"Must be at most {rule}"
        case "exclusiveMinimum":
            yield pointer, f"Must be more than {rule}"
        case "minLength":
            yield pointer, f"Must have at least {rule} character(s)"
        case "maxLength":
            yield pointer, f"Must have at most {rule} characters"
        case "pattern":
            yield pointer, "Must look like 832x480"
        case other:
            yield pointer, f"Breaks the schema's rule {other}"


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


def _open_envelope(
    fields: dict[str, Any], where: dict[str, str]
) -> tuple[dict[str, Any], dict[str, str], list[Notice]]:
    """Legacy envelope: a reference frame under config or metadata, with the old fallback."""
    config, metadata = fields.get("config", {}), fields.get("metadata", {})
    references = {
        pointer: value
        for pointer, value in (
            ("/input/config/first_frame", config.get("first_frame")),
            ("/input/metadata/start_reference_url", metadata.get("start_reference_url")),
        )
        if value
    }
    notices = []
    if metadata.get("end_reference_url"):
        notices.append(
            Notice(
                "END_REFERENCE_IGNORED",
                "metadata.end_reference_url was not used: no model served here takes an end frame.",
            )
        )
    read = {"config": {"first_frame"}, "metadata": {"start_reference_url", "end_reference_url"}}
    ignored = sorted(
        f"{part}.{name}"[:60]
        for part, names in read.items()
        for name in fields.get(part, {})
        if name not in names
    )
    if ignored:
        others = " and others." if len(ignored) > 5 else "."
        notices.append(
            Notice("ENVELOPE_FIELDS_IGNORED", f"Not read: {', '.join(ignored[:5])}{others}")
        )
    if not references:
        return fields, where, notices
    pointer, value = next(iter(references.items()))
    if "image_url" in fields or len(set(references.values())) > 1:
        raise InvalidRequest(
            "More than one start image is given; keep image_url alone", field=pointer
        )
    opened = {"reference_fallback": True} | fields | {"image_url": value}
    return opened, where | {"image_url": pointer}, notices


def _mode_and_preset(
    fields: dict[str, Any], presets: Mapping[str, Any]
) -> tuple[Mode, Mapping[str, Any]]:
    job_type, mode = fields.get("job_type"), fields.get("mode")
    if job_type is None:
        if mode is None:
            raise InvalidRequest(
                "Say what to make: mode image or video, or a job_type", field="/input/mode"
            )
        if "profile" in fields:
            raise InvalidRequest("profile belongs to job_type video_fast", field="/input/profile")
        return mode, {}
    preset = presets[job_type]
    if mode is not None and mode != preset["mode"]:
        raise InvalidRequest(
            f"mode does not fit job_type {job_type}, which makes a {preset['mode']}",
            field="/input/mode",
        )
    if "profiles" not in preset:
        if "profile" in fields:
            raise InvalidRequest("profile belongs to job_type video_fast", field="/input/profile")
        return preset["mode"], preset["values"]
    return preset["mode"], preset["profiles"][fields.get("profile", "balanced")]


def _explicit_size(fields: dict[str, Any], where: dict[str, str], mode: Mode) -> Size | None:
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
    if mode == "video" and (size[0] % 2 or size[1] % 2):
        odd = "width" if size[0] % 2 else "height"
        raise InvalidRequest(
            "A video's width and height must be even (H.264 stores colour in 2x2 blocks)",
            field=where.get("size", f"/input/{odd}"),
        )
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


def _check_prompt(fields: dict[str, Any], image: str | None) -> None:
    prompt = fields.get("prompt")
    if prompt is None and image is None:
        raise InvalidRequest("A prompt is needed unless an image is given", field="/input/prompt")
    if prompt is not None and not prompt.strip():
        raise InvalidRequest("Must not be blank", field="/input/prompt")


def _check_lengths(fields: dict[str, Any], where: dict[str, str], mode: Mode) -> None:
    if mode == "image":
        if fields.get("num_frames") not in (None, 1):
            raise InvalidRequest("An image has one frame", field=where["num_frames"])
        for name in ("duration", "fps"):
            if name in fields:
                raise InvalidRequest("Belongs to mode video", field=f"/input/{name}")
    if "num_frames" in fields and "duration" in fields:
        raise InvalidRequest("Give num_frames or duration, not both", field="/input/duration")


def _output_format(asked: str | None, mode: Mode) -> str:
    formats = VIDEO_FORMATS if mode == "video" else IMAGE_FORMATS
    if asked is None:
        return formats[0]
    if asked not in formats:
        raise InvalidRequest(
            f"mode {mode} can be delivered as: {', '.join(formats)}", field="/input/output_format"
        )
    return asked


def _seed(asked: int | float | None) -> int:
    return secrets.randbelow(DRAWN_SEEDS) if asked is None or asked == -1 else int(asked)


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


def _escape(part: str) -> str:
    """One reference token of a JSON pointer (RFC 6901), of a length that fits into an answer."""
    return part[:80].replace("~", "~0").replace("/", "~1")
