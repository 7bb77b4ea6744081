"""How long will a job take, and how long has this kind of work taken so far?

Pure. Work that nobody has measured here is assumed to take a fixed time and a time per unit, from
what the machine is. What was measured corrects that as a whole: by measured over assumed, the
median of the three samples nearest in size among the last ones of the same kind of work, else of
the same kind on another model. So one job is enough to learn from, an odd one changes little, and
both the fixed part and the part that grows with the size stay in it. How true that comes is
measured by benchmarks/estimates.py.

A job's own pace, once it has one, corrects what is left of it.
Not covered: what work there is (work), keeping the samples (record).
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
"""This very work on this worker; the same on another model; nothing but the machine."""

KEPT: Final = 16
"""Samples of one key that count."""

NEAREST: Final = 3
"""Of those, the ones whose median is taken: nearest in size, of equally near ones the newest."""

ALIKE: Final = 0.1
"""As logarithms: sizes less apart than this are equally near."""

CPU_FLOPS: Final = 60e9
"""Operations a second of one core in fp32; measured on the tiny transformer."""


@dataclass(frozen=True)
class Sample:
    """Some work that was done, and its seconds (of ``bytes``: the bytes) for each time."""

    key: Key
    amount: float
    measured: float
    cold: bool = False
    """In a job that loaded its model, and ran it for the first time since: it counts only until
    there is another."""


Samples = Mapping[Key, Sequence[Sample]]
"""By key, oldest first."""


@dataclass(frozen=True)
class StageTime:
    """What a job has spent in a stage without leaving it."""

    stage: str
    seconds: float
    steps: tuple[float, ...] = ()
    """Seconds of each step that it reported."""


@dataclass(frozen=True)
class Expected:
    """Seconds of one stay in a stage."""

    stage: str
    seconds: float
    steps: tuple[float, ...] = ()
    """Of which, seconds of each step; empty: as much for each."""

    def after(self, done: int, count: int) -> float:
        """Seconds of the steps that follow the first ``done`` of ``count``."""
        if len(self.steps) == count:
            return sum(self.steps[done:])
        return self.seconds * max(0.0, 1 - done / max(count, 1))


@dataclass(frozen=True)
class Estimate:
    """A job's time from the moment it has the GPU to the uploaded file."""

    stages: tuple[Expected, ...]
    basis: Basis
    """Of the kind of work that takes the longest."""
    samples: int
    """Measured jobs behind that."""
    work: tuple[StageWork, ...] = ()
    """What it is an estimate of."""

    @property
    def seconds(self) -> float:
        return sum(visit.seconds for visit in self.stages)

    def public(self) -> dict[str, Any]:
        """As reports and responses state it."""
        stages = dict.fromkeys(STAGES, 0.0)
        for visit in self.stages:
            stages[visit.stage] += visit.seconds  # type: ignore[index]
        return {
            "seconds": round(self.seconds, 3),
            "stages": {stage: round(seconds, 3) for stage, seconds in stages.items()},
            "basis": self.basis,
            "samples": self.samples,
        }


def make(work: Sequence[StageWork], samples: Samples, machine: Hardware) -> Estimate:
    """The time of a job's stages."""
    stages: list[Expected] = []
    longest = Quantity(Key("import", "", ""))
    by_key: dict[Key, float] = {}
    for visit in work:
        once = [*visit.once]
        if visit.stage == "upload":
            made, sent = once
            size = _measure(replace(made, times=1), samples, machine)
            once = [replace(sent, amount=size)]
        steps = tuple(_measure(quantity, samples, machine) for quantity in visit.steps)
        seconds = [_measure(quantity, samples, machine) for quantity in once]
        stages.append(Expected(visit.stage, sum(seconds) + sum(steps), steps))
        for quantity, spent in zip([*once, *visit.steps], [*seconds, *steps], strict=True):
            by_key[quantity.key] = by_key.get(quantity.key, 0.0) + spent
            if by_key[quantity.key] >= by_key.get(longest.key, 0.0):
                longest = quantity
    _, basis, count = _factor(longest, samples, machine)
    return Estimate(tuple(stages), basis, count, tuple(work))


def left(
    stages: Sequence[Expected],
    at: int,
    stay: StageTime | None,
    paces: Mapping[str, float],
    steps: int = 0,
) -> float:
    """Seconds from now to the end of the job.

    Args:
        at: the place of the current visit.
        stay: what has been spent in it, its steps being those that are done; None: it is over.
        paces: seconds over what was expected, of stages that the job has been in.
        steps: all that the stage reports; 0: not known.
    """
    here, rest = stages[at], 0.0
    if stay is not None and stay.steps:
        own = pace(here, stay, steps)
        rest, paces = here.after(len(stay.steps), steps) * own, {**paces, here.stage: own}
    elif stay is not None:
        rest = max(0.0, here.seconds * paces.get(here.stage, 1.0) - stay.seconds)
    return rest + sum(v.seconds * paces.get(v.stage, 1.0) for v in stages[at + 1 :])


def pace(here: Expected, stay: StageTime, steps: int = 0) -> float:
    """Seconds over what was expected; of a stay that goes on, for the steps that are done."""
    ahead = here.after(len(stay.steps), steps) if stay.steps and steps else 0.0
    return stay.seconds / max(here.seconds - ahead, 1e-9)


