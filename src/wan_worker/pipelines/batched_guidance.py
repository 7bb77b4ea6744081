"""Compute both branches of guidance in one forward of the transformer, where the plan says so.

A guided step predicts twice from the same latents, with the prompt and with the negative prompt,
and diffusers' pipelines call the transformer for one after the other. An image has few tokens: such
a forward is over before the host has launched the next one's kernels, and they leave much of a GPU
idle. While the block lasts, the first call of a step computes both as one batch, and the second is
answered with the other half. The weights are read once for both.

The same function: a row of a batch is computed as it would be alone, up to the order in which
sums are rounded. Whether it is done is the plan's to say, so the same seed gives the same bytes.

Promises: when the block ends, however it does, each transformer has the forward that it had.
Not covered: together with reused residuals (residuals), which are kept for each call.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final

from wan_worker.pipelines.text_cache import wrap
from wan_worker.planning.plan import Plan

if TYPE_CHECKING:
    import torch

BATCHED: Final = (
    "hidden_states",
    "timestep",
    "encoder_hidden_states_image",
    "control_hidden_states",
)
"""Arguments of the transformers with a row for each output, the same in both branches."""


@contextmanager
def applied(pipeline: Any, plan: Plan, negative: "torch.Tensor | None") -> Iterator[None]:
    """The pipeline with its transformers computing both branches at once, for one call of it.

    Args:
        negative: what the pipeline gives the second branch: [outputs, 512, text_dim].
    """
    with ExitStack() as stack:
        if plan.speedups.batched_guidance and negative is not None:
            for role in ("transformer", "transformer_2"):
                expert = getattr(pipeline, role, None)
                if expert is not None:
                    wrap(expert, lambda forward: _both(forward, negative), stack)
        yield


def _both(forward: Callable[..., Any], negative: "torch.Tensor") -> Callable[..., Any]:
    """A forward that computes on its first call of a step, and has the second's answer then."""
    import torch

    texts: list[torch.Tensor] = []  # made once, so that what is remembered of them is found again
    waiting: list[tuple[torch.Tensor, torch.Tensor]] = []

    def run(**given: Any) -> tuple["torch.Tensor"]:
        latents = given["hidden_states"]
        if waiting:
            asked, answer = waiting.pop()
            if asked is not latents:
                raise RuntimeError("the second branch of guidance has other latents than the first")
            return (answer,)
        if not texts:
            text = given["encoder_hidden_states"]
            texts.append(torch.cat([text, negative.to(text)]))
        for name in BATCHED:
            if given.get(name) is not None:
                given[name] = torch.cat([given[name]] * 2)
        (made,) = forward(**given | {"encoder_hidden_states": texts[0]})
        first, second = made.chunk(2)
        waiting.append((latents, second))
        return (first,)

    return run
