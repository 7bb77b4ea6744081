"""Which denoising steps reuse the residual of a step before them? (``acceleration: cached``)

Pure. The published ratios (catalog.magcache_ratios) tell how the residual shrinks from one noise
level to the next on Wan's own schedule. A job's schedule may have fewer steps and another shift. So
the ratios are read as a curve over the noise level, and each step's own ratio comes from the curve.
Fewer steps are further apart, differ more, and are reused less. On the measured schedule the
results are the published numbers.

The rule is the published one. From a computed step on, the product of the ratios tells how far the
kept residual is off in magnitude. The sum of |1 - product| is the error of the steps that reuse it.
A step is computed when the error would reach the threshold, or when too many in a row were reused.
The first steps of each expert are always computed. Two rules are ours, for schedules that nobody
measured. A step is also computed when the last computed step is further back than anybody has
published (by magnitude alone, one of two steps could be reused), and when its noise level was not
measured.
Not covered: reusing the residuals (pipelines.magcache).
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
"""Noise levels this close are the same: schedules end a rounding error apart."""


def noise_levels(solver: str, shift: float, steps: int) -> tuple[float, ...]:
    """The share of noise at the start of each step, falling, as diffusers' schedulers set it."""
    levels = SOLVERS[solver].levels
    if levels is None:
        raise ValueError(f"the noise levels of {solver} are not known")
    return tuple(shifted(level, shift) for level in levels(shift, steps))


def steps_to_reuse(
    model: Model, solver: str, shift: float, steps: int, taken: int
) -> tuple[tuple[bool, ...], ...]:
    """For each transformer, in the order of their work: is each of its steps reused?

    Args:
        steps: of the whole schedule.
        taken: only the last ``taken`` of them run.

    Raises:
        ValueError: no ratios are published for the model.
    """
    curve, levels = model.magcache, noise_levels(solver, shift, steps)[steps - taken :]
    if curve is None:
        raise ValueError(f"no ratios are published for {model.id}")
    measured = noise_levels(DEFAULT, curve.shift, curve.steps)
    boundary = model.boundary_ratio or 0.0
    reused = []
    for expert, share in enumerate(curve.computed_first):
        own = [k for k, level in enumerate(measured) if (level < boundary) == bool(expert)]
        # Relative to the expert's own first step: the other's residual is no measure for it.
        logs = [0.0, *accumulate(math.log(curve.ratios[k - 1]) for k in own[1:])]
        magnitude = _Magnitude(tuple(measured[k] for k in own), tuple(logs))
        places = [magnitude.place(level) for level in levels if (level < boundary) == bool(expert)]
        computed_first = max(1, math.floor(share * len(places) + 0.5))
        reused.append(_reused(places, magnitude, computed_first, curve))
    return tuple(reused)


@dataclass(frozen=True)
class _Magnitude:
    """How large the residual of one transformer is, on its part of the measured schedule."""

    levels: tuple[float, ...]
    """Share of noise at each step, falling."""
    logs: tuple[float, ...]
    """Logarithm of the magnitude at each step, relative to the first step."""

    def place(self, level: float) -> float | None:
        """The step with this noise level, with a fraction; None if the level was not measured."""
        if not self.levels[-1] - MARGIN <= level <= self.levels[0] + MARGIN:
            return None
        level = min(max(level, self.levels[-1]), self.levels[0])
        right = max(1, bisect_left(self.levels, -level, key=lambda measured: -measured))
        high, low = self.levels[right - 1], self.levels[right]
        return right - 1 + (high - level) / (high - low)

    def log(self, place: float) -> float:
        left = min(int(place), len(self.logs) - 2)
        return self.logs[left] + (place - left) * (self.logs[left + 1] - self.logs[left])


def _reused(
    places: list[float | None], magnitude: _Magnitude, computed_first: int, curve: Curve
) -> tuple[bool, ...]:
    """The rule for the steps of one transformer, given their places on the measured schedule."""
    reused = []
    computed: float | None = None
    error, in_a_row = 0.0, 0
    for step, place in enumerate(places):
        reuse = False
        if step >= computed_first and place is not None and computed is not None:
            error += abs(1 - math.exp(magnitude.log(place) - magnitude.log(computed)))
            in_a_row += 1
            near = place - computed < curve.reach + MARGIN
            reuse = error < curve.threshold and in_a_row <= curve.in_a_row and near
        if not reuse:
            computed, error, in_a_row = place, 0.0, 0
        reused.append(reuse)
    return tuple(reused)
