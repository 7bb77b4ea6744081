"""What was measured to be faster here than what is chosen otherwise? A file, which can be undone.

An operator has a model measured (calibrate); what won is written to STATE_DIR, with what it was
measured against, and every plan for that model on this machine takes it and says so. Nothing is
ever chosen by the clock during a job: the same seed would give other bytes on another day.

Promises: what was measured on another GPU or with another torch is not used; the file is written
whole or not at all; ``undo`` brings back what was there before.
Not covered: the measuring (calibrate).
"""

import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from wan_worker.machine.hardware import Hardware, Tuned

log = logging.getLogger(__name__)

FILE: Final = "tuning.json"

KEPT: Final = 20
"""Calibrations that can be undone, one after the other."""


@dataclass(frozen=True)
class Trial:
    """One way that was measured."""

    way: str
    seconds: float
    """Median, of denoising the same clip."""


@dataclass(frozen=True)
class Calibration:
    """What came of measuring one model. Nothing is tuned where nothing was faster."""

    model: str
    machine: str
    torch: str
    date: str
    """ISO 8601."""
    clip: str
    """What was made, in words."""
    trials: tuple[Trial, ...]
    """The first is how it was done before."""
    tuned: Tuned

    @property
    def gain(self) -> float:
        """How many times as fast as before."""
        least = min(trial.seconds for trial in self.trials)
        return self.trials[0].seconds / least if self.tuned.changes else 1.0

    def public(self) -> dict[str, Any]:
        """As reports state it."""
        return asdict(self) | {"gain": round(self.gain, 3)}


class Tuning:
    """The file in STATE_DIR; read again when it has changed. For any thread."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / FILE
        self._lock = threading.Lock()
        self._seen: int | None = None
        self._calibrations: tuple[Calibration, ...] = ()

    @property
    def calibrations(self) -> tuple[Calibration, ...]:
        """All that are in force or could be again, oldest first."""
        with self._lock:
            self._read()
            return self._calibrations

    def add(self, calibration: Calibration) -> None:
        """Put a calibration in force; it replaces the model's last one until it is undone.

        Raises:
            OSError: STATE_DIR can't be written.
        """
        with self._lock:
            self._read()
            self._write((*self._calibrations, calibration)[-KEPT:])

    def undo(self) -> Calibration | None:
        """Take the newest calibration out of force; None where there is none.

        Raises:
            OSError: STATE_DIR can't be written.
        """
        with self._lock:
            self._read()
            if not self._calibrations:
                return None
            *before, last = self._calibrations
            self._write(tuple(before))
            return last

    def known(self, hardware: Hardware) -> Hardware:
        """The machine with what was measured on it."""
        return replace(hardware, tuned=self.measured(hardware.name, _torch()))

    def measured(self, machine: str, torch: str) -> dict[str, Tuned]:
        """What is in force on a machine with a version of torch, by model."""
        return {
            calibration.model: calibration.tuned
            for calibration in self.calibrations
            if (calibration.machine, calibration.torch) == (machine, torch)
        }

    def _read(self) -> None:
        try:
            changed = self._path.stat().st_mtime_ns
        except OSError:
            self._seen, self._calibrations = None, ()
            return
        if changed == self._seen:
            return
        try:
            found = json.loads(self._path.read_text("utf-8"))
            self._calibrations = tuple(_parsed(one) for one in found["calibrations"])
        except (OSError, ValueError, KeyError, TypeError) as problem:
            log.warning("%s can't be read (%s): nothing is tuned", FILE, type(problem).__name__)
            self._calibrations = ()
        self._seen = changed

    def _write(self, calibrations: tuple[Calibration, ...]) -> None:
        body = json.dumps({"calibrations": [asdict(one) for one in calibrations]}, indent=2)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        partial.write_text(body + "\n", "utf-8")
        partial.replace(self._path)
        self._calibrations, self._seen = calibrations, self._path.stat().st_mtime_ns


@cache
def _torch() -> str:
    """Its version, as installed: reading that takes a millisecond."""
    return version("torch")


def _parsed(given: Mapping[str, Any]) -> Calibration:
    trials = tuple(Trial(**trial) for trial in given["trials"])
    return Calibration(**{**given, "trials": trials, "tuned": Tuned(**given["tuned"])})
