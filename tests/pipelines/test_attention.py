"""A faster kernel is used where it is right on this machine, and nowhere else; the plan says so.

A CPU has no faster kernels; what stands for one is put in the place of one that diffusers knows.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.models import attention_dispatch
from diffusers.models.attention_dispatch import AttentionBackendName

from tests.builders.answers import sha256_of
from tests.builders.pictures import picture
from tests.builders.pipelines import build, make_plan
from tests.builders.plans import CPU, gpu
from tests.builders.plans import make as plan_of
from tests.conftest import Answer
from wan_worker import job as jobs
from wan_worker.machine import attention_kernels, hardware
from wan_worker.pipelines import attention, pool
from wan_worker.pipelines.attention import KernelChecks
from wan_worker.planning.speedups import Speedups

Serve = Callable[..., Answer]
Kernel = Callable[..., torch.Tensor]
CUDNN = AttentionBackendName._NATIVE_CUDNN
REGISTRY = attention_dispatch._AttentionBackendRegistry


@pytest.fixture
def tried(worker: jobs.Worker, monkeypatch: pytest.MonkeyPatch) -> Iterator[jobs.Worker]:
    """A worker whose plans try cuDNN's kernel first, and which has tried nothing yet."""
    monkeypatch.setattr(
        attention_kernels, "candidates", lambda *_: ("_native_cudnn", attention_kernels.NATIVE)
    )
    monkeypatch.setattr(worker.pool, "attention", KernelChecks())
    yield worker
    for name, part in worker.pool._components.items():
        if name.endswith((".transformer", ".transformer-2")):
            part.reset_attention_backend()


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Callable[[Kernel], None]:
    """Puts a function in the place of cuDNN's kernel."""

    def put(function: Kernel) -> None:
        monkeypatch.setitem(REGISTRY._backends, CUDNN, function)

    return put


def written_out(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_: Any
) -> torch.Tensor:
    """Speedups attention, rounded otherwise than torch's own: [batch, tokens, heads, width]."""
    q, k, v = (x.double().transpose(1, 2) for x in (query, key, value))
    scores = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1)
    return (scores @ v).transpose(1, 2).to(query.dtype)


def off_scale(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_: Any
) -> torch.Tensor:
    return written_out(1.1 * query, key, value)


def blind_to_the_last(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_: Any
) -> torch.Tensor:
    """Drops the last keys where their number is odd."""
    some = key.shape[1] // 2 * 2 if key.shape[1] < 300 else key.shape[1]
    return written_out(query, key[:, : some - 40], value[:, : some - 40])


