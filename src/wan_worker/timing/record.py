"""What has this worker done so far? Only this and loaded weights outlive a job.

Two things are kept: samples of each kind of work, for estimates, and how jobs ended, for reports.
Both are bounded: only the last ones are kept, while counts go on. Any thread may write and read; a
reader gets a copy. The record ends with the process and changes nothing of what is generated.
Not covered: estimates (estimate) and reports (reports.performance) that use it.
"""

import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from wan_worker.timing.estimate import KEPT, Sample, Samples
from wan_worker.timing.work import Key

MAX_KEYS: Final = 512
"""Kinds of work that are kept; beyond that the one seen longest ago is forgotten."""

RECENT: Final = 1000
"""Number of completed jobs that percentiles are computed from."""

COMPLETED: Final = "COMPLETED"
"""A completed job has this code; a failed job has its error's code."""


@dataclass(frozen=True)
class Ended:
    """A completed job."""

    model: str
    seconds: Mapping[str, float]
    """By stage; ``queue`` and ``total`` are included."""
    peak_bytes: int | None
    """The most GPU memory that it took; None on a CPU."""
    estimate_error: float | None
    """(Estimated - taken) / taken."""


@dataclass(frozen=True)
class History:
    """How jobs have ended since the worker started."""

    since: float
    """Seconds since 1970."""
    codes: Mapping[str, int]
    """Number of jobs, by ``COMPLETED`` or their error's code."""
    totals: Mapping[tuple[str, str], tuple[int, float]]
    """Number of completed jobs and their seconds, by model and stage."""
    recent: tuple[Ended, ...]


class Record:
    """Samples of finished work by its kind, and how jobs ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._samples: dict[Key, deque[Sample]] = {}
        self._since = time.time()
        self._codes: dict[str, int] = {}
        self._totals: dict[tuple[str, str], tuple[int, float]] = {}
        self._recent: deque[Ended] = deque(maxlen=RECENT)

    def add(self, samples: Iterable[Sample]) -> None:
        with self._lock:
            for sample in samples:
                kept = self._samples.pop(sample.key, None) or deque(maxlen=2 * KEPT)
                kept.append(sample)
                self._samples[sample.key] = kept
            while len(self._samples) > MAX_KEYS:
                del self._samples[next(iter(self._samples))]

    def completed(self, metadata: Mapping[str, Any], peak_bytes: int | None) -> None:
        """Record a job that has completed.

        Args:
            metadata: the answer's metadata.
        """
        estimate = metadata["estimate"] or {}
        job = Ended(metadata["model"], metadata["timings"], peak_bytes, estimate.get("error"))
        with self._lock:
            self._codes[COMPLETED] = self._codes.get(COMPLETED, 0) + 1
            self._recent.append(job)
            for stage, seconds in job.seconds.items():
                count, total = self._totals.get((job.model, stage), (0, 0.0))
                self._totals[job.model, stage] = count + 1, total + seconds

    def failed(self, code: str) -> None:
        with self._lock:
            self._codes[code] = self._codes.get(code, 0) + 1

    def has(self, key: Key, amount: float) -> bool:
        """Is there a sample of exactly this amount?"""
        with self._lock:
            return any(sample.amount == amount for sample in self._samples.get(key, ()))

    @property
    def samples(self) -> Samples:
        with self._lock:
            return {key: tuple(kept) for key, kept in self._samples.items()}

    @property
    def history(self) -> History:
        with self._lock:
            return History(self._since, dict(self._codes), dict(self._totals), tuple(self._recent))
