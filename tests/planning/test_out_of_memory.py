"""Memory runs out in spite of the plan: one more try in less of it, then an answer that helps."""

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.builders.answers import sha256_of as sha256
from tests.builders.faults import OutOfMemoryError
from tests.builders.pipelines import make_plan
from tests.conftest import QUICK, Answer, error_of
from wan_worker import job as jobs
from wan_worker.catalog.models import MODELS, Installed
from wan_worker.machine.hardware import Hardware
from wan_worker.pipelines import generate
from wan_worker.planning import memory, out_of_memory
from wan_worker.planning.memory import Layout
from wan_worker.planning.plan import Plan, job_size
from wan_worker.timing.progress import Control
from wan_worker.weights import store

Serve = Callable[..., Answer]
GIB = 1024**3


def fail_at(
    monkeypatch: pytest.MonkeyPatch, name: str, *calls: int, holding: list[Any] | None = None
) -> list[int]:
    """Let these calls of a function of ``generate``, counted from 1, run out of memory."""
    original, count = getattr(generate, name), [0]

    def limited(*args: Any, **named: Any) -> Any:
        count[0] += 1
        if count[0] in calls:
            tensor = torch.zeros(10)
            if holding is not None:
                holding.append(weakref.ref(tensor))
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return original(*args, **named)

    monkeypatch.setattr(generate, name, limited)
    return count


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("encode_prompts", "in prompt; tried again one output at a time, with everything else out"),
        ("denoise", "in denoise; tried again one output at a time, with everything else out of"),
        ("frames", "in decode_encode; tried again one output at a time, weights resident, decod"),
    ],
)
def test_a_job_that_runs_out_of_memory_once_is_made_in_less_of_it(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    calls = fail_at(monkeypatch, name, 1)
    answer = serve({})
    assert "error" not in answer
    assert calls == [2]
    (reason,) = [r for r in answer["metadata"]["plan"]["reasons"] if r.startswith("memory: it ran")]
    assert said in reason


def test_the_next_job_has_its_own_plan_again(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sha256(serve({}))
    with monkeypatch.context() as patch:
        fail_at(patch, "denoise", 1)
        serve({})
    after = serve({})
    assert sha256(after) == before
    assert not [r for r in after["metadata"]["plan"]["reasons"] if r.startswith("memory: it ran")]


def test_nothing_of_the_first_try_is_held_in_the_second(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[Any] = []
    fail_at(monkeypatch, "denoise", 1, holding=held)
    denoise, alive = generate.denoise, []

    def look(*args: Any) -> Any:
        gc.collect()
        alive.append([ref() is not None for ref in held])
        return denoise(*args)

    monkeypatch.setattr(generate, "denoise", look)
    assert "error" not in serve({})
    assert alive == [[], [False]]


def test_a_second_failure_says_what_would_take_less(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        calls = fail_at(patch, "denoise", 1, 2, 3)
        answer = serve({})
    error = error_of(answer)
    assert calls == [2]
    assert (error["code"], answer["refresh_worker"]) == ("OUT_OF_MEMORY", True)
    assert "second try" in error["message"]
    assert "error" not in serve({})


def test_outputs_that_are_made_are_not_made_again(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = [sha256(serve({"seed": seed})) for seed in (7, 8)]
    calls = fail_at(monkeypatch, "denoise", 2)
    answer = serve({"seed": 7, "num_outputs": 2})
    assert calls == [3]
    assert [asset["seed"] for asset in answer["assets"]] == [7, 8]
    assert answer["assets"][0]["sha256"] == alone[0]


def test_a_batch_becomes_single_outputs(worker: jobs.Worker) -> None:
    planned = replace(make_plan(worker, num_outputs=4), batch_size=4)
    here = store.installed(worker.settings.models_dir)[planned.model.id]
    assert (
        out_of_memory.lower_layout(planned, here, worker.hardware, None, "denoise").batch_size == 1
    )


# --- Down the ladder ---


def card(gib: int) -> Hardware:
    return Hardware("cuda", f"GPU {gib}", gib * GIB, (9, 0), "for a test", ram_bytes=256 * GIB)


def stored(model_id: str) -> Installed:
    return Installed({c.name: c.stored_bytes for c in MODELS[model_id].components}, tiny=False)


@pytest.fixture
def large(worker: jobs.Worker) -> Plan:
    return replace(
        make_plan(worker, size="832x480", num_frames=81), tiny=False, device="cuda", reasons=()
    )


@pytest.mark.parametrize(
    ("stage", "estimated"),
    [("denoise", "denoise"), ("decode_encode", "decode"), ("prompt", "prompt")],
)
@pytest.mark.parametrize("start", [Layout("resident"), Layout("sequential")])
def test_each_try_takes_less_where_it_failed(
    large: Plan, start: Layout, stage: str, estimated: memory.Stage
) -> None:
    here = stored(large.model.id)
    lowered = out_of_memory.lower_layout(replace(large, layout=start), here, card(80), None, stage)

    def needed(layout: Layout) -> int:
        found = memory.estimate(large.model, here.component_bytes, job_size(large), layout)
        return dict(found.stages)[estimated]

    assert needed(lowered.layout) < needed(start)


def test_another_models_segments_keep_what_was_found_for_them(large: Plan) -> None:
    heavier = replace(large, model=MODELS["wan2.1-i2v-14b-480p"], layout=Layout("group"))
    film = replace(large, segments=(large, heavier))
    lowered = out_of_memory.lower_layout(film, stored(large.model.id), card(80), None, "denoise")
    own, other = lowered.segments
    assert own.layout == lowered.layout != large.layout
    assert other.layout == heavier.layout


def test_the_answer_states_the_peak_of_the_second_try(large: Plan) -> None:
    lowered = out_of_memory.lower_layout(large, stored(large.model.id), card(80), None, "denoise")
    assert lowered.public()["peak_gb"] is not None


def test_the_operators_placement_is_kept(large: Plan) -> None:
    lowered = out_of_memory.lower_layout(
        large, stored(large.model.id), card(80), "resident", "decode_encode"
    )
    assert (lowered.placement, lowered.layout.decode) == ("resident", "bf16")


def test_at_the_bottom_of_the_ladder_the_same_is_tried_once_more(large: Plan) -> None:
    bottom = replace(large, layout=Layout("group"))
    lowered = out_of_memory.lower_layout(bottom, stored(large.model.id), card(80), None, "denoise")
    assert lowered.layout == bottom.layout
    assert "everything else out of the way" in lowered.reasons[-1]


def test_tiles_that_came_in_the_second_try_are_told(large: Plan) -> None:
    bf16 = replace(large, layout=Layout("group", decode="bf16"), size=(1280, 720))
    lowered = out_of_memory.lower_layout(
        bf16, stored(large.model.id), card(80), "group", "decode_encode"
    )
    assert lowered.layout.decode == "tiled"
    assert [n.code for n in lowered.notices if n.code == "VAE_TILED"] == ["VAE_TILED"]


def test_the_advice_is_a_smaller_job_or_a_larger_gpu(large: Plan) -> None:
    here = stored(large.model.id)
    placed = replace(large, layout=Layout("sequential"), size=(1920, 1088))
    assert out_of_memory.advice(placed, here).startswith("1280x720 with 81 frames would take")
    assert out_of_memory.advice(replace(placed, num_frames=1, size=(64, 64)), here).startswith(
        "a larger"
    )


def test_a_cancelled_job_is_not_tried_again(
    worker: jobs.Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fail_at(monkeypatch, "denoise", 1)
    control = Control()
    control._notify = lambda: control.cancel() if control.stage == "denoise" else None
    assert error_of(jobs.run({"id": "c", "input": QUICK}, worker, control))["code"] == "CANCELED"
    assert calls == [1]
