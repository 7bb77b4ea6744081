"""The plan's solver as a scheduler of diffusers, fresh for each job. Not covered: the steps."""

from typing import Any

from wan_worker.plan import Plan


def scheduler(plan: Plan) -> Any:
    """A fresh scheduler for the plan's solver, with its shift; it begins late for image-to-image.

    The arguments are those of the schedulers that Wan's diffusers repositories ship, and of Wan's
    own ``--sample_solver`` choices.
    """
    from diffusers import (
        DPMSolverMultistepScheduler,
        FlowMatchEulerDiscreteScheduler,
        UniPCMultistepScheduler,
    )

    made: Any
    flow = {
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": plan.flow_shift,
        "num_train_timesteps": 1000,
    }
    if plan.solver == "unipc":
        made = UniPCMultistepScheduler(**flow)
    elif plan.solver == "euler":
        made = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=plan.flow_shift)
    elif plan.solver == "dpm++":
        made = DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", **flow)
    else:
        raise ValueError(f"unknown solver {plan.solver}")
    if plan.steps_taken < plan.num_inference_steps:
        _begin_late(made, plan.num_inference_steps - plan.steps_taken)
    return made


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
