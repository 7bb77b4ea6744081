"""Requests and images that nobody would think of: a few in the suite, thousands by ``make fuzz``.

    python -m tests.fuzz --requests 20000 --images 5000 --report docs/fuzz.json

Requests are made from ``request.schema.json`` itself: whole ones, and whole ones with one thing
broken. None may raise anything but a WorkerError, and none that is refused may reach the planner.
Images are small files of the accepted formats: cut off, with bits flipped (and checksums mended,
or nothing behind them would be reached), spliced with each other and with other kinds of files.
None may do anything but give a picture or be rejected, and all together may take 200 MB.
"""

import argparse
import io
import json
import logging
import math
import random
import resource
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from wan_worker import job as jobs
from wan_worker import worker as workers
from wan_worker.catalog.models import MODELS, Installed
from wan_worker.errors import ImageRejected, Unsupported
from wan_worker.inputs import images
from wan_worker.inputs.dialing import Policy
from wan_worker.planning import segments
from wan_worker.request import schema
from wan_worker.settings import Settings
from wan_worker.timing.progress import Control

SCHEMA = json.loads((schema.SCHEMAS_DIR / "request.schema.json").read_text("utf-8"))
MAX_GROWTH = 200_000_000
"""Bytes that decoding all fuzzed images may add to the process at its highest."""
URLS = [
    "https://example.com/a.png",
    "http://10.0.0.7/",
    "data:image/png;base64,AAAA",
    "/etc/passwd",
]
STOP = "planned, and far enough"
ALLOWED = ("INVALID_REQUEST", "UNSUPPORTED", "URL_BLOCKED", "MODEL_UNAVAILABLE")
"""What a request may end with before anything is fetched. INTERNAL would be a fault of ours."""

# Requests.


def value_of(rule: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that keep to one field's rule."""
    if "$ref" in rule:
        return value_of(SCHEMA["properties"][rule["$ref"].rpartition("/")[2]])
    if "enum" in rule:
        return st.sampled_from(rule["enum"])
    kinds = rule["type"] if isinstance(rule["type"], list) else [rule["type"]]
    return st.one_of(*(_of_type(kind, rule) for kind in kinds))


def _written(size: tuple[int, str, int]) -> str:
    return "".join(map(str, size))


def _of_type(kind: str, rule: dict[str, Any]) -> st.SearchStrategy[Any]:
    match kind:
        case "null":
            return st.none()
        case "boolean":
            return st.booleans()
        case "integer":
            return st.integers(rule["minimum"], rule["maximum"])
        case "number":
            low = rule.get("minimum", rule.get("exclusiveMinimum"))
            beyond = "exclusiveMinimum" in rule
            return st.floats(low, rule["maximum"], exclude_min=beyond, allow_nan=False)
        case "string" if "pattern" in rule:
            sizes = st.tuples(st.integers(10, 2100), st.sampled_from("x*"), st.integers(10, 2100))
            return st.sampled_from(["832x480", "480*832"]) | sizes.map(_written)
        case "string":
            text = st.text(min_size=rule.get("minLength", 0), max_size=40)
            return st.one_of(st.sampled_from(URLS), st.sampled_from(URLS), text)
        case "array":
            return st.lists(value_of(rule["items"]), min_size=1, max_size=rule["maxItems"])
        case "object":
            known = {name: value_of(inner) for name, inner in rule["properties"].items()}
            needed = {name: known.pop(name) for name in rule.get("required", [])}
            return st.fixed_dictionaries(needed, optional=known)
    raise ValueError(f"the schema has a type that is not known here: {kind}")


FIELDS = {name: value_of(rule) for name, rule in SCHEMA["properties"].items()}
MODES = st.sampled_from(["image", "video"])  # the third one makes nothing
CORE = st.fixed_dictionaries({"mode": MODES, "prompt": st.just("a cat")})
FEW = st.lists(st.sampled_from(sorted(FIELDS)), max_size=5, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: FIELDS[name] for name in names})
)
WHOLE = st.builds(lambda core, few: core | few, CORE, FEW)

JUNK = st.one_of(
    st.sampled_from(
        [math.nan, math.inf, -math.inf, 10**400, -(10**400), 1e308, 5e-324, "", [], {}]
    ),
    st.sampled_from(["\x00", "\ud800", "a\x1b[2J", "x" * 9000, [[]], [None], {"": 1}]),
    st.none(),
    st.recursive(st.text(max_size=3), lambda inner: st.lists(inner, max_size=3), max_leaves=5),
    st.integers(),
    st.floats(),
)


