"""Let the host run ahead of the GPU: no denoising step makes it wait.

A GPU works off a queue that the host fills. Whenever the host reads a value that the GPU computes,
or copies one to it, torch waits until the queue is empty, and the GPU then waits for the host. A
stock step of UniPC does so seven times: its factors, single numbers, are copied to the GPU and
solved for there. A model with two experts compares each timestep on the GPU to choose one, Euler's
noise levels are read back for a log, and the image pipelines look up where the schedule begins.

Here numbers that depend on the schedule alone stay on the host, and enter the GPU's kernels as
arguments. On a CPU the latents are the stock scheduler's to the bit; on a GPU its factors' last
bits differ, as the host's logarithms are not the GPU's.

Not covered: what happens once for each clip (noise and schedule are copied, latents are checked),
and weights that are moved during a step.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@cache
def unipc() -> Any:
    """diffusers' UniPC with its factors worked out on the host, of order two at most.

    A class: made once, as diffusers is not imported before there is work. Notation is the paper's
    (arXiv 2302.04867): lambda is half the logarithm of the signal-to-noise ratio, h its step, B(h)
    = exp(-h) - 1, and r is where the older prediction lies, in steps from the newer one.
    """
    import torch
    from diffusers import UniPCMultistepScheduler

    class HostUniPC(UniPCMultistepScheduler):  # type: ignore[misc]  # diffusers has no types
        """Steps from ``sample`` by the predictions of the clean latents, newest last."""

        def multistep_uni_p_bh_update(
            self, model_output: Any, *_: Any, sample: Any, order: int, **__: Any
        ) -> "torch.Tensor":
            """The next step's sample, as the predictions so far have it."""
            here = self.step_index
            keep, gain, h = self._factors(here, here + 1)
            newest = self.model_outputs[-1]
            moved = keep * sample - gain * newest
            if order == 2:
                older = (self.model_outputs[-2] - newest) / self._place(here, h)
                moved = moved - gain * (0.5 * older)
            made: torch.Tensor = moved.to(sample.dtype)
            return made

        def multistep_uni_c_bh_update(
            self, this_model_output: Any, *_: Any, last_sample: Any, order: int, **__: Any
        ) -> "torch.Tensor":
            """This step's sample again, now that its own prediction is known."""
            here = self.step_index - 1
            keep, gain, h = self._factors(here, here + 1)
            newest = self.model_outputs[-1]
            moved = keep * last_sample - gain * newest
            if order == 1:
                change = 0.5 * (this_model_output - newest)
            else:
                place = self._place(here, h)
                older = (self.model_outputs[-2] - newest) / place
                weights = _corrector_weights(h, place)
                change = weights[0] * older + weights[1] * (this_model_output - newest)
            made: torch.Tensor = (moved - gain * change).to(last_sample.dtype)
            return made

        def _factors(self, start: int, end: int) -> tuple["torch.Tensor", ...]:
            """What of the sample is kept, what of a prediction is added (negative), and h."""
            signal, noise = self._sigma_to_alpha_sigma_t(self.sigmas[end])
            h = self._lambda(end) - self._lambda(start)
            return noise / self.sigmas[start], signal * torch.expm1(-h), h

        def _lambda(self, index: int) -> "torch.Tensor":
            signal, noise = self._sigma_to_alpha_sigma_t(self.sigmas[index])
            return torch.log(signal) - torch.log(noise)

        def _place(self, newest: int, h: "torch.Tensor") -> "torch.Tensor":
            """r of the prediction before the newest: negative."""
            return (self._lambda(newest - 1) - self._lambda(newest)) / h

    def _corrector_weights(h: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """Of the older and of the new difference: a system of two equations.

        In diffusers' order of operations, so that the result is its own to the bit.
        """
        growth = torch.expm1(-h)
        first = growth / -h - 1
        second = first / -h - 0.5
        places = torch.stack([place, torch.ones(())])
        matrix = torch.stack([torch.pow(places, 0), torch.pow(places, 1)])
        weights: torch.Tensor = torch.linalg.solve(
            matrix, torch.stack([first / growth, second * 2 / growth])
        )
        return weights

    return HostUniPC


def on_host(scheduler: Any, choosing: bool) -> None:
    """Keep what a scheduler's steps read on the host, whenever its schedule is set.

    Args:
        choosing: the pipeline compares timesteps to choose an expert: they stay on the host too,
            and ``timesteps_on_device`` has them for the transformers (``timesteps``).
    """
    set_timesteps = scheduler.set_timesteps

    def set_on_host(*args: Any, device: Any = None, **kwargs: Any) -> None:
        set_timesteps(*args, device="cpu", **kwargs)
        scheduler.timesteps_on_device = scheduler.timesteps.to(device)
        if not choosing:
            scheduler.timesteps = scheduler.timesteps_on_device
        scheduler.set_begin_index(0)  # else the first step looks itself up, on the device

    scheduler.set_timesteps = set_on_host


@contextmanager
def timesteps(pipeline: Any) -> Iterator[None]:
    """The pipeline with its experts given their timesteps where they compute, for one call."""
    scheduler = pipeline.scheduler

    def fetch(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        given = kwargs["timestep"]
        step = scheduler.timesteps_on_device[scheduler.step_index or 0]
        return args, kwargs | {"timestep": step.expand(given.shape)}

    second = getattr(pipeline, "transformer_2", None)
    with ExitStack() as stack:
        for expert in () if second is None else (pipeline.transformer, second):
            hook = expert.register_forward_pre_hook(fetch, with_kwargs=True)
            stack.callback(hook.remove)
        yield
