"""Let the host run ahead of the GPU: no denoising step makes the host wait.

A GPU works through a queue that the host fills. When the host reads a value from the GPU, or copies
one to it, torch waits until the queue is empty, and then the GPU waits for the host. A stock UniPC
step does so seven times: its factors are single numbers that are copied to the GPU and solved for
there. A model with two experts compares each timestep on the GPU to choose the expert. Euler reads
its noise levels back for a log, and the image pipelines look up the start of the schedule.

Here, numbers that depend only on the schedule stay on the host, and reach the GPU's kernels as
arguments. On a CPU the latents equal the stock scheduler's to the bit. On a GPU the last bits of
the factors differ, because the host's logarithms are not the GPU's.

Not covered: work that is done once for each clip (copying noise and schedule, checking latents),
and weights that move during a step.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@cache
def unipc() -> Any:
    """diffusers' UniPC with its factors computed on the host, of order two at most.

    The class is made on first use, because diffusers is imported only for jobs. The notation is the
    paper's (arXiv 2302.04867): lambda is half the logarithm of the signal-to-noise ratio, h its
    step, B(h) = exp(-h) - 1, and r the older prediction's place, in steps from the newer one.
    """
    import torch
    from diffusers import UniPCMultistepScheduler

    class HostUniPC(UniPCMultistepScheduler):  # type: ignore[misc]  # diffusers has no types
        """Steps from ``sample``, using predictions of the clean latents, the newest last."""

        def multistep_uni_p_bh_update(
            self, model_output: Any, *_: Any, sample: Any, order: int, **__: Any
        ) -> "torch.Tensor":
            """The next step's sample, from the predictions so far."""
            step = self.step_index
            keep, gain, h = self._factors(step, step + 1)
            newest = self.model_outputs[-1]
            moved = keep * sample - gain * newest
            if order == 2:
                older = (self.model_outputs[-2] - newest) / self._ratio(step, h)
                moved = moved - gain * (0.5 * older)
            result: torch.Tensor = moved.to(sample.dtype)
            return result

        def multistep_uni_c_bh_update(
            self, this_model_output: Any, *_: Any, last_sample: Any, order: int, **__: Any
        ) -> "torch.Tensor":
            """This step's sample, corrected with its own prediction."""
            step = self.step_index - 1
            keep, gain, h = self._factors(step, step + 1)
            newest = self.model_outputs[-1]
            moved = keep * last_sample - gain * newest
            if order == 1:
                change = 0.5 * (this_model_output - newest)
            else:
                ratio = self._ratio(step, h)
                older = (self.model_outputs[-2] - newest) / ratio
                weights = _corrector_weights(h, ratio)
                change = weights[0] * older + weights[1] * (this_model_output - newest)
            result: torch.Tensor = (moved - gain * change).to(last_sample.dtype)
            return result

        def _factors(self, start: int, end: int) -> tuple["torch.Tensor", ...]:
            """The factor of the sample, the factor of a prediction (negative), and h."""
            signal, noise = self._sigma_to_alpha_sigma_t(self.sigmas[end])
            h = self._lambda(end) - self._lambda(start)
            return noise / self.sigmas[start], signal * torch.expm1(-h), h

        def _lambda(self, index: int) -> "torch.Tensor":
            signal, noise = self._sigma_to_alpha_sigma_t(self.sigmas[index])
            return torch.log(signal) - torch.log(noise)

        def _ratio(self, newest: int, h: "torch.Tensor") -> "torch.Tensor":
            """r of the prediction before the newest; it is negative."""
            return (self._lambda(newest - 1) - self._lambda(newest)) / h

    def _corrector_weights(h: torch.Tensor, ratio: torch.Tensor) -> torch.Tensor:
        """The weights of the older and the new difference, from a system of two equations.

        The order of operations is diffusers', so that the result is the same to the bit.
        """
        growth = torch.expm1(-h)
        first = growth / -h - 1
        second = first / -h - 0.5
        ratios = torch.stack([ratio, torch.ones(())])
        matrix = torch.stack([torch.pow(ratios, 0), torch.pow(ratios, 1)])
        weights: torch.Tensor = torch.linalg.solve(
            matrix, torch.stack([first / growth, second * 2 / growth])
        )
        return weights

    return HostUniPC


def on_host(scheduler: Any, choosing: bool) -> None:
    """Whenever a scheduler's schedule is set, keep the numbers that its steps read on the host.

    Args:
        choosing: the pipeline compares timesteps to choose an expert. Then they stay on the host
            too, and the transformers get ``timesteps_on_device`` (see ``timesteps``).
    """
    set_timesteps = scheduler.set_timesteps

    def set_on_host(*args: Any, device: Any = None, **kwargs: Any) -> None:
        set_timesteps(*args, device="cpu", **kwargs)
        scheduler.timesteps_on_device = scheduler.timesteps.to(device)
        if not choosing:
            scheduler.timesteps = scheduler.timesteps_on_device
        scheduler.set_begin_index(0)  # otherwise the first step looks up its index on the device

    scheduler.set_timesteps = set_on_host


@contextmanager
def timesteps(pipeline: Any) -> Iterator[None]:
    """For one call of the pipeline, give its experts timesteps that are on their own device."""
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
