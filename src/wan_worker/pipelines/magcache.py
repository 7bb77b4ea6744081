"""Let denoising steps take over the residual of the step before, where the plan says so.

While the block lasts, a transformer's list of blocks is one module that either runs them and keeps
their residual (output minus input), or adds the kept one. Each branch of guidance has its own, each
expert has its own, and none is kept longer than it is going to be used. All else of the transformer
runs at every step.

Promises: outside the block the transformer has the very list of blocks that it had, however the
block ends.
Not covered: which steps (reuse); VACE, whose blocks take more than the one before them gives.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from wan_worker.planning.plan import Plan

if TYPE_CHECKING:
    pass


@contextmanager
def applied(pipeline: Any, plan: Plan) -> Iterator[None]:
    """The pipeline with its transformers reusing residuals as planned, for one call of it."""
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
            """hidden_states: [outputs, tokens, dim]; the rest is every block's."""
            step, branch = divmod(self.calls, self.branches)
            self.calls += 1
            made = hidden_states
            if self.steps[step]:
                made = made + self.residuals[branch]
            else:
                for block in self.blocks:
                    made = block(made, *arguments)
            if not any(self.steps[step + 1 : step + 2]):
                self.residuals.pop(branch, None)
            elif not self.steps[step]:
                self.residuals[branch] = made - hidden_states
            return made

    experts = [
        expert
        for role in ("transformer", "transformer_2")
        if (expert := getattr(pipeline, role, None)) is not None
    ]
    # The pipelines call a transformer with the prompt, then without it where there is guidance.
    branches = 2 if plan.guidance_scale > 1.0 else 1
    before = [expert.blocks for expert in experts]
    try:
        for expert, steps in zip(experts, plan.reused, strict=True):
            expert.blocks = torch.nn.ModuleList([Blocks(expert.blocks, steps, branches)])
        yield
    finally:
        for expert, blocks in zip(experts, before, strict=True):
            expert.blocks = blocks
