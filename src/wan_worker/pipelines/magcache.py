"""The step cache: a denoising step reuses the residual of the step before, if the plan says so.

Inside the block, one module replaces a transformer's list of blocks. It either runs the blocks and
stores their residual (output minus input), or adds the stored residual. Each branch of guidance and
each expert has its own residual, which is freed after its last use. The rest of the transformer
runs at every step.

Promises: outside the block the transformer has the same list of blocks as before, even after an
error.
Not covered: the choice of steps (planning.step_cache); VACE, whose blocks need more inputs than the
output of the block before them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from wan_worker.planning.plan import Plan

if TYPE_CHECKING:
    pass


@contextmanager
def applied(pipeline: Any, plan: Plan) -> Iterator[None]:
    """Let the pipeline's transformers reuse residuals as planned, for one call of it."""
    if not any(map(any, plan.reused)):
        yield
        return
    import torch

    class Blocks(torch.nn.Module):
        """A transformer's blocks in a row."""

        def __init__(self, blocks: Any, steps: tuple[bool, ...], branches: int) -> None:
            super().__init__()
            self.blocks = blocks
            self.steps, self.branches, self.calls = steps, branches, 0
            self.residuals: dict[int, torch.Tensor] = {}

        def forward(self, hidden_states: torch.Tensor, *arguments: Any) -> torch.Tensor:
            """hidden_states: [outputs, tokens, dim]; each block gets the other arguments."""
            step, branch = divmod(self.calls, self.branches)
            self.calls += 1
            output = hidden_states
            if self.steps[step]:
                output = output + self.residuals[branch]
            else:
                for block in self.blocks:
                    output = block(output, *arguments)
            if not any(self.steps[step + 1 : step + 2]):
                self.residuals.pop(branch, None)
            elif not self.steps[step]:
                self.residuals[branch] = output - hidden_states
            return output

    experts = [
        expert
        for role in ("transformer", "transformer_2")
        if (expert := getattr(pipeline, role, None)) is not None
    ]
    # The pipelines call a transformer with the prompt and then, with guidance, without it.
    branches = 2 if plan.guidance_scale > 1.0 else 1
    before = [expert.blocks for expert in experts]
    try:
        for expert, steps in zip(experts, plan.reused, strict=True):
            expert.blocks = torch.nn.ModuleList([Blocks(expert.blocks, steps, branches)])
        yield
    finally:
        for expert, blocks in zip(experts, before, strict=True):
            expert.blocks = blocks
