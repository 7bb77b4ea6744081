"""How is the same function computed faster than stock does? Pure; with a reason for each choice.

The attention kernel (kernels), both branches of guidance in one forward, and what depends on the
prompt alone computed once. Each is decided from the job's size and the machine, and what was once
measured on it (tuning); never from what ran before: the same seed gives the same bytes.
Not covered: carrying it out (attention, guidance, remember), and what is not the same function
(accelerate).
"""

from dataclasses import dataclass, replace
from typing import Final

from wan_worker import activations, kernels, memory
from wan_worker.activations import Job
from wan_worker.catalog import Installed, Model
from wan_worker.hardware import Hardware, Tuned
from wan_worker.memory import Layout

TOGETHER_TOKENS: Final = 4096
"""Tokens in one denoising call up to which both branches of guidance are one forward.

A forward of the 1.3B launches some two thousand kernels, which takes the host longer than the 1,560
tokens of an 832x480 image take an H100. This bound takes in an image of 1280x720."""


@dataclass(frozen=True)
class Exact:
    """What of a job is computed otherwise than stock; the default is stock."""

    attention: tuple[str, ...] = (kernels.NATIVE,)
    """Kernels by diffusers' names, best first: the first that is right is used."""
    guided_together: bool = False
    """Both branches of guidance are one forward of the transformer."""
    threads: int | None = None
    """Of torch, on a CPU; None leaves it to torch."""


STOCK: Final = Exact()


def choose(
    model: Model, here: Installed, job: Job, layout: Layout, hardware: Hardware
) -> tuple[Exact, tuple[str, ...]]:
    """What a job gets, and why.

    Args:
        job: with the outputs of one denoising call.
    """
    tuned = hardware.tuned.get(model.id, Tuned())
    found, reasons = Exact(kernels.candidates(hardware, tuned.kernel)), []
    if tuned.threads is not None and hardware.device == "cpu":
        found = replace(found, threads=tuned.threads)
        reasons.append(f"threads: {tuned.threads}, the fastest when this machine was measured")
    if tuned.kernel == found.attention[0]:
        won = kernels.SAID[tuned.kernel]
        reasons.append(f"kernel: {won}, the fastest when this machine was measured")
    attention = kernels.reason(found.attention)
    if attention is not None:
        reasons.append(attention)
    if activations.remembers(model, job):
        reasons.append("prompt: what depends on it alone is computed once, not at each step")
    if _together(model, here, job, layout, hardware):
        found = replace(found, guided_together=True)
        reasons.append("guidance: both branches in one forward, as few tokens leave a GPU idle")
    return found, tuple(reasons)


def _together(model: Model, here: Installed, job: Job, layout: Layout, hardware: Hardware) -> bool:
    """A CPU gains nothing (benchmarks/levers.py); with residuals it is not done."""
    if hardware.device == "cpu" or not job.guided or job.residuals:
        return False
    job = replace(job, together=True)
    few = job.batch * activations.tokens(model, job) <= TOGETHER_TOKENS
    return few and memory.fits(model, here, job, layout, hardware)
