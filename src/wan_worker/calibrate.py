"""Which way of computing is fastest on this machine? It makes the same small clip each way.

It runs only when an operator orders it, between jobs. All ways compute the same function: they
differ in torch's threads on a CPU, and in attention kernels on a GPU (pipelines.attention first
checks that a kernel is right). Each clip is an ordinary job. The ways take turns, so that other
load on the machine slows all of them. The median times of denoising are compared.
A way replaces the usual one only if it is clearly faster.
Not covered: storing the result (machine.tuning).
"""

import base64
import json
import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from PIL import Image

from wan_worker import job as jobs
from wan_worker import worker as workers
from wan_worker.catalog.models import MODELS, Model
from wan_worker.errors import UnexpectedError
from wan_worker.job import Worker
from wan_worker.machine import attention_kernels
from wan_worker.machine.hardware import Hardware, Tuned
from wan_worker.machine.tuning import Calibration, Trial, Tuning
from wan_worker.timing.progress import Control
from wan_worker.timing.record import Record

ROUNDS: Final = 3
"""Timed clips of each way, after one warm-up clip."""

CLEARLY: Final = 0.97
"""Share of the usual way's time: a way that takes more of it may be faster by chance."""

STEPS: Final = 3


@dataclass(frozen=True)
class Clip:
    """The clip that is made each way."""

    width: int
    height: int
    num_frames: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}, {self.num_frames} frames, {STEPS} steps"


class _FixedTuning(Tuning):
    """Gives the way on trial, in place of the file."""

    def __init__(self, model: str, tuned: Tuned) -> None:
        self._tuned = {model: tuned}

    def known(self, hardware: Hardware) -> Hardware:
        return replace(hardware, tuned=self._tuned)


def ways(hardware: Hardware, cores: int) -> tuple[Tuned, ...]:
    """The ways to try, the usual one first; then, on a CPU, all cores, half of them, and so on."""
    if hardware.device == "cpu":
        counts = [cores >> halvings for halvings in range(cores.bit_length())]
        return (Tuned(), *(Tuned(threads=count) for count in counts))
    return (Tuned(), *(Tuned(kernel=name) for name in attention_kernels.candidates(hardware)))


def cores() -> int:
    """Cores that this process may use; all of them if the system can't tell (macOS)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def clip_for(model: Model, hardware: Hardware, tiny: bool) -> Clip:
    """A clip that is large enough to compare ways, and small enough to make a dozen times."""
    if hardware.device == "cpu":
        return Clip(128, 96, 9) if tiny else Clip(model.grid * 16, model.grid * 12, 5)
    return Clip(*model.default_size, 4 * model.temporal_stride + 1)


def run(
    worker: Worker,
    model_id: str,
    control: Control,
    say: Callable[[int, int], None] = lambda done, of: None,
) -> Calibration:
    """Measure one model. It takes as long as a dozen small jobs; other jobs may run in between.

    Args:
        control: a cancel takes effect within a step.
        say: called with the number of clips made so far and their total.

    Raises:
        WorkerError: a clip could not be made, or the measuring was cancelled.
    """
    model = MODELS[model_id]
    machine = worker.hardware
    installed = workers.installed(worker).get(model_id)
    clip = clip_for(model, machine, tiny=installed is not None and installed.tiny)
    candidates = ways(machine, cores())
    seconds: dict[Tuned, list[float]] = {way: [] for way in candidates}
    total = (ROUNDS + 1) * len(candidates)
    for index in range(total):
        control.check()
        way = candidates[index % len(candidates)]
        taken = _denoise(worker, model, clip, way, control)
        if index >= len(candidates):
            seconds[way].append(taken)
        say(index + 1, total)
    medians = {way: statistics.median(taken) for way, taken in seconds.items()}
    best = min(medians, key=lambda way: medians[way])
    usual = candidates[0]
    return Calibration(
        model=model_id,
        machine=machine.name,
        torch=version("torch"),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        clip=str(clip),
        trials=tuple(Trial(_trial_name(way), round(medians[way], 4)) for way in candidates),
        tuned=best if medians[best] < CLEARLY * medians[usual] else usual,
    )


def _trial_name(way: Tuned) -> str:
    if way.threads is not None:
        return f"{way.threads} {'thread' if way.threads == 1 else 'threads'}"
    return attention_kernels.NAMES[way.kernel] if way.kernel is not None else "as usual"


def _denoise(worker: Worker, model: Model, clip: Clip, way: Tuned, control: Control) -> float:
    """Seconds that one clip's denoising takes, in an ordinary job."""
    with tempfile.TemporaryDirectory() as folder:
        trial_worker = replace(
            worker,
            settings=replace(worker.settings, bucket=None, output_dir=Path(folder)),
            tuning=_FixedTuning(model.id, way),
            record=Record(),  # so that the worker's own record does not count this clip
        )
        request = {
            "mode": "video",
            "model": model.id,
            "prompt": "a red circle moving right on a white background",
            "width": clip.width,
            "height": clip.height,
            "num_frames": clip.num_frames,
            "num_inference_steps": STEPS,
            "seed": 0,
            **_pictures(model),
        }
        # The job reports its progress here; this passes a cancel on to it.
        answer = jobs.run(
            {"id": "calibration", "input": request}, trial_worker, Control(notify=control.check)
        )
    if "error" in answer:
        control.check()
        error: dict[str, Any] = json.loads(answer["error"])
        raise UnexpectedError(f"A clip could not be made: {error['code']}, {error['message']}")
    seconds: float = answer["metadata"]["timings"]["denoise"]
    return seconds


def _pictures(model: Model) -> dict[str, str]:
    """The pictures that the model needs: one to start from, and perhaps one to end with."""
    if model.text_pipeline is not None:
        return {}
    picture = BytesIO()
    Image.linear_gradient("L").convert("RGB").save(picture, "PNG")
    data = base64.b64encode(picture.getvalue()).decode("ascii")
    return {"image_url": data} | (
        {"last_image_url": data} if model.last_image == "required" else {}
    )