def not_a_number(query: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return torch.full_like(query, torch.nan)


def said(answer: Answer) -> str:
    (found,) = [r for r in answer["metadata"]["plan"]["reasons"] if r.startswith("attention:")]
    return str(found)


@pytest.mark.parametrize(
    ("capability", "packages", "expected"),
    [
        ((9, 0), (), ("_native_cudnn", "native")),
        ((9, 0), ("flash_attn_3",), ("_flash_3", "_native_cudnn", "native")),
        ((10, 0), ("flash_attn_3",), ("_native_cudnn", "native")),
        ((8, 0), ("flash_attn_3",), ("native",)),
        ((8, 9), (), ("native",)),
        ((12, 0), (), ("native",)),
    ],
)
def test_candidates_fit_the_gpu_and_what_is_installed(
    capability: tuple[int, int], packages: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    machine = replace(gpu(80), compute_capability=capability, packages=packages)
    assert attention_kernels.candidates(machine) == expected
    known = {name.value for name in AttentionBackendName}
    assert set(expected) <= known & set(attention_kernels.NAMES)


def test_a_cpu_has_torchs_own_and_nothing_to_say() -> None:
    planned = plan_of(hardware=CPU)
    assert planned.speedups.attention == ("native",)
    assert not any(reason.startswith("attention:") for reason in planned.reasons)


def test_a_gpus_plan_says_what_will_be_tried() -> None:
    (reason,) = [r for r in plan_of(hardware=gpu(80)).reasons if r.startswith("attention:")]
    assert reason == (
        "attention: cuDNN's kernel, if it proves right on this GPU, else torch's choice of kernel"
    )


def test_packages_are_looked_for_and_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    class Done:
        stdout = "NVIDIA H200, 143771, 143200, 9.0"

    monkeypatch.setattr(hardware.subprocess, "run", lambda *_, **__: Done())
    assert hardware.detect().packages == ()
    monkeypatch.setattr(hardware, "OPTIONAL", ("numpy", "flash_attn_3"))
    assert hardware.detect().packages == ("numpy",)


@pytest.mark.usefixtures("tried")
def test_a_kernel_that_is_not_there_is_left_for_the_next(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    # cuDNN's on a CPU: torch finds "no viable backend". FlashAttention 3 is not installed.
    candidates = ("_flash_3", "_native_cudnn", attention_kernels.NATIVE)
    monkeypatch.setattr(attention_kernels, "candidates", lambda *_: candidates)
    answer = serve()
    assert said(answer) == (
        "attention: torch's choice of kernel; FlashAttention 3 failed (RuntimeError); "
        "cuDNN's kernel failed (RuntimeError)"
    )
    monkeypatch.undo()
    assert sha256_of(serve()) == sha256_of(answer)


@pytest.mark.usefixtures("tried")
@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (off_scale, "was off by "),
        (blind_to_the_last, "was off by "),
        (not_a_number, "gave NaN"),
    ],
)
def test_a_kernel_that_computes_wrong_is_not_used(
    serve: Serve, kernel: Callable[[Kernel], None], function: Kernel, problem: str
) -> None:
    kernel(function)
    answer = serve()
    reason = said(answer)
    assert reason.startswith(f"attention: torch's choice of kernel; cuDNN's kernel {problem}")
    kernel(not_a_number)  # were it used, the next job would fail
    assert sha256_of(serve()) == sha256_of(answer)


def test_the_bytes_are_native_ones_where_native_is_what_is_left(
    serve: Serve, kernel: Callable[[Kernel], None], request: pytest.FixtureRequest
) -> None:
    before = sha256_of(serve())
    request.getfixturevalue("tried")
    kernel(off_scale)
    assert sha256_of(serve()) == before


def test_a_kernel_that_is_right_is_used_by_every_expert_and_by_nothing_else(
    every_worker: jobs.Worker, kernel: Callable[[Kernel], None]
) -> None:
    kernel(written_out)
    planned = make_plan(every_worker, model="wan2.2-t2v-a14b")
    planned = replace(planned, speedups=Speedups(("_native_cudnn", attention_kernels.NATIVE)))
    pipeline = build(every_worker, planned)
    used = KernelChecks().use(pipeline, planned)
    assert used.reasons[-1] == "attention: cuDNN's kernel, right on this GPU within its rounding"
    experts = (pipeline.transformer, pipeline.transformer_2)
    assert {p._attention_backend for e in experts for p in e.attn_processors.values()} == {CUDNN}
    assert REGISTRY.get_active_backend()[0] == AttentionBackendName.NATIVE
    for expert in experts:
        expert.reset_attention_backend()


def test_a_job_computes_with_the_kernel_that_proved_right(
    tried: jobs.Worker, serve: Serve, kernel: Callable[[Kernel], None]
) -> None:
    lengths = []

    def counted(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_: Any
    ) -> torch.Tensor:
        lengths.append((query.shape[1], key.shape[1]))
        return written_out(query, key, value)

    kernel(counted)
    planned = make_plan(tried)
    assert said(serve()).startswith("attention: cuDNN's kernel, right on this GPU")
    # Tried at the job's own lengths: its tokens, the prompt's and a picture's.
    count = lengths[0][0]
    assert lengths[:3] == [(count, count), (count, 512), (count, 257)]
    layers = len(build(tried, planned).transformer.blocks)
    steps, branches = planned.num_inference_steps, 2
    assert lengths[3:] == [(count, count), (count, 512)] * layers * steps * branches
    # A verdict is kept: the same lengths are not tried again.
    tried_before = len(lengths)
    serve({"seed": 8})
    assert len(lengths) == tried_before + 2 * layers * steps * branches


@pytest.mark.usefixtures("tried")
def test_a_job_of_torchs_own_kernel_is_left_no_other_by_the_one_before(
    kernel: Callable[[Kernel], None], serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def counted(*args: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        calls.append(1)
        return written_out(*args, **kwargs)

    kernel(counted)
    serve()
    assert calls
    calls.clear()
    monkeypatch.setattr(attention_kernels, "candidates", lambda *_: (attention_kernels.NATIVE,))
    serve()
    assert calls == []


@pytest.mark.usefixtures("tried")
def test_a_long_videos_segments_each_have_theirs_tried(
    serve: Serve, kernel: Callable[[Kernel], None]
) -> None:
    lengths = []

    def counted(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_: Any
    ) -> torch.Tensor:
        lengths.append(query.shape[1])
        return written_out(query, key, value)

    kernel(counted)
    answer = serve({"num_frames": 101, "size": "32x32", "image_url": picture()})
    assert said(answer).startswith("attention: cuDNN's kernel")
    # None as long as the whole video: the first try is at a segment's length.
    assert max(lengths) <= 4 * 21


def test_out_of_memory_is_no_verdict(
    every_worker: jobs.Worker, kernel: Callable[[Kernel], None]
) -> None:
    def full(query: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    kernel(full)
    planned = make_plan(every_worker)
    planned = replace(planned, speedups=Speedups(("_native_cudnn", attention_kernels.NATIVE)))
    gate = KernelChecks()
    with pytest.raises(torch.OutOfMemoryError):
        gate.use(build(every_worker, planned), planned)
    assert not gate._problems


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("keys", [257, 512, 1560])
def test_torchs_own_kernels_pass_with_room_to_spare(dtype: torch.dtype, keys: int) -> None:
    for name in ("native", "_native_math", "_native_flash"):
        error = attention.relative_error(name, 128, dtype, 1560, keys, "cpu")
        assert 0 < error < attention.BOUNDS[str(dtype)] / 3


def test_eight_bits_on_the_way_do_not_pass(kernel: Callable[[Kernel], None]) -> None:
    def rounded(x: torch.Tensor) -> torch.Tensor:
        return x.to(torch.float8_e4m3fn).to(x.dtype)

    kernel(lambda query, key, value, **_: written_out(*map(rounded, (query, key, value))))
    error = attention.relative_error("_native_cudnn", 128, torch.bfloat16, 512, 512, "cpu")
    assert error > attention.BOUNDS["torch.bfloat16"]


def test_a_pool_has_a_gate_of_its_own(worker: jobs.Worker) -> None:
    assert pool.Pool(worker.hardware).attention is not worker.pool.attention
