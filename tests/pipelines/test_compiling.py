"""Compiled blocks: the same latents, compiled once for a shape, and eagerly where that fails.

Most of it with torch's tracer alone ("eager" in the place of the compiler), which takes the blocks
apart and puts them together again as the compiler would be given them; one job with the compiler.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from tests.builders.answers import sha256_of
from tests.builders.pictures import picture
from tests.builders.pipelines import build, denoise, experts_of, make_plan
from tests.builders.plans import BOTH, CONTRACT, CPU, gpu, store
from tests.builders.requests import CYAN
from tests.conftest import Answer
from wan_worker import job as jobs
from wan_worker.errors import Canceled
from wan_worker.inputs.references import References
from wan_worker.machine.hardware import Hardware
from wan_worker.pipelines import compiling, generate, text_cache
from wan_worker.pipelines.compiling import Compiler
from wan_worker.pipelines.pool import Pool
from wan_worker.planning import plan
from wan_worker.planning.deployment import Deployment
from wan_worker.planning.memory import Layout
from wan_worker.planning.out_of_memory import lower_layout
from wan_worker.planning.plan import Plan
from wan_worker.planning.speedups import AUTO, CompilePolicy, Speedups
from wan_worker.prompts.embeddings import Embeddings
from wan_worker.request import parse
from wan_worker.timing.progress import Control

Serve = Callable[..., Answer]
STARTS = {"image_url": picture()}
I2V = "wan2.1-i2v-14b-480p"


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The tracer alone, which has seen nothing yet."""
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


@pytest.fixture
def compiled(worker: jobs.Worker) -> jobs.Worker:
    """A worker whose operator wants it."""
    pool = Pool(worker.hardware)
    return replace(worker, settings=replace(worker.settings, compile="on"), pool=pool)


def run(worker: jobs.Worker, changes: dict[str, Any] | None = None) -> Answer:
    from tests.conftest import QUICK

    return jobs.run({"id": "one", "input": QUICK | (changes or {})}, worker, Control())


def planned_for(worker: jobs.Worker, **changes: Any) -> Plan:
    return replace(make_plan(worker, **changes), speedups=Speedups(compiled=True))


def latents(worker: jobs.Worker, planned: Plan, compiler: Compiler | None = None) -> torch.Tensor:
    pipeline = build(worker, planned)
    with (compiler or Compiler()).applied(pipeline, planned):
        return denoise(worker, planned, pipeline)


@contextmanager
def no_more_compiling() -> Iterator[None]:
    with torch.compiler.set_stance("fail_on_recompile"):
        yield


H200 = replace(gpu(140), name="NVIDIA H200")


def plan_for(fields: dict[str, Any], machine: Hardware, compiling: CompilePolicy = AUTO) -> Plan:
    job = {"input": {"prompt": "a cat"} | fields}
    return plan.make(parse.request(job, CONTRACT), Deployment(machine, BOTH, compiling=compiling))


def said(answer: Answer) -> list[str]:
    return [r for r in answer["metadata"]["plan"]["reasons"] if r.startswith("compile:")]


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(
    ("model", "changes", "graphs"),
    [
        ("wan2.1-t2v-1.3b", {}, 1),
        ("wan2.1-t2v-1.3b", {"acceleration": "cached", "num_inference_steps": 16}, 1),
        (I2V, STARTS, 1),
        ("wan2.1-vace-1.3b", STARTS, 3),
        ("wan2.2-t2v-a14b", {"num_inference_steps": 6}, 1),
        ("wan2.2-ti2v-5b", {"size": "64x64"}, 1),
    ],
    ids=["t2v", "cached", "i2v", "vace", "two experts", "5b"],
)
def test_every_models_blocks_are_one_graph_and_the_latents_are_the_same(
    every_worker: jobs.Worker, model: str, changes: dict[str, Any], graphs: int
) -> None:
    planned = planned_for(every_worker, model=model, **changes)
    assert not text_cache.pays(planned)
    made = latents(every_worker, planned)
    assert 1 <= counters["stats"]["unique_graphs"] <= graphs
    eager = denoise(every_worker, replace(planned, speedups=Speedups()))
    assert torch.allclose(made, eager, atol=1e-4)