def breaks(name: str, value: Any) -> bool:
    """Whether this value is surely against the rule of its field."""
    rule = SCHEMA["properties"][name]
    if "$ref" in rule:
        rule = SCHEMA["properties"][rule["$ref"].rpartition("/")[2]]
    if isinstance(value, float) and not math.isfinite(value):
        return True
    kinds = rule.get("type", [])
    names = {dict: "object", list: "array", str: "string", type(None): "null"}
    of_a_kind = names.get(type(value), "number")
    if "enum" in rule:
        return value not in rule["enum"]
    kinds = [kinds] if isinstance(kinds, str) else kinds
    return of_a_kind not in ["number" if kind == "integer" else kind for kind in kinds]


BROKEN = st.one_of(
    st.tuples(WHOLE, st.sampled_from(sorted(FIELDS)), JUNK)
    .filter(lambda whole_name_value: breaks(*whole_name_value[1:]))
    .map(lambda made: made[0] | {made[1]: made[2]}),
    st.tuples(WHOLE, st.text(min_size=1, max_size=12), JUNK)
    .filter(lambda made: made[1] not in FIELDS)
    .map(lambda made: made[0] | {made[1]: made[2]}),
    JUNK.filter(lambda value: not isinstance(value, dict)),
)


@contextmanager
def planner_watched(worker: jobs.Worker) -> Iterator[list[Any]]:
    """The real planner for every model; each call is kept, and ends the job as UNSUPPORTED."""
    calls: list[Any] = []
    plan = segments.make

    def watched(asked: Any, *rest: Any) -> Any:
        calls.append(asked)
        json.dumps(plan(asked, *rest).public(), allow_nan=False)
        raise Unsupported(STOP)

    here = {model: Installed({"a": 1}, True) for model in MODELS}
    with (
        mock.patch.object(segments, "make", watched),
        mock.patch.object(workers, "installed", lambda _worker: here),
        mock.patch.object(workers, "extras", lambda _worker: here),
    ):
        yield calls


def no_network(*_: Any) -> Any:
    raise OSError("there is no network here")


