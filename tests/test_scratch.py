"""A job's folder is its own, and a killed worker's is gone at the next start."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from wan_worker import job as jobs
from wan_worker import scratch
from wan_worker.settings import Settings


@pytest.fixture(autouse=True)
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path


def test_a_folder_is_gone_with_its_files_when_its_job_is(temp: Path) -> None:
    with scratch.folder() as one, scratch.folder() as other:
        (one / "0.mp4").write_bytes(b"x")
        assert one != other
        assert one.parent == temp
    assert list(temp.iterdir()) == []


def test_the_folder_goes_when_the_job_fails(temp: Path) -> None:
    with pytest.raises(RuntimeError), scratch.folder() as folder:
        (folder / "0.mp4").write_bytes(b"x")
        raise RuntimeError
    assert list(temp.iterdir()) == []


def test_what_a_killed_worker_left_is_removed_and_what_a_living_one_uses_stays(temp: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as living:
        shown = subprocess.run(
            [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
        )
        gone = shown.stdout.strip()
        names = [f"wan-job-{n}-abc_1" for n in (living.pid, gone, os.getpid())]
        for name in (*names, "wan-job-notes", "other-1-abc"):
            (temp / name).mkdir()
            (temp / name / "0.mp4").write_bytes(b"x")
        scratch.sweep()
        left = {path.name for path in temp.iterdir()}
        living.communicate()
    assert left == {names[0], "wan-job-notes", "other-1-abc"}


def test_a_link_with_such_a_name_is_not_followed(temp: Path) -> None:
    precious = temp / "precious"
    precious.mkdir()
    (precious / "file").write_text("x")
    (temp / f"wan-job-{os.getpid()}-link").symlink_to(precious)
    scratch.sweep()
    assert (precious / "file").exists()


def test_another_worker_in_the_process_leaves_a_running_jobs_folder(
    models_dir: Path, tmp_path: Path
) -> None:
    with scratch.folder() as running:
        jobs.make_worker(Settings(models_dir=models_dir, output_dir=tmp_path))
        assert running.is_dir()
