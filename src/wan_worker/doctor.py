"""Is this machine fit to take jobs? Every problem at once, in a list that says what to do.

    python -m wan_worker.doctor        with src on PYTHONPATH and the worker's environment

The worker asks the same at its start on RunPod, before its first job (a fitness check of the SDK),
and does not start where a problem would fail every job. What may pass by itself (a bucket out of
reach) is a warning.
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
"""In the temp folder: a long clip's file and room for the system."""

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
    """What can be wrong with this machine and its surroundings; takes a second, and no torch."""
    here = store.installed(settings.models_dir, settings.volume_dir)
    yield from _weights(settings, here)
    yield from _gpu(settings, machine, here)
    yield from _folders(settings)
    yield _clock()
    yield _bucket(settings)


def basics() -> Iterator[Finding]:
    """What the worker refuses to start without in any case."""
    yield _tried("schemas", "valid", schema.load)
    yield _tried("ffmpeg", "runs, and has every encoder", encode.find_ffmpeg)


def _tried(subject: str, fine: str, check: Callable[[], object]) -> Finding:
    try:
        check()
    except WorkerError as problem:
        return Finding(subject, "problem", problem.message)
    return Finding(subject, "ok", fine)


def _weights(settings: Settings, here: dict[str, Installed]) -> Iterator[Finding]:
    broken = store.damaged(settings.models_dir)
    if broken:
        yield Finding(
            "weights",
            "problem",
            f"{', '.join(broken)}: files are missing or cut short; install again with "
            "download_weights.py",
        )
    if settings.default_model is not None:
        yield from _named("DEFAULT_MODEL", settings.default_model, here, "problem")
    for name in settings.preload_models:  # a job that needs it is answered all the same
        yield from _named("PRELOAD_MODELS", name, here, "warning")
    if not here:
        yield Finding(
            "weights",
            "problem",
            f"no model in {settings.models_dir} or on the volume; install one with: "
            "python download_weights.py --models ID",
        )
    else:
        tiny = " (tiny)" if any(model.tiny for model in here.values()) else ""
        yield Finding("weights", "ok", f"{', '.join(here)}{tiny}")


def _named(
    variable: str, name: str, here: dict[str, Installed], absent: Level
) -> Iterator[Finding]:
    """What is wrong with a model that the environment names; nothing where it is there."""
    if name not in MODELS:
        yield Finding(variable, "problem", f"must be one of {', '.join(MODELS)}")
    elif name not in here:
        yield Finding(variable, absent, install_hint(name))


def _gpu(settings: Settings, machine: Hardware, here: dict[str, Installed]) -> Iterator[Finding]:
    real = {name: found for name, found in here.items() if not found.tiny}
    if machine.device == "cpu":
        lost = settings.on_platform and bool(real)
        level: Level = "problem" if lost else "warning" if real else "ok"
        advice = "" if level == "ok" else "; full-size models need one: check GPU and driver"
        yield Finding("GPU", level, f"none: {machine.reason}{advice}")
        return
    yield Finding("GPU", "ok", f"{machine.name}, {memory.gb(machine.free_bytes)} free")
    for name, found in real.items():
        yield _fits(settings, MODELS[name], found, machine)


def _fits(settings: Settings, model: Model, found: Installed, machine: Hardware) -> Finding:
    """Does the model's native clip fit? A model that was named as the default must."""
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
    """Behind the time at which this file was written, a clock is certainly wrong."""
    if time.time() < Path(__file__).stat().st_mtime - 24 * 3600:
        return Finding("clock", "problem", "it is behind this worker's own files; set it")
    return Finding("clock", "ok", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()))


def _bucket(settings: Settings) -> Finding:
    if settings.bucket is None:
        return Finding("bucket", "ok", "none: small results come inline, large ones are refused")
    try:
        ahead = s3.probe(settings.bucket)
    except StorageFailed as problem:
        return Finding("bucket", "warning" if problem.retryable else "problem", problem.message)
    if abs(ahead) > MOST_SKEW_SECONDS:
        return Finding("clock", "warning", f"{abs(ahead):.0f} s from the bucket's; set it")
    return Finding("bucket", "ok", "an object was written and removed")


def main() -> int:
    """Print every finding; 1 where the worker would not be fit."""
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
