"""Compute both branches of guidance in one forward of the transformer, if the plan says so.

A guided step predicts twice from the same latents, with the prompt and with the negative prompt.
diffusers' pipelines call the transformer once for each. An image has few tokens, so that a forward
ends before the host has launched the kernels of the next one, and much of the GPU is idle. Inside
the block, the first call of a step computes both branches as one batch, and the second call returns
the other half. The weights are read once for both.

It is the same function: each row of a batch gives the result that it gives alone, up to the order
in which sums are rounded. The plan decides, so that the same seed gives the same bytes.

Promises: when the block ends, even by an error, each transformer has its earlier forward again.
Not covered: use together with the step cache (magcache), which keeps a residual for each call.
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
"""Arguments of the transformers that have a row for each output, the same in both branches."""


@contextmanager
def applied(pipeline: Any, plan: Plan, negative: "torch.Tensor | None") -> Iterator[None]:
    """Let the pipeline's transformers compute both branches at once, for one call of it.

    Args:
        negative: the second branch's text embedding: [outputs, 512, text_dim].
    """
    with ExitStack() as stack:
        if plan.speedups.batched_guidance and negative is not None:
            for role in ("transformer", "transformer_2"):
                expert = getattr(pipeline, role, None)
                if expert is not None:
                    wrap(expert, lambda forward: _both(forward, negative), stack)
        yield


def _both(forward: Callable[..., Any], negative: "torch.Tensor") -> Callable[..., Any]:
    """A forward that computes both branches on a step's first call, for the second call too."""
    import torch

    texts: list[torch.Tensor] = []  # made once, so that the text cache finds the same tensor again
    waiting: list[tuple[torch.Tensor, torch.Tensor]] = []

    def run(**arguments: Any) -> tuple["torch.Tensor"]:
        latents = arguments["hidden_states"]
        if waiting:
            first_latents, second_output = waiting.pop()
            if first_latents is not latents:
                raise RuntimeError("the second branch of guidance has other latents than the first")
            return (second_output,)
        if not texts:
            text = arguments["encoder_hidden_states"]
            texts.append(torch.cat([text, negative.to(text)]))
        for name in BATCHED:
            if arguments.get(name) is not None:
                arguments[name] = torch.cat([arguments[name]] * 2)
        (made,) = forward(**arguments | {"encoder_hidden_states": texts[0]})
        first, second = made.chunk(2)
        waiting.append((latents, second))
        return (first,)

    return run
