"""What does ``acceleration`` change in a request, and what does the plan say about it?

Pure. ``turbo`` gives the request the settings that its weights were distilled for. They replace the
preset's and the model's settings; what the request itself sets stays. ``cached`` asks step_cache
which steps of the job's schedule may reuse a residual. ``exact`` changes nothing.
Not covered: carrying it out (pipelines.magcache, pipelines.lora, pipelines.schedulers), and which
models can do it (model_choice).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from wan_worker.catalog import distilled
from wan_worker.catalog.models import MODELS, Installed, Model
from wan_worker.errors import ModelUnavailable
from wan_worker.planning import step_cache
from wan_worker.planning.model_choice import install_hint, why_not
from wan_worker.request.parse import Notice, Request


def with_turbo_weights(
    request: Request, installed: Mapping[str, Installed], extras: Mapping[str, Installed]
) -> Mapping[str, Installed]:
    """The models for ``auto`` to choose from: for turbo those whose turbo weights are installed.

    If no model that serves the request has them, all models stay: the refusal then names what to
    install.
    """
    if request.acceleration != "turbo" or request.model != "auto":
        return installed
    able = {
        name: weights
        for name, weights in installed.items()
        if why_not(request, MODELS[name]) is None and set(MODELS[name].turbo_names) <= set(extras)
    }
    return able or installed


def turbo_settings(
    request: Request, model: Model, extras: Mapping[str, Installed]
) -> tuple[Request, str, tuple[Notice, ...]]:
    """The request with the settings that turbo's weights were made for, the reason, and notices.

    Raises:
        ModelUnavailable: the model's turbo weights are not installed.
    """
    absent = [name for name in model.turbo_names if name not in extras]
    if absent:
        raise ModelUnavailable(install_hint(*absent), field=request.pointer("acceleration"))
    made_for: dict[str, Any] = {
        "num_inference_steps": distilled.STEPS,
        "guidance_scale": distilled.GUIDANCE,
        "solver": distilled.SOLVER,
        "flow_shift": distilled.FLOW_SHIFT,
    }
    taken = {name: value for name, value in made_for.items() if name not in request.where}
    values = ", ".join(f"{name} {value}" for name, value in taken.items())
    why = f"acceleration: turbo, by distilled weights; {values or 'all settings as asked'}"
    request = replace(request, **taken)
    if request.guidance_scale == distilled.GUIDANCE:
        return request, why, ()
    notice = Notice(
        "TURBO_GUIDED",
        "Turbo's weights were distilled for guidance_scale 1; more takes twice as long and "
        "overdoes colours.",
    )
    return request, why, (notice,)


def cached_steps(
    model: Model, solver: str, flow_shift: float, steps: int, taken: int
) -> tuple[tuple[tuple[bool, ...], ...], str]:
    """For each transformer, which of its steps reuse a residual; and the reason."""
    reused = step_cache.steps_to_reuse(model, solver, flow_shift, steps, taken)
    count = sum(map(sum, reused))
    why = (
        f"acceleration: cached, {count} of {taken} steps take over what the step before computed, "
        f"by the ratios published for {model.id}"
    )
    return reused, why if count else f"{why}; they lie too far apart, and this is exact"
