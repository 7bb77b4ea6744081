"""A machine is measured by an operator's order, and the plans that follow take what won."""

import os
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.builders.answers import sha256_of
from tests.conftest import QUICK, Answer
from wan_worker import calibrate, clips
from wan_worker import job as jobs
from wan_worker.catalog.models import MODELS
from wan_worker.errors import Canceled, UnexpectedError
from wan_worker.machine.hardware import Hardware, Tuned
from wan_worker.machine.tuning import Tuning
from wan_worker.pipelines import generate
from wan_worker.timing.progress import Control

MODEL = "wan2.1-t2v-1.3b"
CPU = Hardware("cpu", "CPU, 4 cores", 64 * 10**9, None, "for a test")
HOPPER = Hardware("cuda", "NVIDIA H200", 141 * 10**9, (9, 0), "for a test")


@pytest.fixture
def tuned_worker(worker: jobs.Worker, tmp_path: Path) -> jobs.Worker:
    return replace(worker, tuning=Tuning(tmp_path / "state"))


def serve(worker: jobs.Worker) -> Answer:
    answer = jobs.run({"id": "job-1", "input": QUICK}, worker, Control())
    assert "error" not in answer, answer
    return answer


def timed(monkeypatch: pytest.MonkeyPatch, seconds: dict[Tuned, float]) -> list[Tuned]:
    """Clips that take as long as is said here; the first of each way takes far longer."""
    made: list[Tuned] = []

    def denoise(_worker: Any, _model: Any, _clip: Any, way: Tuned, _control: Any) -> float:
        made.append(way)
        return seconds[way] * (1 if made.count(way) > 1 else 50)

    monkeypatch.setattr(calibrate, "_denoise", denoise)
    monkeypatch.setattr(calibrate, "ways", lambda *_: tuple(seconds))
    return made


@pytest.mark.parametrize(
    ("cores", "expected"), [(1, [1]), (2, [2, 1]), (6, [6, 3, 1]), (16, [16, 8, 4, 2, 1])]
)
def test_a_cpu_is_tried_with_fewer_and_fewer_threads(cores: int, expected: list[int]) -> None:
    usual, *others = calibrate.ways(CPU, cores)
    assert usual == Tuned()
    assert [way.threads for way in others] == expected


def test_a_machine_that_tells_no_affinity_has_all_its_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert calibrate.cores() == 6


def test_a_gpu_is_tried_with_each_kernel_that_it_may_have() -> None:
    usual, *others = calibrate.ways(HOPPER, 16)
    assert usual == Tuned()
    assert [way.kernel for way in others] == ["_native_cudnn", "native"]


def test_the_fastest_way_wins_and_a_warm_up_does_not_count(
    worker: jobs.Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways = {Tuned(): 2.0, Tuned(threads=2): 1.5, Tuned(threads=1): 1.0}
    made = timed(monkeypatch, ways)
    told: list[tuple[int, int]] = []
    found = calibrate.run(worker, MODEL, Control(), lambda *progress: told.append(progress))
    assert found.tuned == Tuned(threads=1)
    assert found.gain == 2.0
    assert [(trial.way, trial.seconds) for trial in found.trials] == [
        ("as usual", 2.0),
        ("2 threads", 1.5),
        ("1 thread", 1.0),
    ]
    assert made == list(ways) * 4  # in turn
    assert told == [(count, 12) for count in range(1, 13)]


def test_what_is_hardly_faster_changes_nothing(
    worker: jobs.Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, {Tuned(): 2.0, Tuned(threads=1): 1.95})
    found = calibrate.run(worker, MODEL, Control())
    assert (found.tuned, found.gain) == (Tuned(), 1.0)


@pytest.mark.parametrize("model", list(MODELS))
def test_every_model_can_be_measured(every_worker: jobs.Worker, model: str) -> None:
    clip = calibrate.clip_for(MODELS[model], every_worker.hardware, tiny=True)
    small = replace(clip, num_frames=5)
    taken = calibrate._denoise(every_worker, MODELS[model], small, Tuned(), Control())
    assert taken > 0


def test_a_machine_is_measured_and_later_jobs_take_and_say_what_won(
    tuned_worker: jobs.Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "ROUNDS", 1)
    monkeypatch.setattr(calibrate, "clip_for", lambda *_, **__: calibrate.Clip(64, 48, 5))
    before = {path.name for path in tuned_worker.settings.output_dir.iterdir()}
    found = calibrate.run(tuned_worker, MODEL, Control())
    assert all(trial.seconds > 0 for trial in found.trials)
    assert {path.name for path in tuned_worker.settings.output_dir.iterdir()} == before
    plain = serve(tuned_worker)
    tuned_worker.tuning.add(replace(found, tuned=Tuned(threads=1)))
    reasons = serve(tuned_worker)["metadata"]["plan"]["reasons"]
    assert "threads: 1, the fastest when this machine was measured" in reasons
    tuned_worker.tuning.undo()
    after = serve(tuned_worker)
    assert after["metadata"]["plan"] == plain["metadata"]["plan"]
    assert sha256_of(after) == sha256_of(plain)


def test_threads_are_those_of_the_jobs_own_plan(
    tuned_worker: jobs.Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    denoise = generate.denoise

    def watched(*args: Any) -> Any:
        seen.append(torch.get_num_threads())
        return denoise(*args)

    monkeypatch.setattr(generate, "denoise", watched)
    serve(tuned_worker)
    machine = tuned_worker.hardware
    trials = calibrate.Calibration(
        MODEL, machine.name, version("torch"), "", "", (), Tuned(threads=3)
    )
    tuned_worker.tuning.add(trials)
    serve(tuned_worker)
    tuned_worker.tuning.undo()
    serve(tuned_worker)
    assert seen == [1, 3, 1]  # the tests' own processes have one


def test_a_first_job_that_is_tuned_leaves_the_next_its_own_threads(
    tuned_worker: jobs.Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips._usual_threads.cache_clear()  # as in a fresh process
    seen: list[int] = []
    monkeypatch.setattr(
        generate, "denoise", lambda *_: seen.append(torch.get_num_threads()) or 1 / 0
    )
    machine = tuned_worker.hardware.name
    tuned_worker.tuning.add(
        calibrate.Calibration(MODEL, machine, version("torch"), "", "", (), Tuned(threads=3))
    )
    for _ in range(2):
        jobs.run({"id": "job-1", "input": QUICK}, tuned_worker, Control())
        tuned_worker.tuning.undo()
    assert seen == [3, 1]


def test_a_cancel_ends_the_measuring_amid_a_clip(
    worker: jobs.Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = Control()
    denoise = generate.denoise

    def canceled(*args: Any) -> Any:
        control.cancel()
        return denoise(*args)

    monkeypatch.setattr(generate, "denoise", canceled)
    with pytest.raises(Canceled):
        calibrate.run(worker, MODEL, control)


def test_a_clip_that_fails_ends_the_measuring_with_its_error(worker: jobs.Worker) -> None:
    with pytest.raises(UnexpectedError, match="MODEL_UNAVAILABLE"):
        calibrate.run(worker, "wan2.2-t2v-a14b", Control())
