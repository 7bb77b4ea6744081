"""Which settings were measured to be faster on this machine? A file holds them; they can be undone.

An operator has a model measured (calibrate). The fastest settings are written to STATE_DIR, with
the settings that they were compared with. Every plan for that model on this machine uses them and
says so. The clock never decides anything during a job: the same seed would give other bytes on
another day.

Promises: a measurement from another GPU or with another torch is not used; the file is written
whole or not at all; ``undo`` brings back the settings before.
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
"""Calibrations that are kept, and can be undone one after the other."""


@dataclass(frozen=True)
class Trial:
    """One measured setting."""

    way: str
    seconds: float
    """Median time to denoise the same clip."""


@dataclass(frozen=True)
class Calibration:
    """The result of measuring one model. ``tuned`` is the default if nothing was faster."""

    model: str
    machine: str
    torch: str
    date: str
    """ISO 8601."""
    clip: str
    """The clip that was made, in words."""
    trials: tuple[Trial, ...]
    """The first is the setting before the calibration."""
    tuned: Tuned

    @property
    def gain(self) -> float:
        """How many times as fast as before."""
        least = min(trial.seconds for trial in self.trials)
        return self.trials[0].seconds / least if self.tuned.changes else 1.0

    def public(self) -> dict[str, Any]:
        """The calibration as reports show it."""
        return asdict(self) | {"gain": round(self.gain, 3)}


class Tuning:
    """The file in STATE_DIR. It is read again when it has changed. Any thread may use it."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / FILE
        self._lock = threading.Lock()
        self._mtime_ns: int | None = None
        self._calibrations: tuple[Calibration, ...] = ()

    @property
    def calibrations(self) -> tuple[Calibration, ...]:
        """All calibrations that are in force or can be again, oldest first."""
        with self._lock:
            self._read()
            return self._calibrations

    def add(self, calibration: Calibration) -> None:
        """Put a calibration in force. It replaces the model's last one until it is undone.

        Raises:
            OSError: STATE_DIR can't be written.
        """
        with self._lock:
            self._read()
            self._write((*self._calibrations, calibration)[-KEPT:])

    def undo(self) -> Calibration | None:
        """Take the newest calibration out of force; None if there is none.

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
        """The machine with the settings that were measured on it."""
        return replace(hardware, tuned=self.measured(hardware.name, _torch_version()))

    def measured(self, machine: str, torch: str) -> dict[str, Tuned]:
        """The settings in force on a machine with a version of torch, by model."""
        return {
            calibration.model: calibration.tuned
            for calibration in self.calibrations
            if (calibration.machine, calibration.torch) == (machine, torch)
        }

    def _read(self) -> None:
        try:
            mtime_ns = self._path.stat().st_mtime_ns
        except OSError:
            self._mtime_ns, self._calibrations = None, ()
            return
        if mtime_ns == self._mtime_ns:
            return
        try:
            found = json.loads(self._path.read_text("utf-8"))
            self._calibrations = tuple(_parsed(entry) for entry in found["calibrations"])
        except (OSError, ValueError, KeyError, TypeError) as problem:
            log.warning("%s can't be read (%s): nothing is tuned", FILE, type(problem).__name__)
            self._calibrations = ()
        self._mtime_ns = mtime_ns

    def _write(self, calibrations: tuple[Calibration, ...]) -> None:
        body = json.dumps(
            {"calibrations": [asdict(calibration) for calibration in calibrations]}, indent=2
        )
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        partial.write_text(body + "\n", "utf-8")
        partial.replace(self._path)
        self._calibrations, self._mtime_ns = calibrations, self._path.stat().st_mtime_ns


@cache
def _torch_version() -> str:
    """The installed version of torch. Reading it takes a millisecond."""
    return version("torch")


def _parsed(entry: Mapping[str, Any]) -> Calibration:
    trials = tuple(Trial(**trial) for trial in entry["trials"])
    return Calibration(**{**entry, "trials": trials, "tuned": Tuned(**entry["tuned"])})
