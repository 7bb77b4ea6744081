"""How long will a job take, and how long has this kind of work taken so far?

Pure. If nobody has measured a kind of work here, its time is assumed: a fixed time and a time per
unit, which follow from the machine. Measurements correct that time as a whole by one factor,
measured over assumed. It is the median of the three samples nearest in size among the last ones of
the same kind of work, else of the same kind on another model. So one job is enough to learn from,
an odd one changes little, and both the fixed part and the part that grows with the size stay in it.
benchmarks/estimates.py measures how true the estimates are.

Once a job has a pace of its own, that pace corrects the time that is left.
Not covered: which work there is (work), keeping the samples (record).
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from wan_worker.machine.hardware import Hardware
from wan_worker.machine.peak_flops import SHARE, UNKNOWN_TFLOPS, peak_of
from wan_worker.timing.work import STAGES, Key, Kind, Quantity, StageWork

Basis = Literal["measured", "related", "assumed"]
"""Measured here for this work; measured here for another model; assumed from the machine."""

KEPT: Final = 16
"""Samples of one key that count."""

NEAREST: Final = 3
"""The median is of so many samples: the nearest in size; if equally near, the newest."""

ALIKE: Final = 0.1
"""Sizes whose logarithms are less apart than this are equally near."""

CPU_FLOPS: Final = 60e9
"""Operations a second of one core in fp32; measured on the tiny transformer."""


@dataclass(frozen=True)
class Sample:
    """Some finished work, and the seconds (for ``bytes``: the bytes) that it took each time."""

    key: Key
    amount: float
    measured: float
    cold: bool = False
    """The job loaded its model and ran it for the first time since: the sample counts only until
    there is one that is not cold."""


Samples = Mapping[Key, Sequence[Sample]]
"""By key, oldest first."""


@dataclass(frozen=True)
class StageTime:
    """The time that a job has spent in a stage, without leaving it."""

    stage: str
    seconds: float
    steps: tuple[float, ...] = ()
    """Seconds of each step that it reported."""


@dataclass(frozen=True)
class StageEstimate:
    """The estimated time of one stage of a job."""

    stage: str
    seconds: float
    steps: tuple[float, ...] = ()
    """Seconds of each step, part of ``seconds``; empty: all steps take equally long."""

    def after(self, done: int, count: int) -> float:
        """Seconds of the steps that follow the first ``done`` of ``count``."""
        if len(self.steps) == count:
            return sum(self.steps[done:])
        return self.seconds * max(0.0, 1 - done / max(count, 1))


@dataclass(frozen=True)
class Estimate:
    """A job's time from the moment that it has the GPU until its file is uploaded."""

    stages: tuple[StageEstimate, ...]
    basis: Basis
    """The basis for the kind of work that takes the longest."""
    samples: int
    """Number of measured jobs behind that."""
    work: tuple[StageWork, ...] = ()
    """The work that is estimated."""

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    def public(self) -> dict[str, Any]:
        """The estimate as reports and responses show it."""
        stages = dict.fromkeys(STAGES, 0.0)
        for stage in self.stages:
            stages[stage.stage] += stage.seconds  # type: ignore[index]
        return {
            "seconds": round(self.seconds, 3),
            "stages": {name: round(seconds, 3) for name, seconds in stages.items()},
            "basis": self.basis,
            "samples": self.samples,
        }


def make(work: Sequence[StageWork], samples: Samples, machine: Hardware) -> Estimate:
    """The estimated time of a job's stages."""
    stages: list[StageEstimate] = []
    longest = Quantity(Key("import", "", ""))
    by_key: dict[Key, float] = {}
    for stage in work:
        once = [*stage.once]
        if stage.stage == "upload":
            made, sent = once
            size = _measure(replace(made, times=1), samples, machine)
            once = [replace(sent, amount=size)]
        steps = tuple(_measure(quantity, samples, machine) for quantity in stage.steps)
        seconds = [_measure(quantity, samples, machine) for quantity in once]
        stages.append(StageEstimate(stage.stage, sum(seconds) + sum(steps), steps))
        for quantity, spent in zip([*once, *stage.steps], [*seconds, *steps], strict=True):
            by_key[quantity.key] = by_key.get(quantity.key, 0.0) + spent
            if by_key[quantity.key] >= by_key.get(longest.key, 0.0):
                longest = quantity
    _, basis, count = _factor(longest, samples, machine)
    return Estimate(tuple(stages), basis, count, tuple(work))