def learn(
    work: Sequence[StageWork], stage_times: Sequence[StageTime], file_bytes: Sequence[int]
) -> tuple[Sample, ...]:
    """Samples of a finished job.

    Args:
        stage_times: in order, from the moment that the job had the GPU.
        file_bytes: of each file.

    Returns:
        Nothing where the job did not go as planned: it was begun again after a fault, or cut short.
    """
    whole = _covered(stage_times)
    if [visit.stage for visit in work] != [stay.stage for stay in whole]:
        return ()
    cold = any(q.key.kind in ("load", "import") for visit in work for q in visit.once)
    found: list[Sample] = []
    for visit, stay in zip(work, whole, strict=True):
        if visit.stage == "upload":
            made, sent = visit.once
            mean = statistics.mean(file_bytes)
            found.append(Sample(made.key, made.amount, mean, cold))
            found.append(Sample(sent.key, mean, stay.seconds / sent.times, cold))
        elif visit.steps:
            found += _of_steps(visit, stay, cold)
        else:
            found += _of_one(visit, stay, cold)
    return tuple(found)


def _covered(stage_times: Sequence[StageTime]) -> list[StageTime]:
    """Those that an estimate is about; a file's check is part of its making."""
    found: list[StageTime] = []
    for stay in stage_times:
        if stay.stage == "check" and found:
            found[-1] = replace(found[-1], seconds=found[-1].seconds + stay.seconds)
        elif stay.stage in STAGES:
            found.append(stay)
    return found


def _of_one(visit: StageWork, stay: StageTime, cold: bool) -> Iterator[Sample]:
    """Of a stay with one kind of work; what it comes with is little beside it."""
    kinds = {quantity.key.kind: quantity for quantity in visit.once}
    if "import" in kinds:
        return
    main = kinds.get("load") or visit.once[0]
    yield Sample(main.key, main.amount, stay.seconds / main.times, cold)


def _of_steps(visit: StageWork, stay: StageTime, cold: bool) -> Iterator[Sample]:
    """Of denoising: the steps that are computed, those that are not, what came before the first."""
    if len(stay.steps) != len(visit.steps):
        return
    spared = [s for q, s in zip(visit.steps, stay.steps, strict=True) if q.key.kind == "reused"]
    computed = [q for q in visit.steps if q.key.kind == "step"]
    begun = visit.once[-1]  # what is compiled takes longer than anything before it
    before = 0.0
    if len(stay.steps) > 2:
        rest = [s for q, s in zip(visit.steps[1:], stay.steps[1:], strict=True)
                if q.key.kind == "step"]  # fmt: skip
        before = max(0.0, stay.steps[0] - statistics.median(rest)) if rest else 0.0
        yield Sample(begun.key, begun.amount, before, cold)
    elif begun.amount:
        return  # the picture's part of the first step can't be told
    if spared:
        quantity = next(q for q in visit.steps if q.key.kind == "reused")
        middle = statistics.median(spared)
        yield Sample(quantity.key, quantity.amount, middle / quantity.times, cold)
    # All of the stay, not the marks between the steps: a GPU runs behind the calls that feed it.
    seconds = (stay.seconds - before - sum(spared)) / len(computed)
    yield Sample(computed[0].key, computed[0].amount, seconds / computed[0].times, cold)


def _measure(quantity: Quantity, samples: Samples, machine: Hardware) -> float:
    factor, _, _ = _factor(quantity, samples, machine)
    assumed = _assumed(quantity.key, quantity.amount, machine)
    return quantity.times * factor * assumed


def _factor(quantity: Quantity, samples: Samples, machine: Hardware) -> tuple[float, Basis, int]:
    """Measured over assumed, where from, and by how many samples."""
    key = quantity.key
    own = _settled(samples.get(key, ()))
    if own:
        return _median(own, quantity.amount, machine), "measured", len(own)
    others = [
        sample
        for other, found in samples.items()
        if (other.kind, other.how) == (key.kind, key.how)
        for sample in _settled(found)
    ]
    if others:
        return _median(others, quantity.amount, machine), "related", len(others)
    return 1.0, "assumed", 0


def _settled(found: Sequence[Sample]) -> Sequence[Sample]:
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
    """Seconds whatever the amount, and seconds per unit; anchors, most of them not measured."""
    peak = peak_of(machine.name)
    speed = CPU_FLOPS
    if machine.device == "cuda":
        speed = SHARE * 1e12 * (peak[0] if peak else UNKNOWN_TFLOPS)
    # A GPU's convolutions in fp32 are slower than its products in bf16.
    narrow = machine.device == "cpu" or (" bf16" in key.how and key.kind == "decode")
    convolving = speed if narrow else 0.5 * speed
    priors: dict[Kind, tuple[float, float]] = {
        "import": (8.0, 0.0),  # torch, diffusers and transformers (benchmarks/startup.py)
        "load": (0.1, 1e-9),  # 1 GB/s (benchmarks/loading.py)
        "arrange": (0.01, 0.0),
        "prompt": (0.02, 1 / speed),
        "remembered": (0.01, 0.0),
        # The encoder has about half of the decoder's work.
        "begin": (0.02, 0.5 / convolving),
        # What the host takes to start a forward's kernels; a CPU computes them itself.
        "compile": (40.0, 0.0),  # one kind of block (exact)
        "step": (0.01 if machine.device == "cuda" else 0.002, 1 / speed),
        "reused": (0.005, 0.05 / speed),
        # ffmpeg's start and the check of the file.
        "decode": (0.04, 1 / convolving),
        "upload": (0.15, 5e-8) if key.of in ("bucket", "caller") else (0.002, 2e-9),
        "bytes": (2000.0, _BYTES_PER_PIXEL.get(key.of, 0.1)),
    }
    return priors[key.kind]


_BYTES_PER_PIXEL: Final = {"mp4": 0.1, "webm": 0.05, "gif": 0.6, "png": 1.5}


def error(estimate: Estimate, stage_times: Sequence[StageTime]) -> float | None:
    """(Estimated - taken) / taken; None before anything was."""
    taken = sum(stay.seconds for stay in _covered(stage_times))
    return (estimate.seconds - taken) / taken if taken > 0 else None
