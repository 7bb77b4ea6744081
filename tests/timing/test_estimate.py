"""Times that are told come true: what is learned, what is left, and what is not believed."""

import random
from dataclasses import replace
from typing import Any

import pytest

from tests.conftest import QUICK
from wan_worker import job as jobs
from wan_worker.machine.hardware import Hardware
from wan_worker.timing import estimate
from wan_worker.timing.estimate import KEPT, Sample, StageEstimate, StageTime
from wan_worker.timing.progress import Control
from wan_worker.timing.record import Record
from wan_worker.timing.work import Key, Quantity, StageWork

H200 = Hardware("cuda", "NVIDIA H200", 141 * 1024**3, (9, 0), "for a test")
STEP = Key("step", "wan2.1-t2v-1.3b", "cuda resident bf16")
OTHER = Key("step", "wan2.1-t2v-14b", "cuda resident bf16")
BEGIN = Key("begin", "wan2.1-t2v-1.3b", "cuda resident bf16")
DECODE = Key("decode", "wan2.1-vae mp4", "cuda fp32")


def samples(*measured: tuple[float, float], key: Key = STEP, cold: bool = False) -> Any:
    record = Record()
    record.add(Sample(key, amount, seconds, cold) for amount, seconds in measured)
    return record.samples


def step_seconds(amount: float, learned: Any, key: Key = STEP, machine: Hardware = H200) -> float:
    stage_work = StageWork("denoise", (), (Quantity(key, amount),))
    return estimate.make([stage_work], learned, machine).seconds


# --- What is assumed, and what is learned ---


def test_an_assumed_step_is_diffusers_own_on_that_card() -> None:
    # 9.77 s with guidance on an H100 (see SHARE): 1,678 TFLOP twice.
    assert step_seconds(1678e12, {}) * 2 == pytest.approx(9.77, rel=0.02)
    slower = replace(H200, name="NVIDIA L4")
    assert step_seconds(1678e12, {}, machine=slower) > 8 * step_seconds(1678e12, {})
    unknown = replace(H200, name="GPU of 2031")
    assert step_seconds(1678e12, {}, machine=unknown) > step_seconds(1678e12, {})


def test_one_job_teaches_every_size() -> None:
    truth = 2 * step_seconds(100e12, {})
    learned = samples((100e12, truth))
    assert step_seconds(100e12, learned) == pytest.approx(truth)
    assert step_seconds(400e12, learned) == pytest.approx(2 * step_seconds(400e12, {}))


def test_one_odd_job_changes_nothing() -> None:
    usual = [(amount * 1e12, step_seconds(amount * 1e12, {})) for amount in (50, 90, 200, 300)]
    odd = samples(*usual, (100e12, 1000.0))
    assert step_seconds(120e12, odd) == pytest.approx(step_seconds(120e12, {}), rel=1e-6)