def left(
    stages: Sequence[StageEstimate],
    index: int,
    stage_time: StageTime | None,
    paces: Mapping[str, float],
    steps: int = 0,
) -> float:
    """Seconds from now to the end of the job.

    Args:
        index: the place of the current stage.
        stage_time: the time spent in it, with the steps that are done; None: the stage is over.
        paces: seconds over estimated seconds, of the stages that the job has been in.
        steps: the number of steps that the stage reports; 0: not known.
    """
    current, rest = stages[index], 0.0
    if stage_time is not None and stage_time.steps:
        own = pace(current, stage_time, steps)
        rest, paces = (
            current.after(len(stage_time.steps), steps) * own,
            {**paces, current.stage: own},
        )
    elif stage_time is not None:
        rest = max(0.0, current.seconds * paces.get(current.stage, 1.0) - stage_time.seconds)
    return rest + sum(later.seconds * paces.get(later.stage, 1.0) for later in stages[index + 1 :])


def pace(estimated: StageEstimate, stage_time: StageTime, steps: int = 0) -> float:
    """Seconds over estimated seconds; in a stage that goes on, of the steps that are done."""
    to_come = estimated.after(len(stage_time.steps), steps) if stage_time.steps and steps else 0.0
    return stage_time.seconds / max(estimated.seconds - to_come, 1e-9)


def learn(
    work: Sequence[StageWork], stage_times: Sequence[StageTime], file_bytes: Sequence[int]
) -> tuple[Sample, ...]:
    """Samples of a finished job.

    Args:
        stage_times: in order, from the moment that the job had the GPU.
        file_bytes: the size of each file.

    Returns:
        Nothing if the job did not go as planned: it began again after a fault, or was cut short.
    """
    covered = _covered(stage_times)
    if [stage_work.stage for stage_work in work] != [stage_time.stage for stage_time in covered]:
        return ()
    cold = any(q.key.kind in ("load", "import") for stage_work in work for q in stage_work.once)
    found: list[Sample] = []
    for stage_work, stage_time in zip(work, covered, strict=True):
        if stage_work.stage == "upload":
            made, sent = stage_work.once
            mean = statistics.mean(file_bytes)
            found.append(Sample(made.key, made.amount, mean, cold))
            found.append(Sample(sent.key, mean, stage_time.seconds / sent.times, cold))
        elif stage_work.steps:
            found += _step_samples(stage_work, stage_time, cold)
        else:
            found += _stage_sample(stage_work, stage_time, cold)
    return tuple(found)


def _covered(stage_times: Sequence[StageTime]) -> list[StageTime]:
    """The stages that an estimate covers; a file's check counts as part of its making."""
    found: list[StageTime] = []
    for stage_time in stage_times:
        if stage_time.stage == "check" and found:
            found[-1] = replace(found[-1], seconds=found[-1].seconds + stage_time.seconds)
        elif stage_time.stage in STAGES:
            found.append(stage_time)
    return found


def _stage_sample(stage_work: StageWork, stage_time: StageTime, cold: bool) -> Iterator[Sample]:
    """The sample of a stage with one main kind of work; the rest of its work is little."""
    kinds = {quantity.key.kind: quantity for quantity in stage_work.once}
    if "import" in kinds:
        return
    main = kinds.get("load") or stage_work.once[0]
    yield Sample(main.key, main.amount, stage_time.seconds / main.times, cold)


def _step_samples(stage_work: StageWork, stage_time: StageTime, cold: bool) -> Iterator[Sample]:
    """Samples of denoising: computed steps, reused steps, and what came before the first step."""
    if len(stage_time.steps) != len(stage_work.steps):
        return
    reused = [
        s for q, s in zip(stage_work.steps, stage_time.steps, strict=True) if q.key.kind == "reused"
    ]
    computed = [q for q in stage_work.steps if q.key.kind == "step"]
    start = stage_work.once[-1]  # the last: compiling takes longer than anything before it
    before = 0.0
    if len(stage_time.steps) > 2:
        rest = [s for q, s in zip(stage_work.steps[1:], stage_time.steps[1:], strict=True)
                if q.key.kind == "step"]  # fmt: skip
        before = max(0.0, stage_time.steps[0] - statistics.median(rest)) if rest else 0.0
        yield Sample(start.key, start.amount, before, cold)
    elif start.amount:
        return  # the picture's part of the first step is not known
    if reused:
        quantity = next(q for q in stage_work.steps if q.key.kind == "reused")
        median = statistics.median(reused)
        yield Sample(quantity.key, quantity.amount, median / quantity.times, cold)
    # The whole stage, not the times between steps: a GPU runs behind the calls that feed it.
    seconds = (stage_time.seconds - before - sum(reused)) / len(computed)
    yield Sample(computed[0].key, computed[0].amount, seconds / computed[0].times, cold)


