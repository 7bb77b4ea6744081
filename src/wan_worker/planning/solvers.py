"""Which solvers are there, which scheduler of diffusers is each, and what are its noise levels?

One entry for each solver. The schema's enum is written from it, schedulers are made from it, and
the step cache gets the levels from it (tests compare them with the schedulers'). Scheduler classes
and options come from Wan's diffusers repositories and Wan's own ``--sample_solver`` choices.
Not covered: making a scheduler (pipelines.schedulers).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

TRAINING_STEPS: Final = 1000
"""Timesteps that Wan was trained on. The least noise of a schedule is one of them."""

DEFAULT: Final = "unipc"
"""Wan's own solver, for a request without one. MagCache's ratios were measured with it."""

_LEAST_NOISE: Final = 1 / TRAINING_STEPS
_FLOW: Final[Mapping[str, str | bool]] = {
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
}


@dataclass(frozen=True)
class Solver:
    """One way to take a denoising step."""

    scheduler: str
    """Its class in diffusers."""
    shift_argument: str
    """That class's name for flow_shift."""
    levels: Callable[[float, int], list[float]] | None
    """From shift and steps: the share of noise at the start of each step, before the shift.
    None: the step cache does not know this solver."""
    options: Mapping[str, str | bool] = field(default_factory=dict)
    """Other arguments of that class."""

    def arguments(self, shift: float) -> dict[str, object]:
        """Arguments of its class."""
        return {"num_train_timesteps": TRAINING_STEPS, self.shift_argument: shift, **self.options}


def shifted(level: float, shift: float) -> float:
    """A share of noise after flow_shift has moved it towards 1."""
    return shift * level / (1 + (shift - 1) * level)


def _unipc(shift: float, steps: int) -> list[float]:
    return [1 - (1 - _LEAST_NOISE) * k / steps for k in range(steps)]


def _euler(shift: float, steps: int) -> list[float]:
    # Its last step is at the least noise. This scheduler shifts that level twice.
    lowest, intervals = shifted(_LEAST_NOISE, shift), max(1, steps - 1)
    return [1 - (1 - lowest) * k / intervals for k in range(steps)]


def _dpm(shift: float, steps: int) -> list[float]:
    return [(1 - _LEAST_NOISE) * (1 - k / steps) for k in range(steps)]


SOLVERS: Final[Mapping[str, Solver]] = {
    "unipc": Solver("UniPCMultistepScheduler", "flow_shift", _unipc, _FLOW),
    "euler": Solver("FlowMatchEulerDiscreteScheduler", "shift", _euler),
    "dpm++": Solver(
        "DPMSolverMultistepScheduler",
        "flow_shift",
        _dpm,
        {**_FLOW, "algorithm_type": "dpmsolver++"},
    ),
}
"""By their names in requests."""
