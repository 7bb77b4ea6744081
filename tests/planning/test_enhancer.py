"""Where a language model's weights wait, and where it can't run at all."""

from dataclasses import replace

import pytest

from tests.builders.pipelines import make_plan
from wan_worker import job as jobs
from wan_worker.catalog.components import ENHANCER
from wan_worker.catalog.models import Installed
from wan_worker.machine.hardware import Hardware
from wan_worker.planning import enhancer, plan
from wan_worker.planning.memory import Layout

GB = 10**9
HERE = Installed({"umt5-xxl": 11 * GB, "transformer": 3 * GB, "wan2.1-vae": GB // 2}, tiny=False)
WEIGHTS = Installed({ENHANCER.name: 15 * GB}, tiny=False)


def gpu(gib: int) -> Hardware:
    return Hardware("cuda", f"GPU {gib}", gib * 1024**3, (9, 0), "for a test")


@pytest.fixture
def planned(worker: jobs.Worker) -> plan.Plan:
    return replace(make_plan(worker), tiny=False, reasons=(), notices=())


@pytest.mark.parametrize(("gib", "fate"), [(80, "keep"), (48, "keep"), (24, "release")])
def test_the_language_model_stays_where_it_fits_and_is_released_where_not(
    planned: plan.Plan, gib: int, fate: str
) -> None:
    placed = replace(planned, layout=Layout("resident", room_bytes=gib * 1024**3 - 24 * GB))
    decided = enhancer.decide(placed, HERE, gpu(gib), ENHANCER, WEIGHTS)
    assert decided.enhancer == fate
    (reason,) = decided.reasons
    assert reason.startswith("enhance_prompt: by Qwen/Qwen2.5-7B-Instruct; its 15.0 GB")
    assert ("stay in memory" in reason) is (fate == "keep")
    assert decided.notices == ()


@pytest.mark.parametrize(("ram_gib", "fate"), [(128, "keep"), (32, "release")])
def test_beside_weights_that_take_turns_it_waits_in_main_memory_where_that_holds_both(
    planned: plan.Plan, ram_gib: int, fate: str
) -> None:
    machine = replace(gpu(24), ram_bytes=ram_gib * 1024**3)
    placed = replace(planned, layout=Layout("sequential"))
    assert enhancer.decide(placed, HERE, machine, ENHANCER, WEIGHTS).enhancer == fate


def test_a_gpu_that_can_not_hold_it_means_the_users_prompt(planned: plan.Plan) -> None:
    decided = enhancer.decide(planned, HERE, gpu(12), ENHANCER, WEIGHTS)
    assert decided.enhancer is None
    assert "GPU 12 has 12.9 GB" in decided.notices[0].message


def test_on_a_cpu_it_runs_in_float32_and_weighs_twice(planned: plan.Plan) -> None:
    machine = Hardware("cpu", "CPU", 64 * GB, None, "for a test")
    assert "30.0 GB" in enhancer.decide(planned, HERE, machine, ENHANCER, WEIGHTS).reasons[0]


def test_a_toy_language_model_never_rewrites_for_a_real_one(planned: plan.Plan) -> None:
    toy = replace(WEIGHTS, tiny=True)
    assert enhancer.decide(planned, HERE, gpu(80), ENHANCER, toy).enhancer is None