def _measure(quantity: Quantity, samples: Samples, machine: Hardware) -> float:
    factor, _, _ = _factor(quantity, samples, machine)
    assumed = _assumed(quantity.key, quantity.amount, machine)
    return quantity.times * factor * assumed


def _factor(quantity: Quantity, samples: Samples, machine: Hardware) -> tuple[float, Basis, int]:
    """Measured over assumed, its basis, and the number of samples behind it."""
    key = quantity.key
    own = _warm_if_any(samples.get(key, ()))
    if own:
        return _median(own, quantity.amount, machine), "measured", len(own)
    others = [
        sample
        for other, found in samples.items()
        if (other.kind, other.conditions) == (key.kind, key.conditions)
        for sample in _warm_if_any(found)
    ]
    if others:
        return _median(others, quantity.amount, machine), "related", len(others)
    return 1.0, "assumed", 0


def _warm_if_any(found: Sequence[Sample]) -> Sequence[Sample]:
    warm = [sample for sample in found if not sample.cold]
    return (warm or found)[-KEPT:]


def _median(found: Sequence[Sample], amount: float, machine: Hardware) -> float:
    def distance(sample: Sample) -> int:
        return round(abs(math.log((1 + sample.amount) / (1 + amount))) / ALIKE)

    newest_first = found[::-1]
    near = sorted(newest_first, key=distance)[:NEAREST]
    return statistics.median(s.measured / _assumed(s.key, s.amount, machine) for s in near)


def _assumed(key: Key, amount: float, machine: Hardware) -> float:
    fixed, per_unit = _prior(key, machine)
    return fixed + per_unit * amount


def _prior(key: Key, machine: Hardware) -> tuple[float, float]:
    """Fixed seconds, and seconds per unit: a starting point; most are not measured."""
    peak = peak_of(machine.name)
    speed = CPU_FLOPS
    if machine.device == "cuda":
        speed = SHARE * 1e12 * (peak[0] if peak else UNKNOWN_TFLOPS)
    # A GPU's convolutions in fp32 are slower than its matrix products in bf16.
    full_speed = machine.device == "cpu" or (" bf16" in key.conditions and key.kind == "decode")
    convolution_speed = speed if full_speed else 0.5 * speed
    priors: dict[Kind, tuple[float, float]] = {
        "import": (8.0, 0.0),  # torch, diffusers and transformers (benchmarks/startup.py)
        "load": (0.1, 1e-9),  # 1 GB/s (benchmarks/loading.py)
        "arrange": (0.01, 0.0),
        "prompt": (0.02, 1 / speed),
        "remembered": (0.01, 0.0),
        # The encoder has about half of the decoder's work.
        "begin": (0.02, 0.5 / convolution_speed),
        "compile": (40.0, 0.0),  # one kind of block (planning.speedups)
        # The fixed part: the host starts a forward's kernels. A CPU computes them itself.
        "step": (0.01 if machine.device == "cuda" else 0.002, 1 / speed),
        "reused": (0.005, 0.05 / speed),
        # ffmpeg's start and the check of the file.
        "decode": (0.04, 1 / convolution_speed),
        "upload": (0.15, 5e-8) if key.subject in ("bucket", "caller") else (0.002, 2e-9),
        "bytes": (2000.0, _BYTES_PER_PIXEL.get(key.subject, 0.1)),
    }
    return priors[key.kind]


_BYTES_PER_PIXEL: Final = {"mp4": 0.1, "webm": 0.05, "gif": 0.6, "png": 1.5}


def error(estimate: Estimate, stage_times: Sequence[StageTime]) -> float | None:
    """(Estimated - taken) / taken; None if no time was taken yet."""
    taken = sum(stage_time.seconds for stage_time in _covered(stage_times))
    return (estimate.seconds - taken) / taken if taken > 0 else None
