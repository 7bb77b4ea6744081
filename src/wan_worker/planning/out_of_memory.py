"""Memory ran out although the plan was to fit: what is tried instead, once? Pure.

The estimates can be wrong: other processes take memory, and allocators leave gaps. The second try
goes down the ladder of layouts (memory) to the first one that takes less, and makes one output at a
time.
Not covered: noticing the fault and trying again (clips).
"""

from dataclasses import replace

from wan_worker.catalog.models import Installed
from wan_worker.machine.hardware import Hardware
from wan_worker.planning import memory
from wan_worker.planning.memory import Layout, gb
from wan_worker.planning.plan import Plan, job_size
from wan_worker.settings import Placement


def lower_layout(
    plan: Plan, installed: Installed, hardware: Hardware, placement: Placement | None, stage: str
) -> Plan:
    """The plan with a layout that takes less, and a reason; the same layout if none takes less.

    Args:
        placement: the operator's setting, which is kept.
        stage: the job's stage (timing.progress) in which memory ran out.
    """
    layout = _next_layout(plan, installed, hardware, placement, stage)
    if layout is None:
        layout, description = plan.layout, "with everything else out of the way"
    else:
        description = f"weights {layout.placement}, decoding {_DECODING[layout.decode]}"
    reason = f"memory: it ran out in {stage}; tried again one output at a time, {description}"
    return replace(
        plan,
        layout=layout,
        batch_size=1,
        speedups=replace(plan.speedups, batched_guidance=False, compiled=False),
        # Another model's segments keep the layout that was found for that model.
        segments=tuple(
            replace(
                segment,
                layout=layout,
                speedups=replace(segment.speedups, batched_guidance=False, compiled=False),
            )
            if segment.model == plan.model
            else segment
            for segment in plan.segments
        ),
        reasons=(*plan.reasons, reason),
        notices=(*plan.notices, *(n for n in memory.notices(layout) if n not in plan.notices)),
    )


def advice(plan: Plan, installed: Installed) -> str:
    """The end of an error's message: which smaller job takes a quarter less."""
    job = job_size(plan)
    peak = memory.estimate(plan.model, installed.component_bytes, job, plan.layout).peak_bytes
    for smaller, description in memory.smaller_jobs(job):
        less = memory.estimate(
            plan.model, installed.component_bytes, smaller, plan.layout
        ).peak_bytes
        if less <= 0.75 * peak:
            return f"{description} would take {gb(peak - less)} less"
    return "a larger GPU is needed"


def _next_layout(
    plan: Plan, installed: Installed, hardware: Hardware, placement: Placement | None, stage: str
) -> Layout | None:
    """The best layout that is estimated to take less in the stage that failed."""
    if hardware.device == "cpu":  # weights can go nowhere else
        placement = "resident"
    job, kind = job_size(plan), plan.layout.weight_type

    def estimated(layout: Layout) -> Layout:
        return memory.estimate(plan.model, installed.component_bytes, job, layout)

    def needed(layout: Layout) -> int:
        stages = _STAGES.get(stage, memory.STAGES)
        return max(size for name, size in layout.stages if name in stages)

    failed = needed(estimated(plan.layout))
    ladder = map(estimated, memory.ladder(plan.model, job, placement, kind))
    return next((layout for layout in ladder if needed(layout) < failed), None)


_DECODING = {"fp32": "in fp32", "bf16": "in bf16", "tiled": "in tiles"}
_STAGES = {
    "prompt": ("prompt",),
    "denoise": ("picture", "denoise"),
    "decode_encode": ("decode",),
}
"""A stage of the job, and its stages in memory.STAGES; any other stage counts as all of them."""
