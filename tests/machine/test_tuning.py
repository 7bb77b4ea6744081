"""What was measured on this machine is used on it, said, and can be undone."""

import logging
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest

from wan_worker.machine.hardware import Hardware, Tuned
from wan_worker.machine.tuning import FILE, KEPT, Calibration, Trial, Tuning

MODEL = "wan2.1-t2v-1.3b"
MACHINE = Hardware("cpu", "CPU, 4 cores", 64 * 10**9, None, "for a test")


def calibration(threads: int | None = 2, **changes: str) -> Calibration:
    made = Calibration(
        model=MODEL,
        machine=MACHINE.name,
        torch=version("torch"),
        date="2026-11-21T12:00:00+00:00",
        clip="128x96, 9 frames, 3 steps",
        trials=(Trial("as usual", 3.0), Trial("2 threads", 2.0)),
        tuned=Tuned(threads=threads),
    )
    return replace(made, **changes)


def threads(tuning: Tuning) -> int | None:
    return tuning.known(MACHINE).tuned.get(MODEL, Tuned()).threads


def test_without_a_file_nothing_is_tuned(tmp_path: Path) -> None:
    assert Tuning(tmp_path / "none").known(MACHINE) == MACHINE


def test_what_was_measured_is_known_to_whoever_reads_the_file(tmp_path: Path) -> None:
    one, other = Tuning(tmp_path), Tuning(tmp_path)
    assert threads(other) is None
    one.add(calibration())
    assert threads(one) == threads(other) == 2
    assert other.calibrations == (calibration(),)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_undoing_brings_back_what_was_before(tmp_path: Path) -> None:
    tuning = Tuning(tmp_path)
    tuning.add(calibration(2))
    tuning.add(calibration(1))
    assert threads(tuning) == 1
    assert tuning.undo() == calibration(1)
    assert threads(tuning) == 2
    assert tuning.undo() == calibration(2)
    assert threads(tuning) is None
    assert tuning.undo() is None


def test_a_calibration_that_found_nothing_faster_replaces_one_that_did(tmp_path: Path) -> None:
    tuning = Tuning(tmp_path)
    tuning.add(calibration(2))
    tuning.add(calibration(None))
    assert threads(tuning) is None


@pytest.mark.parametrize("changes", [{"machine": "NVIDIA H200"}, {"torch": "2.12.0"}])
def test_what_was_measured_elsewhere_is_not_used(tmp_path: Path, changes: dict[str, str]) -> None:
    tuning = Tuning(tmp_path)
    tuning.add(calibration(**changes))
    assert threads(tuning) is None


@pytest.mark.parametrize("body", ["", "{", "[]", '{"calibrations": [{"model": "x"}]}'])
def test_a_broken_file_tunes_nothing_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, body: str
) -> None:
    (tmp_path / FILE).write_text(body)
    with caplog.at_level(logging.WARNING):
        assert threads(Tuning(tmp_path)) is None
    assert "nothing is tuned" in caplog.text


def test_the_file_does_not_grow_for_ever(tmp_path: Path) -> None:
    tuning = Tuning(tmp_path)
    for _ in range(KEPT + 5):
        tuning.add(calibration())
    assert len(Tuning(tmp_path).calibrations) == KEPT


def test_a_gain_is_told_only_where_something_changed() -> None:
    assert calibration(2).gain == 1.5
    assert calibration(None).gain == 1.0
