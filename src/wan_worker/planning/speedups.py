"""How is the same function computed faster than stock does? Pure; with a reason for each choice.

The attention kernel (kernels), both branches of guidance in one forward, what depends on the prompt
alone computed once, and the transformers' blocks compiled. Each is decided from the job's size and
the machine, and what was once measured on it (tuning); never from what ran before: the same seed
gives the same bytes.
Not covered: carrying it out (attention, guidance, remember, compiling), and what is not the same
function (accelerate).
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
"""Tokens in one denoising call up to which both branches of guidance are one forward.

A forward of the 1.3B launches some 1,800 kernels, which takes the host longer than the 1,560
tokens of an 832x480 image take an H100. This bound takes in an image of 1280x720."""

COMPILE_SECONDS: Final = 400.0
"""Denoising in one job from which on compiling is expected to pay for itself within the job.

By arithmetic: what a block reads and writes between its matrix products, some 250 bytes for each
token and channel (benchmarks/levers.py), is an eighth to a sixth of its time; fused, most of that
goes. CompilePolicy one kind of block takes some 40 s."""

COMPILE_CACHED_SECONDS: Final = 60.0
"""The same where what was compiled is kept for the next worker."""


@dataclass(frozen=True)
class CompilePolicy:
    """What the operator says of compiling."""

    wanted: Compile | None = None
    """None: where it pays."""
    kept: bool = False
    """What was compiled outlives the worker."""


AUTO: Final = CompilePolicy()


@dataclass(frozen=True)
class Speedups:
    """What of a job is computed otherwise than stock; the default is stock."""

    attention: tuple[str, ...] = (attention_kernels.NATIVE,)
    """Kernels by diffusers' names, best first: the first that is right is used."""
    batched_guidance: bool = False
    """Both branches of guidance are one forward of the transformer."""
    threads: int | None = None
    """Of torch, on a CPU; None leaves it to torch."""
    compiled: bool = False
    """The transformers' blocks are compiled for the job's shapes."""


STOCK: Final = Speedups()


def choose(
    model: Model,
    here: Installed,
    job: JobSize,
    layout: Layout,
    hardware: Hardware,
    steps: int,
    compiling: CompilePolicy = AUTO,
) -> tuple[Speedups, tuple[str, ...]]:
    """What a job gets, and why.

    Args:
        job: with the outputs of one denoising call.
        steps: that are computed, of all its calls.
    """
    tuned = hardware.tuned.get(model.id, Tuned())
    found, reasons = Speedups(attention_kernels.candidates(hardware, tuned.kernel)), []
    if tuned.threads is not None and hardware.device == "cpu":
        found = replace(found, threads=tuned.threads)
        reasons.append(f"threads: {tuned.threads}, the fastest when this machine was measured")
    if tuned.kernel == found.attention[0]:
        won = attention_kernels.SAID[tuned.kernel]
        reasons.append(f"kernel: {won}, the fastest when this machine was measured")
    attention = attention_kernels.reason(found.attention)
    if attention is not None:
        reasons.append(attention)
    on_gpu = hardware.device == "cuda" and not here.tiny
    seconds = steps * _seconds(model, job, hardware) if on_gpu else 0.0
    compiled, why = _compiled(compiling, layout, job, seconds)
    found = replace(found, compiled=compiled)
    if why:
        reasons.append(why)
    if activations.caches_text(model, job) and not found.compiled:
        reasons.append("prompt: what depends on it alone is computed once, not at each step")
    if _together(model, here, job, layout, hardware):
        found = replace(found, batched_guidance=True)
        reasons.append("guidance: both branches in one forward, as few tokens leave a GPU idle")
    return found, tuple(reasons)


def _together(
    model: Model, here: Installed, job: JobSize, layout: Layout, hardware: Hardware
) -> bool:
    """A CPU gains nothing (benchmarks/levers.py); with residuals it is not done."""
    if hardware.device == "cpu" or not job.guided or job.residuals:
        return False
    job = replace(job, batched_guidance=True)
    few = job.batch * activations.tokens(model, job) <= BATCHED_GUIDANCE_TOKENS
    return few and memory.fits(model, here, job, layout, hardware)


def _compiled(
    compiling: CompilePolicy, layout: Layout, job: JobSize, seconds: float
) -> tuple[bool, str]:
    """Are the blocks compiled, and why; no words where nobody asked and it does not pay."""
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


def _seconds(model: Model, job: JobSize, hardware: Hardware) -> float:
    """Of one step, by arithmetic: what was measured here would decide otherwise on another day."""
    operations = flops.forward_flops(
        activations.shape_of(model), activations.tokens(model, job), flops.picture_tokens(model)
    )
    peak = peak_flops.peak_of(hardware.name)
    rate = peak_flops.SHARE * (peak[0] if peak else peak_flops.UNKNOWN_TFLOPS) * 1e12
    return job.batch * (2 if job.guided else 1) * operations / rate
