"""Which denoising steps take over what the one before computed? (``acceleration: cached``)

Pure. The published ratios (magnitudes) tell how the residual shrinks from one noise level to the
next on Wan's own schedule. A job's schedule may have fewer steps and another shift, so the ratios
are read as a curve over the noise level, and each step's own ratio is taken from it: fewer steps
lie further apart, change more, and are reused less. On the schedule that was measured these are the
published numbers.

The rule is the published one. From a computed step on, the product of the ratios is how far the
kept residual is off in magnitude; the sum of |1 - product| is the error of the steps that reuse it.
A step is computed when the error would reach the threshold or too many in a row were reused, and
the first steps of each expert always are. Two rules are ours, for schedules that nobody measured:
a step is also computed when the computed one lies further back than anybody has published for (the
magnitude alone would let half of two steps be spared), and when its noise level was not measured.
Not covered: carrying it out (residuals).
"""

import math
from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from wan_worker.catalog.magcache_ratios import Curve
from wan_worker.catalog.models import Model
from wan_worker.planning.solvers import DEFAULT, SOLVERS, shifted

MARGIN: Final = 1e-4
"""Two noise levels this near are the same: schedules end a rounding error apart."""


def noise_levels(solver: str, shift: float, steps: int) -> tuple[float, ...]:
    """The share of noise at the start of each step, as diffusers' schedulers set it, falling."""
    levels = SOLVERS[solver].levels
    if levels is None:
        raise ValueError(f"the noise levels of {solver} are not known")
    return tuple(shifted(level, shift) for level in levels(shift, steps))


def steps_to_reuse(
    model: Model, solver: str, shift: float, steps: int, taken: int
) -> tuple[tuple[bool, ...], ...]:
    """For each transformer, in the order in which they work: is its step reused, step by step?

    Args:
        steps: of the whole schedule.
        taken: the last so many of them are taken.

    Raises:
        ValueError: no ratios are published for the model.
    """
    curve, levels = model.magcache, noise_levels(solver, shift, steps)[steps - taken :]
    if curve is None:
        raise ValueError(f"no ratios are published for {model.id}")
    measured = noise_levels(DEFAULT, curve.shift, curve.steps)
    boundary = model.boundary_ratio or 0.0
    found = []
    for expert, share in enumerate(curve.computed_first):
        known = [k for k, level in enumerate(measured) if (level < boundary) == bool(expert)]
        # From the expert's own first step: what the other one adds is no measure for it.
        logs = [0.0, *accumulate(math.log(curve.ratios[k - 1]) for k in known[1:])]
        line = _Line(tuple(measured[k] for k in known), tuple(logs))
        own = [line.place(level) for level in levels if (level < boundary) == bool(expert)]
        first = max(1, math.floor(share * len(own) + 0.5))
        found.append(_reused(own, line, first, curve))
    return tuple(found)


@dataclass(frozen=True)
class _Line:
    """One transformer's part of a measured schedule, and how large its residual is there."""

    levels: tuple[float, ...]
    """Share of noise at each step, falling."""
    logs: tuple[float, ...]
    """Logarithm of the magnitude over that of the first."""

    def place(self, level: float) -> float | None:
        """Which step of the schedule, with a fraction; None outside of what was measured."""
        if not self.levels[-1] - MARGIN <= level <= self.levels[0] + MARGIN:
            return None
        level = min(max(level, self.levels[-1]), self.levels[0])
        right = max(1, bisect_left(self.levels, -level, key=lambda known: -known))
        high, low = self.levels[right - 1], self.levels[right]
        return right - 1 + (high - level) / (high - low)

    def log(self, place: float) -> float:
        left = min(int(place), len(self.logs) - 2)
        return self.logs[left] + (place - left) * (self.logs[left + 1] - self.logs[left])


def _reused(places: list[float | None], line: _Line, first: int, curve: Curve) -> tuple[bool, ...]:
    """The rule, over the steps of one transformer, by their places on the measured schedule."""
    reused = []
    computed: float | None = None
    error, row = 0.0, 0
    for step, place in enumerate(places):
        fits = False
        if step >= first and place is not None and computed is not None:
            error += abs(1 - math.exp(line.log(place) - line.log(computed)))
            row += 1
            near = place - computed < curve.reach + MARGIN
            fits = error < curve.threshold and row <= curve.in_a_row and near
        if not fits:
            computed, error, row = place, 0.0, 0
        reused.append(fits)
    return tuple(reused)
