"""Which solvers are there, as which scheduler of diffusers, and on which noise levels do they step?

One entry a solver: the schema's enum is written from it, schedulers are made from it, and the step
cache asks it for the levels (tests hold them against the schedulers'). Scheduler classes and
options are those of Wan's diffusers repositories, and of Wan's own ``--sample_solver`` choices.
Not covered: making a scheduler (pipelines.schedulers).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

TRAINING_STEPS: Final = 1000
"""Timesteps that Wan was trained on; the least noise that a schedule names is one of them."""

DEFAULT: Final = "unipc"
"""Wan's own, for a request that names none. MagCache's ratios were measured with it."""

_LEAST: Final = 1 / TRAINING_STEPS
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
    """What that class calls flow_shift."""
    levels: Callable[[float, int], list[float]] | None
    """Of shift and steps: the share of noise at the start of each step, before it is shifted.
    None: the step cache does not know this solver."""
    options: Mapping[str, str | bool] = field(default_factory=dict)
    """What else the class is given."""

    def arguments(self, shift: float) -> dict[str, object]:
        """What its class is made with."""
        return {"num_train_timesteps": TRAINING_STEPS, self.shift_argument: shift, **self.options}


def shifted(level: float, shift: float) -> float:
    """A share of noise after flow_shift has moved it towards all of it."""
    return shift * level / (1 + (shift - 1) * level)


def _unipc(shift: float, steps: int) -> list[float]:
    return [1 - (1 - _LEAST) * k / steps for k in range(steps)]


def _euler(shift: float, steps: int) -> list[float]:
    # Its last step is at the least noise itself, which it shifts twice.
    lowest, intervals = shifted(_LEAST, shift), max(1, steps - 1)
    return [1 - (1 - lowest) * k / intervals for k in range(steps)]


def _dpm(shift: float, steps: int) -> list[float]:
    return [(1 - _LEAST) * (1 - k / steps) for k in range(steps)]


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
"""By the name that requests use."""
