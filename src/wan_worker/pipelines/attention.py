"""Does a faster attention kernel compute the right result on this GPU? It is checked before use.

The check runs the kernel at the job's own lengths, in the model's type and head size, and compares
the result with attention written out in fp32. If a kernel fails, or its error is larger than its
type's rounding explains, the next one is tried, and in the end torch's own choice is used. The
process remembers each verdict.

Not covered: the list of kernels to try (machine.attention_kernels), and which is the fastest: with
a choice by the clock, the same seed would give other bytes on another day.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any, Final

from wan_worker.catalog.models import MAX_PROMPT_TOKENS
from wan_worker.faults import is_out_of_memory
from wan_worker.machine.attention_kernels import NAMES, NATIVE
from wan_worker.planning.plan import Plan, tokens

HEADS: Final = 2
PICTURE_TOKENS: Final = 257
"""Tokens of CLIP's picture embedding: they are keys of cross-attention too. The number is odd."""

ROWS: Final = 64
"""Number of evenly spread queries whose results are compared; the kernel computes all queries."""

BOUNDS: Final = {"torch.bfloat16": 0.01, "torch.float16": 0.002, "torch.float32": 1e-4}
"""Largest allowed relative error, root mean square. torch's own kernels reach 0.002 in bf16."""


@dataclass
class KernelChecks:
    """The verdicts on kernels; used by one thread at a time (the GPU lock)."""

    _problems: dict[tuple[Any, ...], str] = field(default_factory=dict)
    _given: bool = False
    """This process has already given a transformer a kernel."""

    def use(self, pipeline: Any, plan: Plan) -> Plan:
        """Let the transformers use the first of the plan's kernels that computes right.

        Returns:
            The plan with the result of the check in its reasons.
        """
        expert = pipeline.transformer
        if plan.speedups.attention == (NATIVE,):
            if self._given:  # an earlier job may have left another kernel
                _use(pipeline, NATIVE)
            return plan
        count = tokens(plan.segments[0] if plan.segments else plan)
        case = (expert.config.attention_head_dim, expert.dtype, count, plan.device)
        rejected = []
        for name in plan.speedups.attention:
            problem = "" if name == NATIVE else self._problem(name, *case)
            if not problem:
                break
            rejected.append(f"{NAMES.get(name, name)} {problem}")
        self._given = True
        _use(pipeline, name)
        verdict = f"attention: {NAMES.get(name, name)}"
        verdict += "" if name == NATIVE else ", right on this GPU within its rounding"
        verdict += "".join(f"; {rejection}" for rejection in rejected)
        other_reasons = (reason for reason in plan.reasons if not reason.startswith("attention:"))
        return replace(plan, reasons=(*other_reasons, verdict))

    def _problem(self, name: str, *case: Any) -> str:
        if (name, *case) not in self._problems:
            self._problems[name, *case] = _problem(name, *case)
        return self._problems[name, *case]


def _problem(name: str, head_dim: int, dtype: Any, count: int, device: str) -> str:
    """What is wrong with a kernel; an empty string if nothing is."""
    import torch

    try:
        error = max(
            relative_error(name, head_dim, dtype, count, keys, device)
            for keys in (count, MAX_PROMPT_TOKENS, PICTURE_TOKENS)
        )
    except Exception as failure:  # an unsuitable kernel may raise anything
        if is_out_of_memory(failure):
            raise
        if device == "cuda":
            torch.cuda.synchronize()  # raises if the fault has broken the whole context
        return f"failed ({type(failure).__name__})"
    if error <= BOUNDS[str(dtype)]:  # false for NaN
        return ""
    return f"was off by {error:.0%}" if math.isfinite(error) else "gave NaN"


def relative_error(
    name: str, head_dim: int, dtype: Any, queries: int, keys: int, device: str
) -> float:
    """The relative error of a kernel's result, against attention written out in fp32.

    Raises:
        Exception: the kernel is not installed, or does not take these tensors.
    """
    import torch
    from diffusers.models.attention_dispatch import attention_backend, dispatch_attention_fn

    generator = torch.Generator(device).manual_seed(0)

    def random_tensor(length: int) -> Any:
        shape = (1, length, HEADS, head_dim)
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    # The factor makes attention sharper: an average over all keys would hide which were read.
    query, key, value = 3 * random_tensor(queries), random_tensor(keys), random_tensor(keys)
    with torch.no_grad(), attention_backend(name):
        result = dispatch_attention_fn(query, key, value)
        rows = torch.linspace(0, queries - 1, min(ROWS, queries), device=device).long()
        q, k, v = (x.float().transpose(1, 2) for x in (query[:, rows], key, value))
        exact = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(head_dim), dim=-1) @ v
        difference = result[:, rows].float().transpose(1, 2) - exact
        return float(difference.norm() / exact.norm())


def _use(pipeline: Any, name: str) -> None:
    """Give a pipeline's experts a kernel, whichever one an earlier job left there."""
    for part in (pipeline.transformer, getattr(pipeline, "transformer_2", None)):
        if part is not None and _kernel_of(part) != name:
            _set(part, name)


def _kernel_of(expert: Any) -> str:
    processors = (getattr(module, "processor", None) for module in expert.modules())
    backends = {
        getattr(processor, "_attention_backend", None)
        for processor in processors
        if processor is not None
    }
    found = next((backend for backend in backends if backend is not None), None)
    return NATIVE if found is None else str(getattr(found, "value", found))


def _set(expert: Any, name: str) -> None:
    from diffusers.models.attention_dispatch import attention_backend
    from diffusers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # diffusers warns about its own interface, in each job
    try:
        with attention_backend(NATIVE):  # otherwise the kernel is set for all other models too
            expert.set_attention_backend(name)
    finally:
        logging.set_verbosity(verbosity)