def test_a_lasting_change_is_followed() -> None:
    before = [(100e12, 1.0)] * 50
    after = [(100e12, 3.0)] * (KEPT // 2 + 1)
    assert step_seconds(100e12, samples(*before, *after)) == pytest.approx(3.0)


def test_a_first_job_counts_until_there_is_another() -> None:
    record = Record()
    record.add([Sample(STEP, 1e12, 90.0, cold=True)])
    assert step_seconds(1e12, record.samples) == pytest.approx(90.0)
    record.add([Sample(STEP, 1e12, 2.0)])
    assert step_seconds(1e12, record.samples) == pytest.approx(2.0)


def test_another_models_speed_stands_in_until_there_is_its_own() -> None:
    stage_work = StageWork("denoise", (), (Quantity(STEP, 100e12),))
    other = samples((100e12, 3 * step_seconds(100e12, {})), key=OTHER)
    found = estimate.make([stage_work], other, H200)
    assert (found.basis, found.samples) == ("related", 1)
    assert found.seconds == pytest.approx(3 * step_seconds(100e12, {}))
    own = estimate.make([stage_work], {**other, **samples((100e12, 1.0))}, H200)
    assert (own.basis, own.seconds) == ("measured", pytest.approx(1.0))


def test_another_layout_in_memory_is_not_taken_for_this_one() -> None:
    group = Key("step", "wan2.1-t2v-1.3b", "cuda group bf16")
    found = step_seconds(1e12, samples((1e12, 500.0), key=group))
    assert found == step_seconds(1e12, {})


def test_the_basis_is_that_of_what_takes_the_longest() -> None:
    work = [
        StageWork("denoise", (), (Quantity(STEP, 100e12),) * 50),
        StageWork("decode_encode", (Quantity(DECODE, 1e12),)),
    ]
    assert estimate.make(work, samples((1e12, 1.0), key=DECODE), H200).basis == "assumed"
    found = estimate.make(work, samples((100e12, 1.0), (100e12, 1.0)), H200)
    assert (found.basis, found.samples) == ("measured", 2)


def test_what_is_remembered_is_bounded() -> None:
    record = Record()
    for index in range(3000):
        record.add([Sample(Key("step", f"m{index}", ""), 1.0, 1.0)] * 3)
        record.add([Sample(STEP, 1.0, 1.0)])
    assert sum(map(len, record.samples.values())) < 2000
    assert STEP in record.samples


# --- What a job teaches ---


def denoising(*kinds: str, times: int = 2) -> StageWork:
    keys = {"step": STEP, "reused": STEP._replace(kind="reused")}
    return StageWork(
        "denoise", (Quantity(BEGIN),), tuple(Quantity(keys[k], 1e12, times) for k in kinds)
    )


def measured(found: Any) -> dict[str, float]:
    return {sample.key.kind: sample.measured for sample in found}


def test_the_wait_before_the_first_step_is_not_the_steps_fault() -> None:
    stage_time = StageTime("denoise", 10.0, (4.0, 2.0, 2.0, 2.0))
    found = measured(estimate.learn([denoising(*["step"] * 4)], [stage_time], [1]))
    assert found == {"begin": 2.0, "step": 1.0}


def test_spared_steps_teach_their_own_time() -> None:
    stage_time = StageTime("denoise", 6.6, (2.0, 2.0, 0.2, 2.0, 0.4))
    stage_work = denoising("step", "step", "reused", "step", "reused")
    found = measured(estimate.learn([stage_work], [stage_time], [1]))
    assert found == pytest.approx({"begin": 0.0, "reused": 0.15, "step": 1.0})


def test_the_files_check_belongs_to_its_making_and_the_queue_to_nobody() -> None:
    stage_work = StageWork("decode_encode", (Quantity(DECODE, 1e9),))
    stage_times = [
        StageTime("queue", 50.0),
        StageTime("decode_encode", 3.0),
        StageTime("check", 1.0),
    ]
    assert measured(estimate.learn([stage_work], stage_times, [1])) == {"decode": 4.0}
    assert estimate.error(estimate.make([stage_work], {}, H200), stage_times) == pytest.approx(
        (estimate.make([stage_work], {}, H200).seconds - 4) / 4
    )


@pytest.mark.parametrize(
    "stage_times",
    [
        [
            StageTime("denoise", 9.0, (1.0,)),
            StageTime("load", 1.0),
            StageTime("denoise", 3.0, (1.0,) * 3),
        ],
        [],
        [StageTime("decode_encode", 3.0)],
    ],
    ids=["a second try", "nothing", "another stage"],
)
def test_a_job_that_did_not_go_as_planned_teaches_nothing(stage_times: list[StageTime]) -> None:
    assert estimate.learn([denoising(*["step"] * 3)], stage_times, [1]) == ()


def test_a_stop_in_the_middle_of_the_steps_teaches_nothing() -> None:
    stage_time = StageTime("denoise", 2.0, (1.0, 1.0))
    assert estimate.learn([denoising(*["step"] * 3)], [stage_time], [1]) == ()


def test_estimates_of_unseen_sizes_come_true_where_the_machine_is_steady() -> None:
    # A machine of another speed than was assumed, with another fixed share, and noise.
    chance = random.Random(5)

    def truth(amount: float) -> float:
        return (0.025 + amount / 200e12) * chance.uniform(0.97, 1.03)

    sizes = [chance.uniform(20e12, 2000e12) for _ in range(40)]
    learned = samples(*((size, truth(size)) for size in sizes[:4]))
    errors = sorted(abs(step_seconds(size, learned) - truth(size)) / truth(size)
                    for size in sizes[4:])  # fmt: skip
    assert errors[len(errors) // 2] < 0.05
    assert errors[-4] < 0.1


# --- What is left ---

JOB = (
    StageEstimate("load", 2.0),
    StageEstimate("denoise", 10.0, (3.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)),
    StageEstimate("decode_encode", 4.0),
    StageEstimate("denoise", 10.0, (3.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)),
    StageEstimate("decode_encode", 4.0),
    StageEstimate("upload", 1.0),
)


def test_before_the_first_step_the_estimate_counts_down() -> None:
    assert estimate.left(JOB, 0, StageTime("load", 0.0), {}) == 31.0
    assert estimate.left(JOB, 0, StageTime("load", 1.5), {}) == 29.5
    assert estimate.left(JOB, 0, StageTime("load", 99.0), {}) == 29.0


def test_then_the_jobs_own_pace_corrects_all_that_is_alike() -> None:
    stage_time = StageTime(
        "denoise", 10.0, (6.0, 2.0, 2.0)
    )  # twice what was expected, three of eight done
    assert estimate.left(JOB, 1, stage_time, {}, 8) == 2 * 5 + 4 + 2 * 10 + 4 + 1


def test_a_pace_is_kept_for_the_next_output() -> None:
    left = estimate.left(JOB, 2, StageTime("decode_encode", 0.0), {"denoise": 2.0})
    assert left == 4 + 20 + 4 + 1


def test_steps_of_unequal_cost_are_not_counted_by_their_number() -> None:
    # The last two are spared: six of eight steps are all of the time.
    stage_estimate = StageEstimate("denoise", 12.2, (2.0,) * 6 + (0.1,) * 2)
    left = estimate.left((stage_estimate,), 0, StageTime("denoise", 12.0, (2.0,) * 6), {}, 8)
    assert left == pytest.approx(0.2)


# --- In a job ---


def test_an_answer_tells_what_was_expected_and_how_wrong_it_was(worker: jobs.Worker) -> None:
    fresh = replace(worker, record=Record())
    told = []
    for index in range(3):
        control = Control()
        answer = jobs.run({"id": f"e{index}", "input": QUICK}, fresh, control)
        body = answer["metadata"]["estimate"]
        timings = answer["metadata"]["timings"]
        taken = sum(timings[stage] for stage in body["stages"])
        # Each of these figures is rounded to a millisecond.
        rounded = 0.0005 * (len(body["stages"]) + 1) * (1 + body["seconds"] / taken) / taken
        assert body["error"] == pytest.approx((body["seconds"] - taken) / taken, abs=0.01 + rounded)
        assert sum(body["stages"].values()) == pytest.approx(body["seconds"], abs=0.01)
        told.append((body["basis"], body["samples"]))
    assert told[0] == ("assumed", 0)
    assert [basis for basis, _ in told[1:]] == ["measured"] * 2


def test_a_failed_job_teaches_nothing(worker: jobs.Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = replace(worker, record=Record())
    monkeypatch.setattr("wan_worker.delivery.deliver.artifacts", lambda *_: 1 / 0)
    assert "error" in jobs.run({"id": "f", "input": QUICK}, fresh, Control())
    assert fresh.record.samples == {}


def test_the_time_left_is_the_whole_jobs_and_falls(worker: jobs.Worker) -> None:
    seen: list[tuple[str, float | None]] = []
    control = Control(notify=lambda: seen.append((control.stage, control.latest.seconds_left)))
    jobs.run({"id": "l", "input": QUICK | {"num_outputs": 2}}, worker, control)
    covered = [left for stage, left in seen if stage not in ("plan", "fetch", "queue")]
    assert None not in covered
    assert all(left is None for stage, left in seen if stage in ("plan", "fetch", "queue"))
    assert control.estimate is not None
    assert covered[0] == pytest.approx(control.estimate.seconds, rel=0.2)
    between = max(i for i, (stage, _) in enumerate(seen) if stage == "denoise")
    assert (seen[between][1] or 0) > 0  # all steps are done, the file is not
    assert (covered[-1] or 0) < (covered[0] or 0)


def test_what_was_learned_changes_no_byte(worker: jobs.Worker) -> None:
    hashes = []
    for record in (Record(), worker.record):
        answer = jobs.run({"id": "b", "input": QUICK}, replace(worker, record=record), Control())
        hashes.append(answer["assets"][0]["sha256"])
    assert hashes[0] == hashes[1]


def test_compiling_is_expected_once_for_a_size_and_learned_apart_from_the_steps() -> None:
    fast = Key("step", STEP.subject, STEP.conditions + " compiled")
    compile_ = Quantity(BEGIN._replace(kind="compile"))
    first = StageWork("denoise", (Quantity(BEGIN), compile_), (Quantity(fast, 1e12),) * 4)
    again = replace(first, once=first.once[:1])
    extra = estimate.make([first], {}, H200).seconds - estimate.make([again], {}, H200).seconds
    assert extra > 20
    stage_time = StageTime("denoise", 64.0, (61.0, 1.0, 1.0, 1.0))
    found = measured(estimate.learn([first], [stage_time], [1]))
    assert found == {"compile": 60.0, "step": 1.0}
