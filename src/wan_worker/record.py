"""What has this worker done so far? The one thing, beside loaded weights, that outlives a job.

Bounded: of each kind of work the last samples are kept. Any thread may write and read; what is read
is a copy. It goes with the process, and changes nothing of what is generated.
Not covered: what follows from it (estimate).
"""

import threading
from collections import deque
from collections.abc import Iterable

from wan_worker.estimate import KEPT, Sample, Samples
from wan_worker.work import Key

MAX_KEYS = 512
"""Kinds of work; beyond that the one seen longest ago is forgotten."""


class Record:
    """Samples of finished work, by its kind."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._samples: dict[Key, deque[Sample]] = {}

    def add(self, samples: Iterable[Sample]) -> None:
        with self._lock:
            for sample in samples:
                kept = self._samples.pop(sample.key, None) or deque(maxlen=2 * KEPT)
                kept.append(sample)
                self._samples[sample.key] = kept
            while len(self._samples) > MAX_KEYS:
                del self._samples[next(iter(self._samples))]

    @property
    def samples(self) -> Samples:
        with self._lock:
            return {key: tuple(kept) for key, kept in self._samples.items()}