@pytest.mark.usefixtures("traced")
def test_a_second_job_of_the_same_shape_compiles_nothing(compiled: jobs.Worker) -> None:
    first = run(compiled, {"prompt": "a blue square", "seed": 3})
    assert said(first) == [
        "compile: the transformer's blocks, as COMPILE asks; "
        "the first job of a size and length waits for it"
    ]
    before = counters["stats"]["unique_graphs"]
    assert before == 1
    with no_more_compiling():
        second = run(compiled)
        assert sha256_of(run(compiled)) == sha256_of(second)
    run(compiled, {"size": "64x64"})
    assert counters["stats"]["unique_graphs"] == before + 1


@pytest.mark.usefixtures("traced")
def test_it_is_put_together_with_guidance_in_one_forward(worker: jobs.Worker) -> None:
    planned = planned_for(worker)
    both = replace(planned, speedups=Speedups(compiled=True, batched_guidance=True))
    assert torch.allclose(latents(worker, both), latents(worker, planned), atol=1e-3)


@pytest.mark.usefixtures("traced")
def test_nothing_of_it_stays_on_a_transformer_however_the_job_ends(
    every_worker: jobs.Worker,
) -> None:
    planned = planned_for(every_worker, model="wan2.2-t2v-a14b", num_inference_steps=6)
    pipeline = build(every_worker, planned)

    def marks() -> list[bool]:
        return ["_compiled_call_impl" in vars(m) for e in experts_of(pipeline) for m in e.modules()]

    before = marks()
    assert not any(before)
    control = Control()
    control._notify = lambda: control.cancel() if control.latest.step == 2 else None
    embeds, negative, _ = generate.encode_prompts(pipeline, planned, Embeddings())
    compiler = Compiler()
    with pytest.raises(Canceled), compiler.applied(pipeline, planned):
        assert any(marks())
        generate.denoise(pipeline, planned, embeds, negative, References(), control)
    assert control.latest.step == 2
    assert marks() == before
    assert not compiler.problem


@pytest.mark.usefixtures("traced")
def test_a_job_that_is_not_compiled_is_as_it_was_beside_those_that_are(
    compiled: jobs.Worker,
) -> None:
    eager = replace(compiled, settings=replace(compiled.settings, compile="off"))
    before = sha256_of(run(eager))
    run(compiled)
    with_lora = run(compiled, {"loras": [CYAN], "model": "wan2.1-t2v-1.3b"})
    assert said(with_lora) == ["compile: not, as LoRAs change the blocks"]
    assert sha256_of(run(eager)) == before


def broken(graph: Any, inputs: Any) -> Any:
    raise RuntimeError("the compiler has crashed")