def requests(count: int, tell: Callable[[int], None] = lambda _done: None) -> dict[str, Any]:
    """Serve so many fuzzed requests up to their plan; the counts of what came of them.

    Raises:
        AssertionError: with the smallest request that shows a fault.
    """
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        worker = jobs.make_worker(Settings(Path(folder), output_dir=Path(folder)))
        policy = Policy(resolve=lambda _host: ("8.8.8.8",), dial=no_network, proxies=dict,
                            sleep=lambda _seconds: None)  # fmt: skip
        worker = replace(worker, policy=policy)

        def serve(asked: Any, broken: bool) -> None:
            with planner_watched(worker) as calls:
                answer = jobs.run({"id": "f", "input": asked}, worker, Control())
            error = json.loads(answer["error"])
            counts[error["code"]] += 1
            counts["broken" if broken else "whole"] += 1
            counts["planned"] += error["message"] == STOP
            assert error["code"] in ALLOWED, error
            if broken:
                assert error["code"] == "INVALID_REQUEST", error
                assert error["field"].startswith("/input"), error
                assert calls == []
            tell(counts["broken"] + counts["whole"])

        each = settings(
            max_examples=count // 2, derandomize=True, deadline=None, database=None,
            phases=[Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        whole = each(given(WHOLE)(lambda asked: serve(asked, False)))
        broken = each(given(BROKEN)(lambda asked: serve(asked, True)))
        logging.disable(logging.WARNING)
        try:
            whole()
            broken()
        finally:
            logging.disable(logging.NOTSET)
    return dict(sorted(counts.items()))


# Images.


def seeds() -> list[bytes]:
    """Small files of the accepted formats, in all their modes."""
    from PIL import Image, PngImagePlugin

    def saved(image: Image.Image, form: str, **options: Any) -> bytes:
        file = io.BytesIO()
        image.save(file, form, **options)
        return file.getvalue()

    noise = Image.effect_noise((64, 48), 60)
    colour = Image.merge("RGB", [noise, noise.rotate(90), noise.rotate(180)])
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Comment", "a cat " * 50, zip=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    clear = colour.convert("RGBA")
    clear.putalpha(noise)
    frames = {"save_all": True, "append_images": [colour.rotate(90)], "duration": 50}
    return [
        saved(colour, "PNG", pnginfo=notes, icc_profile=b"p" * 200, exif=exif),
        saved(clear, "PNG"),
        saved(noise.convert("1"), "PNG"),
        saved(colour.quantize(16), "PNG", transparency=3),
        saved(noise.convert("I;16"), "PNG"),
        saved(colour, "PNG", **frames),
        saved(colour, "JPEG", exif=exif, icc_profile=b"p" * 200),
        saved(colour, "JPEG", progressive=True, restart_marker_blocks=2),
        saved(colour.convert("CMYK"), "JPEG"),
        saved(noise, "JPEG"),
        saved(colour, "WEBP", exif=exif),
        saved(clear, "WEBP", lossless=True),
        saved(colour, "WEBP", **frames),
    ]


STRANGERS = [
    b"%PDF-1.7\n", b"PK\x03\x04" + bytes(26), b"GIF89a" + bytes(20), b"<svg onload='x'>",
    b"<!doctype html><script>", b"\x7fELF" + bytes(12), b"II*\0\x08\0\0\0", b"#!/bin/sh\n",
    b"\0\0\0\x20ftypavif", b"RIFF\xff\xff\xff\xffWEBPVP8X", b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff\xe0",
]  # fmt: skip


def mended(png: bytes) -> bytes:
    """The same PNG with the checksums that its chunks should have."""
    out, at = [png[:8]], 8
    while at + 12 <= len(png):
        size = int.from_bytes(png[at : at + 4], "big")
        body = png[at + 4 : at + 8 + size]
        if len(body) < 4 + size:
            break
        out.append(png[at : at + 4] + body + struct.pack(">I", zlib.crc32(body)))
        at += 12 + size
    return b"".join(out) + png[at:]


def fuzzed(number: int, whole: list[bytes]) -> tuple[str, bytes]:
    """The fuzzed file of this number, the same every time, and what was done to it."""
    dice = random.Random(number)
    data = bytearray(dice.choice(whole))
    kind = dice.choice(["cut off", "bits", "bits", "bytes", "spliced", "polyglot", "noise"])
    match kind:
        case "cut off":
            data = data[: dice.randrange(len(data))]
        case "bits":
            for _ in range(dice.randint(1, 12)):
                at = dice.randrange(min(len(data), dice.choice([64, 400, len(data)])))
                data[at] ^= 1 << dice.randrange(8)
        case "bytes":
            for _ in range(dice.randint(1, 4)):
                at = dice.randrange(len(data) - 4)
                extreme = [b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", bytes(4), b"\0\0\x18\xb0"]
                data[at : at + 4] = dice.choice(extreme)
        case "spliced":
            other = dice.choice(whole)
            data[dice.randrange(len(data)) :] = other[dice.randrange(len(other)) :]
        case "polyglot":
            stranger = dice.choice(STRANGERS)
            at = dice.choice([0, len(data), dice.randrange(len(data))])
            data[at:at] = stranger * dice.randint(1, 3)
        case "noise":
            data = bytearray(data[: dice.choice([4, 12, 33])] + dice.randbytes(500))
    made = bytes(data)
    return kind, mended(made) if dice.random() < 0.6 and made[:4] == b"\x89PNG" else made


def highest() -> int:
    """Bytes that this process has had resident at its highest."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def pictures(count: int, tell: Callable[[int], None] = lambda _done: None) -> dict[str, Any]:
    """Decode so many fuzzed files under the worker's own limits; the counts, and the memory.

    Raises:
        AssertionError: a file did something else than decode or be rejected.
    """
    whole, counts = seeds(), Counter[str]()
    for data in whole:
        images.decode(data, "/f", Settings.max_image_pixels)
    before = highest()
    for number in range(count):
        kind, data = fuzzed(number, whole)
        try:
            decoded = images.decode(data, "/f", Settings.max_image_pixels)
        except ImageRejected as problem:
            assert problem.field == "/f", number
            counts["rejected"] += 1
        except Exception as problem:
            raise AssertionError(f"file {number} ({kind}) raised {problem!r}") from problem
        else:
            assert decoded.image.mode == "RGB", number
            assert decoded.image.width * decoded.image.height <= Settings.max_image_pixels
            counts["decoded"] += 1
        counts[kind] += 1
        tell(number + 1)
    return dict(sorted(counts.items())) | {"growth_mb": round((highest() - before) / 1e6, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=0)
    parser.add_argument("--images", type=int, default=0)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    report: dict[str, Any] = {}
    for name, count, fuzz in (
        ("images", options.images, pictures),  # first, while the process is small
        ("requests", options.requests, requests),
    ):
        if not count:
            continue
        started = time.monotonic()

        def tell(done: int, name: str = name, count: int = count) -> None:
            if done % 1000 == 0:
                print(f"{name}: {done} of {count}", file=sys.stderr, flush=True)

        report[name] = {"asked": count} | fuzz(count, tell)
        report[name]["seconds"] = round(time.monotonic() - started)
    text = json.dumps(report, indent=2) + "\n"
    print(text, end="")
    if options.report is not None:
        options.report.write_text(text)
    return int(report.get("images", {}).get("growth_mb", 0) * 1e6 > MAX_GROWTH)


if __name__ == "__main__":
    sys.exit(main())
