"""Which way is the fastest on this machine? The same small clip is made each way, and timed.

By an operator's order alone, between jobs. Ways differ in how the same function is computed:
torch's threads on a CPU, attention kernels on a GPU (each of which has to prove right first,
attention). The clips are made through the one flow, in turn, so that whatever else the machine does
hits all ways; what is compared is the median time of denoising.
A way that is not clearly faster than the usual one does not replace it.
Not covered: keeping what won (tuning).
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
"""Clips of each way that are compared, after one that warms up."""

CLEARLY: Final = 0.97
"""Of the usual way's time: what comes to more than this is noise."""

STEPS: Final = 3


@dataclass(frozen=True)
class Clip:
    """What is made each way."""

    width: int
    height: int
    num_frames: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}, {self.num_frames} frames, {STEPS} steps"


class _Fixed(Tuning):
    """A way to be tried, in place of the file."""

    def __init__(self, model: str, tuned: Tuned) -> None:
        self._tuned = {model: tuned}

    def known(self, hardware: Hardware) -> Hardware:
        return replace(hardware, tuned=self._tuned)


def ways(hardware: Hardware, cores: int) -> tuple[Tuned, ...]:
    """What there is to try, the usual way first: on a CPU all cores, half of them, and so on."""
    if hardware.device == "cpu":
        counts = [cores >> halvings for halvings in range(cores.bit_length())]
        return (Tuned(), *(Tuned(threads=count) for count in counts))
    return (Tuned(), *(Tuned(kernel=name) for name in attention_kernels.candidates(hardware)))


def cores() -> int:
    """That this process may use, where the system tells (macOS does not); else all there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def clip_for(model: Model, hardware: Hardware, tiny: bool) -> Clip:
    """Large enough to tell, small enough to be made a dozen times."""
    if hardware.device == "cpu":
        return Clip(128, 96, 9) if tiny else Clip(model.grid * 16, model.grid * 12, 5)
    return Clip(*model.default_size, 4 * model.temporal_stride + 1)


def run(
    worker: Worker,
    model_id: str,
    control: Control,
    say: Callable[[int, int], None] = lambda done, of: None,
) -> Calibration:
    """Measure one model. Takes as long as a dozen small jobs; others may come in between.

    Args:
        control: its cancel is noticed within a step.
        say: is told how many clips of how many are made.

    Raises:
        WorkerError: a clip could not be made, or the cancel.
    """
    model = MODELS[model_id]
    machine = worker.hardware
    here = workers.installed(worker).get(model_id)
    clip = clip_for(model, machine, tiny=here is not None and here.tiny)
    tried = ways(machine, cores())
    seconds: dict[Tuned, list[float]] = {way: [] for way in tried}
    total = (ROUNDS + 1) * len(tried)
    for index in range(total):
        control.check()
        way = tried[index % len(tried)]
        taken = _denoise(worker, model, clip, way, control)
        if index >= len(tried):
            seconds[way].append(taken)
        say(index + 1, total)
    medians = {way: statistics.median(taken) for way, taken in seconds.items()}
    best = min(medians, key=lambda way: medians[way])
    usual = tried[0]
    return Calibration(
        model=model_id,
        machine=machine.name,
        torch=version("torch"),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        clip=str(clip),
        trials=tuple(Trial(_named(way), round(medians[way], 4)) for way in tried),
        tuned=best if medians[best] < CLEARLY * medians[usual] else usual,
    )


def _named(way: Tuned) -> str:
    if way.threads is not None:
        return f"{way.threads} {'thread' if way.threads == 1 else 'threads'}"
    return attention_kernels.SAID[way.kernel] if way.kernel is not None else "as usual"


def _denoise(worker: Worker, model: Model, clip: Clip, way: Tuned, control: Control) -> float:
    """Seconds of denoising one clip, made like any job's."""
    with tempfile.TemporaryDirectory() as folder:
        here = replace(
            worker,
            settings=replace(worker.settings, bucket=None, output_dir=Path(folder)),
            tuning=_Fixed(model.id, way),
            record=Record(),  # nobody's job
        )
        asked = {
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
        # A cancel is passed on by what the clip reports.
        answer = jobs.run(
            {"id": "calibration", "input": asked}, here, Control(notify=control.check)
        )
    if "error" in answer:
        control.check()
        told: dict[str, Any] = json.loads(answer["error"])
        raise UnexpectedError(f"A clip could not be made: {told['code']}, {told['message']}")
    seconds: float = answer["metadata"]["timings"]["denoise"]
    return seconds


def _pictures(model: Model) -> dict[str, str]:
    """What the model can't do without: a picture to start from, and one to end with."""
    if model.text_pipeline is not None:
        return {}
    picture = BytesIO()
    Image.linear_gradient("L").convert("RGB").save(picture, "PNG")
    data = base64.b64encode(picture.getvalue()).decode("ascii")
    return {"image_url": data} | (
        {"last_image_url": data} if model.last_image == "required" else {}
    )
