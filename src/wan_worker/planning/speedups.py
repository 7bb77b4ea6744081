"""How is the same function computed faster than stock does it? Pure; with a reason for each choice.

There are four ways: the attention kernel (machine.attention_kernels), both branches of guidance in
one forward, the text cache, and compiled blocks of the transformers. Each is decided from the job's
size, the machine, and what was measured on it before (machine.tuning). It never depends on what ran
before: the same seed gives the same bytes.
Not covered: carrying it out (pipelines.attention, pipelines.batched_guidance, pipelines.text_cache,
pipelines.compiling), and what computes another function (acceleration).
"""

from dataclasses import dataclass, replace
from typing import Final

from wan_worker.catalog.models import Installed, Model
from wan_worker.machine import attention_kernels, peak_flops
from wan_worker.machine.hardware import Hardware, Tuned
from wan_worker.planning import activations, flops, memory
from wan_worker.planning.activations import JobSize
from wan_worker.planning.memory import Layout
from wan_worker.settings import Compile

BATCHED_GUIDANCE_TOKENS: Final = 4096
"""If a denoising call has at most so many tokens, both branches of guidance are one forward.

A forward of the 1.3B launches some 1,800 kernels. The host takes longer to launch them than an H100
takes for the 1,560 tokens of an 832x480 image. This bound includes an image of 1280x720."""

COMPILE_SECONDS: Final = 400.0
"""Least seconds of denoising in one job for which compiling is expected to pay within that job.

By arithmetic: between its matrix products a block reads and writes some 250 bytes for each token
and channel (benchmarks/levers.py). That is an eighth to a sixth of its time; once fused, most of it
goes. Compiling one kind of block takes some 40 s."""

COMPILE_CACHED_SECONDS: Final = 60.0
"""Least seconds of denoising if compiled code is kept for the next worker."""


@dataclass(frozen=True)
class CompilePolicy:
    """The operator's settings for compiling."""

    wanted: Compile | None = None
    """None: compile if it pays."""
    kept: bool = False
    """Compiled code outlives the worker."""


AUTO: Final = CompilePolicy()


@dataclass(frozen=True)
class Speedups:
    """Where a job's computation differs from stock diffusers; the defaults are stock."""

    attention: tuple[str, ...] = (attention_kernels.NATIVE,)
    """Kernels by diffusers' names, best first: the first one with the right result is used."""
    batched_guidance: bool = False
    """Both branches of guidance are one forward of the transformer."""
    threads: int | None = None
    """Number of torch's threads, on a CPU; None leaves it to torch."""
    compiled: bool = False
    """The transformers' blocks are compiled for the job's shapes."""


STOCK: Final = Speedups()


def choose(
    model: Model,
    installed: Installed,
    job: JobSize,
    layout: Layout,
    hardware: Hardware,
    steps: int,
    compiling: CompilePolicy = AUTO,
) -> tuple[Speedups, tuple[str, ...]]:
    """The speedups of a job, and the reasons.

    Args:
        job: its batch is the outputs of one denoising call.
        steps: computed steps in all calls of the job.
    """
    tuned = hardware.tuned.get(model.id, Tuned())
    speedups, reasons = Speedups(attention_kernels.candidates(hardware, tuned.kernel)), []
    if tuned.threads is not None and hardware.device == "cpu":
        speedups = replace(speedups, threads=tuned.threads)
        reasons.append(f"threads: {tuned.threads}, the fastest when this machine was measured")
    if tuned.kernel == speedups.attention[0]:
        kernel = attention_kernels.NAMES[tuned.kernel]
        reasons.append(f"kernel: {kernel}, the fastest when this machine was measured")
    attention = attention_kernels.reason(speedups.attention)
    if attention is not None:
        reasons.append(attention)
    on_gpu = hardware.device == "cuda" and not installed.tiny
    seconds = steps * _step_seconds(model, job, hardware) if on_gpu else 0.0
    compiled, why = _compiled(compiling, layout, job, seconds)
    speedups = replace(speedups, compiled=compiled)
    if why:
        reasons.append(why)
    if activations.caches_text(model, job) and not speedups.compiled:
        reasons.append("prompt: what depends on it alone is computed once, not at each step")
    if _batches_guidance(model, installed, job, layout, hardware):
        speedups = replace(speedups, batched_guidance=True)
        reasons.append("guidance: both branches in one forward, as few tokens leave a GPU idle")
    return speedups, tuple(reasons)


def _batches_guidance(
    model: Model, installed: Installed, job: JobSize, layout: Layout, hardware: Hardware
) -> bool:
    """Not on a CPU, which gains nothing (benchmarks/levers.py), nor with the step cache."""
    if hardware.device == "cpu" or not job.guided or job.residuals:
        return False
    job = replace(job, batched_guidance=True)
    few = job.batch * activations.tokens(model, job) <= BATCHED_GUIDANCE_TOKENS
    return few and memory.fits(model, installed, job, layout, hardware)


def _compiled(
    compiling: CompilePolicy, layout: Layout, job: JobSize, seconds: float
) -> tuple[bool, str]:
    """Are the blocks compiled, and why? No reason if nobody asked and it does not pay."""
    least = COMPILE_CACHED_SECONDS if compiling.kept else COMPILE_SECONDS
    if compiling.wanted == "off" or (compiling.wanted is None and seconds < least):
        return False, ""
    if layout.placement != "resident":
        return False, "compile: not, as weights move during the job"
    if layout.weight_type != "bf16":
        return False, f"compile: not, as weights are kept in {layout.weight_type}"
    if job.adapters:
        return False, "compile: not, as LoRAs change the blocks"
    why = "as COMPILE asks" if compiling.wanted else f"for about {seconds:.0f} s of denoising"
    return True, (
        f"compile: the transformer's blocks, {why}; the first job of a size and length waits for it"
    )


def _step_seconds(model: Model, job: JobSize, hardware: Hardware) -> float:
    """Seconds of one step, by arithmetic: a measured time would decide differently each day."""
    operations = flops.forward_flops(
        activations.shape_of(model), activations.tokens(model, job), flops.picture_tokens(model)
    )
    peak = peak_flops.peak_of(hardware.name)
    rate = peak_flops.SHARE * (peak[0] if peak else peak_flops.UNKNOWN_TFLOPS) * 1e12
    return job.batch * (2 if job.guided else 1) * operations / rate
