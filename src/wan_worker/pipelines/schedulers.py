"""The plan's solver as a scheduler of diffusers, fresh for each job. Not covered: the steps."""

from typing import Any

from wan_worker.catalog import distilled
from wan_worker.pipelines import sync_free
from wan_worker.planning.plan import Plan


def scheduler(plan: Plan) -> Any:
    """A fresh scheduler for the plan's solver, with its shift; it begins late for image-to-image.

    The same steps as ``of_diffusers`` takes, in which the host never waits for the GPU (ahead).
    """
    made = sync_free.unipc()(**_flow(plan)) if plan.solver == "unipc" else of_diffusers(plan)
    if plan.acceleration == "turbo" and plan.solver == distilled.SOLVER:
        _step_evenly(made)
    if plan.steps_taken < plan.num_inference_steps:
        _begin_late(made, plan.num_inference_steps - plan.steps_taken)
    sync_free.on_host(made, choosing=plan.model.two_experts)
    return made


def of_diffusers(plan: Plan) -> Any:
    """diffusers' own scheduler for the plan's solver and shift, with its whole schedule.

    The arguments are those of the schedulers that Wan's diffusers repositories ship, and of Wan's
    own ``--sample_solver`` choices.

    Raises:
        ValueError: no such solver.
    """
    from diffusers import (
        DPMSolverMultistepScheduler,
        FlowMatchEulerDiscreteScheduler,
        UniPCMultistepScheduler,
    )

    if plan.solver == "unipc":
        return UniPCMultistepScheduler(**_flow(plan))
    if plan.solver == "euler":
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=plan.flow_shift)
    if plan.solver == "dpm++":
        return DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", **_flow(plan))
    raise ValueError(f"unknown solver {plan.solver}")


def _flow(plan: Plan) -> dict[str, Any]:
    flow = {
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": plan.flow_shift,
        "num_train_timesteps": 1000,
    }
    return flow  # noqa: RET504 (named, for the test that reads its keys)


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
