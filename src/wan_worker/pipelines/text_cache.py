"""Compute what depends on the prompt alone once per job, not at each denoising step.

A Wan transformer projects the text embedding, and in each block makes the keys and values of
cross-attention from it, 512 tokens' worth, at every step and for both branches of guidance anew.
While the block lasts the results are kept, per branch, and handed out again: the same tensors, so
the same picture to the bit.

It is done where it pays (plan): of a long clip's work it is a thousandth, of an image's five in a
hundred, and of a toy's most; what is kept takes memory.

Promises: when the block ends, however it does, every module has the forward that it had.
How: the text projection comes first in a forward, and its input tells the branches apart.
Not covered: projections that diffusers has fused, which this worker does not do.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from wan_worker.planning.plan import Plan

if TYPE_CHECKING:
    import torch

    Forward = Callable[[torch.Tensor], torch.Tensor]


@contextmanager
def applied(pipeline: Any, plan: Plan) -> Iterator[None]:
    """The pipeline with its transformers remembering, for one call of it, if the plan says so."""
    with ExitStack() as stack:
        for role in ("transformer", "transformer_2") if plan.caches_text else ():
            expert = getattr(pipeline, role, None)
            if expert is not None:
                _remember(expert, stack)
        yield


def _remember(expert: Any, stack: ExitStack) -> None:
    """Let one transformer remember until the stack closes."""
    from diffusers.models.transformers.transformer_wan import WanAttention

    branch: tuple[int, ...] = ()
    inputs: list[Any] = []  # held, so that an address means one tensor

    def begin(forward: "Forward") -> "Forward":
        made: dict[tuple[int, ...], torch.Tensor] = {}

        def run(hidden_states: "torch.Tensor") -> "torch.Tensor":
            nonlocal branch
            branch = (hidden_states.data_ptr(), *hidden_states.shape)
            if branch not in made:
                inputs.append(hidden_states)
                made[branch] = forward(hidden_states)
            return made[branch]

        return run

    def once(forward: "Forward") -> "Forward":
        made: dict[tuple[int, ...], torch.Tensor] = {}

        def run(hidden_states: "torch.Tensor") -> "torch.Tensor":
            if branch not in made:
                made[branch] = forward(hidden_states)
            return made[branch]

        return run

    def first(forward: "Forward") -> "Forward":
        """For a projection whose norm is remembered: what it would give is not looked at."""
        done: set[tuple[int, ...]] = set()

        def run(hidden_states: "torch.Tensor") -> "torch.Tensor":
            if branch in done:
                return hidden_states
            done.add(branch)
            return forward(hidden_states)

        return run

    embedder = expert.condition_embedder
    wrap(embedder.text_embedder, begin, stack)
    if embedder.image_embedder is not None:
        wrap(embedder.image_embedder, once, stack)
    for module in expert.modules():
        if isinstance(module, WanAttention) and module.is_cross_attention:
            wrap(module.to_k, first, stack)
            wrap(module.norm_k, once, stack)
            wrap(module.to_v, once, stack)
            if module.add_k_proj is not None:
                wrap(module.add_k_proj, first, stack)
                wrap(module.norm_added_k, once, stack)
                wrap(module.add_v_proj, once, stack)


def wrap(module: Any, around: Callable[[Any], Any], stack: ExitStack) -> None:
    """Put a function around a module's forward, the library's hooks included, till it closes."""
    own = vars(module).get("forward")
    module.forward = around(module.forward)

    def restore() -> None:
        if own is None:
            del module.forward
        else:
            module.forward = own

    stack.callback(restore)
