"""Is this machine fit to take jobs? It lists all problems, and says what to do about each.

    python -m wan_worker.doctor        with src on PYTHONPATH and the worker's environment

On RunPod the worker runs the same checks at its start, before its first job (a fitness check of the
SDK). It does not start if a problem would fail every job. A problem that may pass by itself (the
bucket can't be reached) is a warning.
Not covered: reading every byte of the weights (``download_weights.py --verify``), and whether torch
can use the GPU (the SDK's own check multiplies matrices on it).
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from wan_worker.catalog.models import MODELS, Installed, Model
from wan_worker.delivery import s3
from wan_worker.errors import StorageFailed, WorkerError
from wan_worker.machine import hardware
from wan_worker.machine.hardware import Hardware
from wan_worker.media import encode
from wan_worker.planning import memory
from wan_worker.planning.activations import JobSize
from wan_worker.planning.model_choice import install_hint
from wan_worker.request import schema
from wan_worker.settings import Settings, from_env
from wan_worker.weights import store

Level = Literal["ok", "warning", "problem"]

LEAST_FREE_BYTES: Final = 2 * 1024**3
"""Free space for a long clip's file, and some for the system."""

MOST_SKEW_SECONDS: Final = 600
"""S3 refuses signatures that are 15 minutes off."""


@dataclass(frozen=True)
class Finding:
    subject: str
    level: Level
    said: str

    def __str__(self) -> str:
        return f"{self.level:8}{self.subject}: {self.said}"


def examine(settings: Settings, machine: Hardware) -> Iterator[Finding]:
    """Check this machine and its surroundings. It takes a second, and does not need torch."""
    installed = store.installed(settings.models_dir, settings.volume_dir)
    yield from _weights(settings, installed)
    yield from _gpu(settings, machine, installed)
    yield from _folders(settings)
    yield _clock()
    yield _bucket(settings)


def basics() -> Iterator[Finding]:
    """Check what the worker always needs for its start."""
    yield _check("schemas", "valid", schema.load)
    yield _check("ffmpeg", "runs, and has every encoder", encode.find_ffmpeg)


def _check(subject: str, fine: str, check: Callable[[], object]) -> Finding:
    try:
        check()
    except WorkerError as problem:
        return Finding(subject, "problem", problem.message)
    return Finding(subject, "ok", fine)


def _weights(settings: Settings, installed: dict[str, Installed]) -> Iterator[Finding]:
    broken = store.damaged(settings.models_dir)
    if broken:
        yield Finding(
            "weights",
            "problem",
            f"{', '.join(broken)}: files are missing or cut short; install again with "
            "download_weights.py",
        )
    if settings.default_model is not None:
        yield from _named_model("DEFAULT_MODEL", settings.default_model, installed, "problem")
    for name in settings.preload_models:  # only a warning: jobs get their answers without it
        yield from _named_model("PRELOAD_MODELS", name, installed, "warning")
    if not installed:
        yield Finding(
            "weights",
            "problem",
            f"no model in {settings.models_dir} or on the volume; install one with: "
            "python download_weights.py --models ID",
        )
    else:
        tiny = " (tiny)" if any(model.tiny for model in installed.values()) else ""
        yield Finding("weights", "ok", f"{', '.join(installed)}{tiny}")


def _named_model(
    variable: str, name: str, installed: dict[str, Installed], level_if_missing: Level
) -> Iterator[Finding]:
    """Check a model that the environment names; no finding if it is installed."""
    if name not in MODELS:
        yield Finding(variable, "problem", f"must be one of {', '.join(MODELS)}")
    elif name not in installed:
        yield Finding(variable, level_if_missing, install_hint(name))


def _gpu(
    settings: Settings, machine: Hardware, installed: dict[str, Installed]
) -> Iterator[Finding]:
    full_size = {name: found for name, found in installed.items() if not found.tiny}
    if machine.device == "cpu":
        needed = settings.on_platform and bool(full_size)
        level: Level = "problem" if needed else "warning" if full_size else "ok"
        advice = "" if level == "ok" else "; full-size models need one: check GPU and driver"
        yield Finding("GPU", level, f"none: {machine.reason}{advice}")
        return
    yield Finding("GPU", "ok", f"{machine.name}, {memory.gb(machine.free_bytes)} free")
    for name, found in full_size.items():
        yield _fits(settings, MODELS[name], found, machine)


def _fits(settings: Settings, model: Model, found: Installed, machine: Hardware) -> Finding:
    """Does the model's native clip fit? For the default model it must."""
    starts = model.text_pipeline is None
    width, height = model.default_size
    native = JobSize(width * height, model.native_frames, has_image=starts)
    try:
        layout = memory.place(
            model, found, native, machine, settings.placement, settings.weight_type or "bf16"
        )
    except WorkerError as problem:
        needed = model.id == settings.default_model
        return Finding(model.id, "problem" if needed else "warning", problem.message)
    return Finding(
        model.id, "ok", f"{layout.placement}, {memory.gb(layout.peak_bytes)} at most, estimated"
    )


def _folders(settings: Settings) -> Iterator[Finding]:
    temp = Path(tempfile.gettempdir())
    for name, folder in (("temp folder", temp), ("OUTPUT_DIR", settings.output_dir)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"x")
            space = os.statvfs(folder)
        except OSError as problem:
            yield Finding(
                name,
                "problem",
                f"{folder} can't be written to ({problem.strerror}); mount it writable, or set "
                "TMPDIR or OUTPUT_DIR to a folder that is",
            )
            continue
        free = space.f_bavail * space.f_frsize
        level: Level = "ok" if free >= LEAST_FREE_BYTES else "problem"
        advice = "" if level == "ok" else f"; it needs {memory.gb(LEAST_FREE_BYTES)}"
        yield Finding(name, level, f"{folder}, {memory.gb(free)} free{advice}")


def _clock() -> Finding:
    """Check the clock: it is wrong if it is earlier than this file's own time."""
    if time.time() < Path(__file__).stat().st_mtime - 24 * 3600:
        return Finding("clock", "problem", "it is behind this worker's own files; set it")
    return Finding("clock", "ok", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()))


def _bucket(settings: Settings) -> Finding:
    if settings.bucket is None:
        return Finding("bucket", "ok", "none: small results come inline, large ones are refused")
    try:
        skew_seconds = s3.probe(settings.bucket)
    except StorageFailed as problem:
        return Finding("bucket", "warning" if problem.retryable else "problem", problem.message)
    if abs(skew_seconds) > MOST_SKEW_SECONDS:
        return Finding("clock", "warning", f"{abs(skew_seconds):.0f} s from the bucket's; set it")
    return Finding("bucket", "ok", "an object was written and removed")


def main() -> int:
    """Print every finding. Returns 1 if there is a problem."""
    try:
        settings = from_env(os.environ)
    except WorkerError as problem:
        found = [Finding("environment", "problem", problem.message), *basics()]
    else:
        found = [Finding("environment", "ok", "read"), *basics()]
        found += examine(settings, hardware.detect())
    print("\n".join(map(str, found)))
    return 1 if any(finding.level == "problem" for finding in found) else 0


if __name__ == "__main__":
    sys.exit(main())
