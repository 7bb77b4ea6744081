"""A job may be cancelled, or run out of time, in every stage that it goes through."""

import tempfile
import threading
from pathlib import Path

import pytest

from tests.builders.answers import sha256_of
from tests.builders.pictures import picture
from tests.conftest import QUICK, error_of
from wan_worker import job as jobs
from wan_worker import scratch
from wan_worker.timing.progress import Control

REQUEST = QUICK | {"image_url": picture(), "enhance_prompt": True, "upscale": 2}
STAGES = ("plan", "fetch", "queue", "load", "prompt", "denoise", "decode_encode", "check", "upload")


class EndsIn(Control):
    """Cancelled, or late, as soon as it has entered a stage; keeps the stages that it saw."""

    def __init__(self, stage: str = "", *, late: bool = False) -> None:
        self._now = 0.0
        super().__init__(100, clock=lambda: self._now)
        self.stages: list[str] = []
        self._ends_in, self._ends_late = stage, late

    def enter(self, stage: str) -> None:
        super().enter(stage)
        self.stages.append(stage)
        if stage == self._ends_in and self._ends_late:
            self._now = 101.0
        elif stage == self._ends_in:
            self.cancel()


@pytest.fixture
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_these_are_the_stages_of_a_job(worker: jobs.Worker) -> None:
    control = EndsIn()
    assert "error" not in jobs.run({"id": "a", "input": REQUEST}, worker, control)
    assert set(control.stages) == set(STAGES)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("late", [False, True], ids=["cancel", "deadline"])
def test_a_job_ends_in_the_stage_in_which_it_was_stopped(
    worker: jobs.Worker, temp: Path, stage: str, late: bool
) -> None:
    answer = jobs.run({"id": "s", "input": REQUEST}, worker, EndsIn(stage, late=late))
    error = error_of(answer)
    assert (error["code"], error["stage"]) == ("DEADLINE" if late else "CANCELED", stage)
    assert stage in error["message"]
    assert "refresh_worker" not in answer
    assert list(temp.glob(f"{scratch.PREFIX}*")) == []
    assert not worker.gpu.locked()
    assert [t.name for t in threading.enumerate() if t.name.startswith("read-ahead")] == []
    # What was finished before is saved for a late job; nobody waits for a cancelled one.
    kept = [path.name for path in worker.settings.output_dir.rglob("*") if path.is_file()]
    assert sorted(kept) == (["0.mp4", "manifest.json"] if late and stage == "upload" else [])


def test_a_job_after_many_that_were_stopped_is_as_if_they_had_not_been(worker: jobs.Worker) -> None:
    before = sha256_of(jobs.run({"id": "b", "input": REQUEST}, worker, Control()))
    for stage in STAGES:
        jobs.run({"id": "s", "input": REQUEST}, worker, EndsIn(stage))
    assert sha256_of(jobs.run({"id": "c", "input": REQUEST}, worker, Control())) == before
