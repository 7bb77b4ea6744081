"""The text cache: compute what depends only on the prompt once per job, not at each step.

A Wan transformer projects the text embedding. From it, each block makes the keys and values of
cross-attention for 512 tokens, at every step and for both branches of guidance. Inside the block,
the results are kept for each branch and returned again. They are the same tensors, so that the
picture is the same to the bit.

It is used where it pays, because the kept tensors take memory. It saves a thousandth of a
long clip's work, five percent of an image's, and most of a toy model's.

Promises: when the block ends, even by an error, every module has its earlier forward again.
How: the text projection runs first in a forward, and its input tells which branch it is.
Not covered: fused projections of diffusers, which this worker does not use.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from wan_worker.planning import activations
from wan_worker.planning.plan import Plan, job_size

if TYPE_CHECKING:
    import torch

    Forward = Callable[[torch.Tensor], torch.Tensor]


def pays(plan: Plan) -> bool:
    """Does the plan's job use the cache? Compiled blocks do without it."""
    return not plan.speedups.compiled and activations.caches_text(plan.model, job_size(plan))


@contextmanager
def applied(pipeline: Any, plan: Plan) -> Iterator[None]:
    """Use the text cache for one call of the pipeline, where it pays."""
    with ExitStack() as stack:
        for role in ("transformer", "transformer_2") if pays(plan) else ():
            expert = getattr(pipeline, role, None)
            if expert is not None:
                _cache_text(expert, stack)
        yield


def _cache_text(expert: Any, stack: ExitStack) -> None:
    """Let one transformer use the text cache until the stack closes."""
    from diffusers.models.transformers.transformer_wan import WanAttention

    branch: tuple[int, ...] = ()
    inputs: list[Any] = []  # kept alive, so that no other tensor gets the same address

    def caching_branch(forward: "Forward") -> "Forward":
        results: dict[tuple[int, ...], torch.Tensor] = {}

        def run(hidden_states: "torch.Tensor") -> "torch.Tensor":
            nonlocal branch
            branch = (hidden_states.data_ptr(), *hidden_states.shape)
            if branch not in results:
                inputs.append(hidden_states)
                results[branch] = forward(hidden_states)
            return results[branch]

        return run

    def caching(forward: "Forward") -> "Forward":
        results: dict[tuple[int, ...], torch.Tensor] = {}

        def run(hidden_states: "torch.Tensor") -> "torch.Tensor":
            if branch not in results:
                results[branch] = forward(hidden_states)
            return results[branch]

        return run

    def computing_once(forward: "Forward") -> "Forward":
        """For a projection before a cached norm: the norm ignores its later outputs."""
        done: set[tuple[int, ...]] = set()

        def run(hidden_states: "torch.Tensor") -> "torch.Tensor":
            if branch in done:
                return hidden_states
            done.add(branch)
            return forward(hidden_states)

        return run

    embedder = expert.condition_embedder
    wrap(embedder.text_embedder, caching_branch, stack)
    if embedder.image_embedder is not None:
        wrap(embedder.image_embedder, caching, stack)
    for module in expert.modules():
        if isinstance(module, WanAttention) and module.is_cross_attention:
            wrap(module.to_k, computing_once, stack)
            wrap(module.norm_k, caching, stack)
            wrap(module.to_v, caching, stack)
            if module.add_k_proj is not None:
                wrap(module.add_k_proj, computing_once, stack)
                wrap(module.norm_added_k, caching, stack)
                wrap(module.add_v_proj, caching, stack)


def wrap(module: Any, around: Callable[[Any], Any], stack: ExitStack) -> None:
    """Wrap a module's forward, with the library's hooks inside, until the stack closes."""
    own = vars(module).get("forward")
    module.forward = around(module.forward)

    def restore() -> None:
        if own is None:
            del module.forward
        else:
            module.forward = own

    stack.callback(restore)
