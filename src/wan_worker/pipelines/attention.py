"""Does a faster attention kernel compute the right thing here? Asked of the GPU, before it is used.

A kernel is tried at the job's own lengths, in the model's type and head size, and compared with
attention written out in fp32. One that fails, or is off by more than its type's rounding explains,
is left for the next, and at last for torch's own choice. Verdicts are kept while the process lives.

Not covered: which kernels there are to try (kernels), and which is fastest: to choose by the clock
would make the same seed give other bytes on another day.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any, Final

from wan_worker.catalog.models import MAX_PROMPT_TOKENS
from wan_worker.faults import is_out_of_memory
from wan_worker.machine.attention_kernels import NATIVE, SAID
from wan_worker.planning.plan import Plan, tokens

HEADS: Final = 2
PICTURE_TOKENS: Final = 257
"""CLIP's: keys of cross-attention too, and an odd number of them."""

ROWS: Final = 64
"""Queries, evenly spread, whose results are compared; the kernel computes all of them."""

BOUNDS: Final = {"torch.bfloat16": 0.01, "torch.float16": 0.002, "torch.float32": 1e-4}
"""Largest relative error, root mean square. torch's own kernels come to 0.002 in bf16."""


@dataclass
class KernelChecks:
    """Verdicts on kernels; for one thread at a time (the GPU lock)."""

    _problems: dict[tuple[Any, ...], str] = field(default_factory=dict)
    _given: bool = False
    """Some transformer of this process has had a kernel chosen."""

    def use(self, pipeline: Any, plan: Plan) -> Plan:
        """Let the transformers use the first of the plan's kernels that is right.

        Returns:
            The plan, whose reason for it says what was found.
        """
        expert = pipeline.transformer
        if plan.speedups.attention == (NATIVE,):
            if self._given:  # a job before may have left it another one
                _use(pipeline, NATIVE)
            return plan
        count = tokens(plan.segments[0] if plan.segments else plan)
        case = (expert.config.attention_head_dim, expert.dtype, count, plan.device)
        left = []
        for name in plan.speedups.attention:
            problem = "" if name == NATIVE else self._problem(name, *case)
            if not problem:
                break
            left.append(f"{SAID.get(name, name)} {problem}")
        self._given = True
        _use(pipeline, name)
        said = f"attention: {SAID.get(name, name)}"
        said += "" if name == NATIVE else ", right on this GPU within its rounding"
        said += "".join(f"; {one}" for one in left)
        others = (reason for reason in plan.reasons if not reason.startswith("attention:"))
        return replace(plan, reasons=(*others, said))

    def _problem(self, name: str, *case: Any) -> str:
        if (name, *case) not in self._problems:
            self._problems[name, *case] = _problem(name, *case)
        return self._problems[name, *case]


def _problem(name: str, head_dim: int, dtype: Any, count: int, device: str) -> str:
    """What is wrong with a kernel; nothing: an empty string."""
    import torch

    try:
        error = max(
            relative_error(name, head_dim, dtype, count, keys, device)
            for keys in (count, MAX_PROMPT_TOKENS, PICTURE_TOKENS)
        )
    except Exception as failure:  # whatever a kernel raises that is not made for this
        if is_out_of_memory(failure):
            raise
        if device == "cuda":
            torch.cuda.synchronize()  # raises where the fault has broken the whole context
        return f"failed ({type(failure).__name__})"
    if error <= BOUNDS[str(dtype)]:  # not where it is NaN
        return ""
    return f"was off by {error:.0%}" if math.isfinite(error) else "gave NaN"


def relative_error(
    name: str, head_dim: int, dtype: Any, queries: int, keys: int, device: str
) -> float:
    """Of a kernel's result, against attention written out in fp32.

    Raises:
        Exception: the kernel is not there, or does not take this.
    """
    import torch
    from diffusers.models.attention_dispatch import attention_backend, dispatch_attention_fn

    random = torch.Generator(device).manual_seed(0)

    def drawn(length: int) -> Any:
        shape = (1, length, HEADS, head_dim)
        return torch.randn(shape, generator=random, device=device).to(dtype)

    # Sharper than noise alone: an average over everything would hide which keys were read.
    query, key, value = 3 * drawn(queries), drawn(keys), drawn(keys)
    with torch.no_grad(), attention_backend(name):
        given = dispatch_attention_fn(query, key, value)
        rows = torch.linspace(0, queries - 1, min(ROWS, queries), device=device).long()
        q, k, v = (x.float().transpose(1, 2) for x in (query[:, rows], key, value))
        exact = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(head_dim), dim=-1) @ v
        difference = given[:, rows].float().transpose(1, 2) - exact
        return float(difference.norm() / exact.norm())


def _use(pipeline: Any, name: str) -> None:
    """Give a pipeline's experts a kernel, whichever a job before has left them."""
    for part in (pipeline.transformer, getattr(pipeline, "transformer_2", None)):
        if part is not None and _held(part) != name:
            _set(part, name)


def _held(expert: Any) -> str:
    processors = (getattr(module, "processor", None) for module in expert.modules())
    held = {getattr(each, "_attention_backend", None) for each in processors if each is not None}
    found = next((each for each in held if each is not None), None)
    return NATIVE if found is None else str(getattr(found, "value", found))


def _set(expert: Any, name: str) -> None:
    from diffusers.models.attention_dispatch import attention_backend
    from diffusers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it warns of its own interface, for each job
    try:
        with attention_backend(NATIVE):  # which it would set for every other model too
            expert.set_attention_backend(name)
    finally:
        logging.set_verbosity(verbosity)
