"""Compile a transformer's blocks for a job's shapes, if the plan says so.

All blocks of a kind share one compilation. It is made for exactly the job's shapes. Kernels for any
shape would be slower, and which of the two a job got would depend on earlier jobs. For the same
reason a rule chooses the kernels, not the clock.

Promises: outside of ``applied`` the blocks are as before. If compilation fails, the job is computed
without it from its first step on, and says so, and this process does not compile again.
Not covered: cancelling a compilation; a cancel takes effect at the end of that step.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from wan_worker.faults import is_memory_or_gpu_fault
from wan_worker.planning.plan import Plan

log = logging.getLogger(__name__)

T = TypeVar("T")

BACKEND: Final[Any] = "inductor"

SHAPES_KEPT: Final = 64
"""Most compilations of a kind of block. torch's own limit, 8 shapes, would soon be reached."""


@dataclass
class Compiler:
    """Whether compiling works in this process; used by one thread at a time (the GPU lock)."""

    cache_dir: Path | None = None
    """Folder in which the next process finds the compiled code; None: torch's own folder."""
    problem: str = ""
    """Why this process no longer compiles; empty if it does."""

    @contextmanager
    def applied(self, pipeline: Any, plan: Plan) -> Iterator[None]:
        """Compile the blocks of the pipeline's transformers for this block, if the plan says so."""
        if not plan.speedups.compiled or self.problem or not self._ready():
            yield
            return
        parts = (pipeline.transformer, getattr(pipeline, "transformer_2", None))
        experts = [part for part in parts if part is not None]
        options = {"options": {"deterministic": True}} if BACKEND == "inductor" else {}
        try:
            for expert in experts:
                expert.compile_repeated_blocks(
                    fullgraph=True, dynamic=False, backend=BACKEND, **options
                )
            pipeline.compiler = self
            yield
        finally:
            for expert in experts:
                _restore(expert)

    def _ready(self) -> bool:
        import torch._dynamo

        torch._dynamo.config.recompile_limit = SHAPES_KEPT
        if self.cache_dir is not None:
            try:
                self.cache_dir.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                self.problem = f"its cache can't be written ({type(error).__name__})"
                log.warning("compile: %s", self.problem)
                return False
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(self.cache_dir)
        return True

    def give_up(self, pipeline: Any, failure: BaseException) -> None:
        """Compute without compiling from now on."""
        self.problem = f"it failed ({type(failure).__name__})"
        log.warning("compile: %s; computing eagerly", self.problem, exc_info=failure)
        for part in (pipeline.transformer, getattr(pipeline, "transformer_2", None)):
            if part is not None:
                _restore(part)

    def explain(self, plan: Plan) -> Plan:
        """After the job: the plan with the failure in its reasons, if compiling failed."""
        if not plan.speedups.compiled or not self.problem:
            return plan
        other_reasons = (reason for reason in plan.reasons if not reason.startswith("compile:"))
        reason_text = f"compile: not, as {self.problem}; computed as it comes"
        return replace(plan, reasons=(*other_reasons, reason_text))


def or_eagerly(pipeline: Any, run: Callable[[], T]) -> T:
    """Call ``run``, which calls a pipeline. If compiling fails, call it again, uncompiled."""
    compiler: Compiler | None = getattr(pipeline, "compiler", None)
    if compiler is None:
        return run()
    try:
        return run()
    except Exception as failure:
        if is_memory_or_gpu_fault(failure) or not is_compilers(failure):
            raise
        compiler.give_up(pipeline, failure)
    # Outside the except clause, whose traceback would keep the tensors of the first try alive.
    return run()


def is_compilers(failure: BaseException) -> bool:
    """Whether an exception comes from compiling; the modules of its classes decide."""
    places = ("torch._dynamo", "torch._inductor", "torch._functorch", "triton")
    return any(cls.__module__.startswith(places) for cls in type(failure).__mro__)


def _restore(expert: Any) -> None:
    for module in expert.modules():
        vars(module).pop("_compiled_call_impl", None)
