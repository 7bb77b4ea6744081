"""The plan's solver as a scheduler of diffusers, fresh for each job.

Not covered: which solvers there are (planning.solvers), the steps themselves.
"""

from typing import Any

from wan_worker.catalog import distilled
from wan_worker.pipelines import sync_free
from wan_worker.planning.plan import Plan
from wan_worker.planning.solvers import SOLVERS


def scheduler(plan: Plan) -> Any:
    """A fresh scheduler for the plan's solver, with its shift; it begins late for image-to-image.

    The same steps as ``of_diffusers`` takes, in which the host never waits for the GPU (sync_free).
    """
    if plan.solver == "unipc":
        made = sync_free.unipc()(**SOLVERS[plan.solver].arguments(plan.flow_shift))
    else:
        made = of_diffusers(plan)
    if plan.acceleration == "turbo" and plan.solver == distilled.SOLVER:
        _step_evenly(made)
    if plan.steps_taken < plan.num_inference_steps:
        _begin_late(made, plan.num_inference_steps - plan.steps_taken)
    sync_free.on_host(made, choosing=plan.model.two_experts)
    return made


def of_diffusers(plan: Plan) -> Any:
    """diffusers' own scheduler for the plan's solver and shift, with its whole schedule.

    Raises:
        ValueError: no such solver.
    """
    import diffusers

    if plan.solver not in SOLVERS:
        raise ValueError(f"unknown solver {plan.solver}")
    solver = SOLVERS[plan.solver]
    return getattr(diffusers, solver.scheduler)(**solver.arguments(plan.flow_shift))


def _step_evenly(scheduler: Any) -> None:
    """Let Euler's steps begin at 1, 1 - 1/n, ... of the noise: what turbo's weights were made for.

    Its own schedule ends at the least noise that there is, which leaves the last step nothing.
    """
    set_timesteps = scheduler.set_timesteps

    def set_evenly(steps: int, device: Any = None) -> None:
        set_timesteps(sigmas=[1 - k / steps for k in range(steps)], device=device)

    scheduler.set_timesteps = set_evenly


def _begin_late(scheduler: Any, skipped: int) -> None:
    """Let a scheduler's schedule start some steps in, whenever it is set.

    diffusers' own video-to-video pipeline cuts the timesteps itself; the text-to-video pipeline,
    which also drives two experts, takes the whole schedule from its scheduler.
    """
    set_timesteps = scheduler.set_timesteps

    def set_late(*args: Any, **kwargs: Any) -> None:
        set_timesteps(*args, **kwargs)
        scheduler.timesteps = scheduler.timesteps[skipped:]
        scheduler.sigmas = scheduler.sigmas[skipped:]

    scheduler.set_timesteps = set_late