@pytest.mark.usefixtures("traced")
def test_a_job_whose_compilation_fails_is_computed_eagerly_and_says_so(
    compiled: jobs.Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def crash(graph: Any, inputs: Any) -> Any:
        tries.append(1)
        return broken(graph, inputs)

    monkeypatch.setattr(compiling, "BACKEND", crash)
    eager = replace(compiled, settings=replace(compiled.settings, compile="off"))
    expected = sha256_of(run(eager))
    for _ in range(2):
        answer = run(compiled)
        assert sha256_of(answer) == expected
        assert said(answer) == [
            "compile: not, as it failed (BackendCompilerFailed); computed as it comes"
        ]
    assert tries == [1]  # once for the process


@pytest.mark.usefixtures("traced")
def test_one_that_fails_midway_begins_anew(
    every_worker: jobs.Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = planned_for(every_worker, model="wan2.1-t2v-1.3b", num_inference_steps=4)
    eager = denoise(every_worker, replace(planned, speedups=Speedups()))
    pipeline = build(every_worker, planned)
    calls = []

    def fail(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 5:  # in the third step
            raise torch._dynamo.exc.FailOnRecompileLimitHit("64 shapes")

    pipeline.transformer.register_forward_pre_hook(fail)
    compiler = Compiler()
    with compiler.applied(pipeline, planned):
        made = denoise(every_worker, planned, pipeline)
    pipeline.transformer._forward_pre_hooks.clear()
    assert compiler.problem == "it failed (FailOnRecompileLimitHit)"
    remembered = replace(planned, speedups=Speedups())
    assert text_cache.pays(remembered)
    assert torch.allclose(made, eager, atol=1e-5)
    assert len(calls) == 5 + 8


@pytest.mark.usefixtures("traced")
def test_a_fault_that_is_not_the_compilers_is_no_reason_to_try_again(
    worker: jobs.Worker,
) -> None:
    for fault in (ValueError("of ours"), torch.OutOfMemoryError("CUDA out of memory")):
        planned = planned_for(worker)
        pipeline = build(worker, planned)
        calls = []

        def fail(*_: Any, fault: Exception = fault, calls: list[int] = calls) -> None:
            calls.append(1)
            raise fault

        compiler = Compiler()
        hook = pipeline.transformer.register_forward_pre_hook(fail)
        with pytest.raises(type(fault)), compiler.applied(pipeline, planned):
            denoise(worker, planned, pipeline)
        hook.remove()
        assert calls == [1]
        assert not compiler.problem


@pytest.mark.usefixtures("traced")
def test_a_cache_that_can_not_be_written_costs_the_compiling_and_not_the_job(
    compiled: jobs.Worker, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    compiler = Compiler(tmp_path / "file" / "cache")
    answer = run(replace(compiled, pool=Pool(compiled.hardware, compiler=compiler)))
    assert said(answer) == [
        "compile: not, as its cache can't be written (NotADirectoryError); computed as it comes"
    ]


@pytest.mark.filterwarnings("ignore")  # torch's own, of its own
def test_the_compilers_own_kernels_give_the_same_latents_and_are_kept(
    worker: jobs.Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # put back when the test ends
    # Each process of its own imports torch anew, for longer than it compiles here.
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)
    torch.compiler.reset()
    planned = planned_for(worker)
    compiler = Compiler(tmp_path / "kept")
    made = latents(worker, planned, compiler)
    assert not compiler.problem
    assert any((tmp_path / "kept").rglob("*"))
    eager = denoise(worker, replace(planned, speedups=Speedups()))
    assert torch.allclose(made, eager, atol=1e-3)
    assert not torch.equal(made, eager)  # else nothing of it was compiled
    with no_more_compiling():
        assert torch.equal(latents(worker, planned, compiler), made)
    torch.compiler.reset()


# --- Which jobs are compiled ---

LONG = {"mode": "video", "size": "832x480", "num_inference_steps": 50, "num_frames": 81}


@pytest.mark.parametrize(
    ("changes", "how", "expected"),
    [
        ({"model": I2V, **STARTS}, CompilePolicy(), True),
        ({"model": "wan2.1-t2v-1.3b"}, CompilePolicy(), False),
        ({"model": "wan2.1-t2v-1.3b"}, CompilePolicy(kept=True), True),
        ({"mode": "image", "num_frames": 1}, CompilePolicy(kept=True), False),
        ({"model": I2V, **STARTS}, CompilePolicy("off"), False),
        ({"mode": "image", "num_frames": 1}, CompilePolicy("on"), True),
    ],
    ids=["long", "short", "short, kept", "image", "off", "on"],
)
def test_it_is_done_where_it_pays(
    changes: dict[str, Any], how: CompilePolicy, expected: bool
) -> None:
    planned = plan_for(LONG | changes, H200, how)
    assert planned.speedups.compiled is expected
    assert any(reason.startswith("compile: the") for reason in planned.reasons) is expected
    assert text_cache.pays(planned) is (not expected and "mode" in changes)


def test_a_plan_that_compiles_says_what_for() -> None:
    planned = plan_for(LONG | {"model": I2V, **STARTS}, gpu(80))
    (reason,) = [r for r in planned.reasons if r.startswith("compile:")]
    assert reason.startswith("compile: the transformer's blocks, for about ")
    assert reason.endswith("s of denoising; the first job of a size and length waits for it")


@pytest.mark.parametrize(
    ("changes", "hardware", "why"),
    [
        ({"model": I2V, **STARTS}, gpu(24), "as weights move during the job"),
        ({"precision": "int8"}, H200, "as weights are kept in int8"),
    ],
    ids=["offloaded", "narrow"],
)
def test_what_can_not_be_compiled_says_so(
    changes: dict[str, Any], hardware: Hardware, why: str
) -> None:
    planned = plan_for(LONG | changes, hardware, CompilePolicy("on"))
    assert f"compile: not, {why}" in planned.reasons
    assert not planned.speedups.compiled


def test_a_cpu_compiles_nothing_by_itself() -> None:
    planned = plan_for(LONG, CPU)
    assert not planned.speedups.compiled
    assert not any(reason.startswith("compile") for reason in planned.reasons)


def test_a_second_try_in_less_memory_is_not_compiled() -> None:
    planned = plan_for(LONG | {"model": I2V, **STARTS}, gpu(80))
    assert planned.speedups.compiled
    here = store(I2V)[I2V]
    assert not lower_layout(planned, here, gpu(80), None, "denoise").speedups.compiled
    assert replace(planned, layout=Layout("resident")).speedups.compiled
