"""Memory ran out although the plan had counted on it: what is tried instead, once? Pure.

The estimates can be wrong: other processes take memory, allocators leave gaps. The second try goes
down the ladder of layouts (memory) to the first that takes less, one output at a time.
Not covered: noticing it and trying again (clips).
"""

from dataclasses import replace

from wan_worker.catalog.models import Installed
from wan_worker.machine.hardware import Hardware
from wan_worker.planning import memory
from wan_worker.planning.memory import Layout, gb
from wan_worker.planning.plan import Plan, job_size
from wan_worker.settings import Placement


def lower_layout(
    plan: Plan, here: Installed, hardware: Hardware, placement: Placement | None, stage: str
) -> Plan:
    """The plan in less memory, with a reason; the same layout where none takes less.

    Args:
        placement: the operator's, which is kept to.
        stage: of the job (progress), in which memory ran out.
    """
    layout = _below(plan, here, hardware, placement, stage)
    if layout is None:
        layout, said = plan.layout, "with everything else out of the way"
    else:
        said = f"weights {layout.placement}, decoding {_DECODING[layout.decode]}"
    reason = f"memory: it ran out in {stage}; tried again one output at a time, {said}"
    return replace(
        plan,
        layout=layout,
        batch_size=1,
        speedups=replace(plan.speedups, batched_guidance=False, compiled=False),
        # Another model's segments keep the layout that was found for that model.
        segments=tuple(
            replace(
                s,
                layout=layout,
                speedups=replace(s.speedups, batched_guidance=False, compiled=False),
            )
            if s.model == plan.model
            else s
            for s in plan.segments
        ),
        reasons=(*plan.reasons, reason),
        notices=(*plan.notices, *(n for n in memory.notices(layout) if n not in plan.notices)),
    )


def advice(plan: Plan, here: Installed) -> str:
    """Which smaller job takes a quarter less, to end an error's message with."""
    asked = job_size(plan)
    peak = memory.estimate(plan.model, here.component_bytes, asked, plan.layout).peak_bytes
    for smaller, said in memory.smaller_jobs(asked):
        less = memory.estimate(plan.model, here.component_bytes, smaller, plan.layout).peak_bytes
        if less <= 0.75 * peak:
            return f"{said} would take {gb(peak - less)} less"
    return "a larger GPU is needed"


def _below(
    plan: Plan, here: Installed, hardware: Hardware, placement: Placement | None, stage: str
) -> Layout | None:
    """The first layout, best first, that is estimated to take less in the stage that failed."""
    if hardware.device == "cpu":  # weights have nowhere to go
        placement = "resident"
    job, kind = job_size(plan), plan.layout.weight_type

    def estimated(layout: Layout) -> Layout:
        return memory.estimate(plan.model, here.component_bytes, job, layout)

    def needed(layout: Layout) -> int:
        where = _STAGES.get(stage, memory.STAGES)
        return max(size for name, size in layout.stages if name in where)

    now = needed(estimated(plan.layout))
    ladder = map(estimated, memory.ladder(plan.model, job, placement, kind))
    return next((layout for layout in ladder if needed(layout) < now), None)


_DECODING = {"fp32": "in fp32", "bf16": "in bf16", "tiled": "in tiles"}
_STAGES = {
    "prompt": ("prompt",),
    "denoise": ("picture", "denoise"),
    "decode_encode": ("decode",),
}
"""What a stage of the job takes memory for; any other for all of it."""
