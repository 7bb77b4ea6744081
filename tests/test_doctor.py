"""What is wrong with a machine is said at once, all of it, with what to do."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import handler
import pytest

from wan_worker import doctor
from wan_worker.catalog.models import MODELS, Installed
from wan_worker.delivery import s3
from wan_worker.doctor import Finding
from wan_worker.errors import ConfigInvalid, StorageFailed
from wan_worker.machine import hardware
from wan_worker.machine.hardware import Hardware
from wan_worker.media import encode
from wan_worker.settings import Bucket, Secret, Settings
from wan_worker.weights import store as weights

ROOT = Path(__file__).resolve().parents[1]
CPU = Hardware("cpu", "CPU", 64 * 10**9, None, "nvidia-smi is absent")
SMALL = "wan2.1-t2v-1.3b"


def gpu(gib: int) -> Hardware:
    return Hardware("cuda", f"GPU {gib}", gib * 1024**3, (9, 0), "listed", ram_bytes=64 * 1024**3)


@pytest.fixture
def settings(models_dir: Path, tmp_path: Path) -> Settings:
    return Settings(models_dir=models_dir, output_dir=tmp_path / "outputs")


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the full-size models were installed."""
    here = {
        name: Installed({c.name: c.stored_bytes for c in MODELS[name].components}, tiny=False)
        for name in (SMALL, "wan2.2-t2v-a14b")
    }
    monkeypatch.setattr(weights, "installed", lambda *_: here)


def about(subject: str, settings: Settings, machine: Hardware = CPU) -> list[Finding]:
    return [f for f in doctor.examine(settings, machine) if f.subject == subject]


def test_a_fit_machine_has_nothing_but_ok(settings: Settings) -> None:
    assert {finding.level for finding in doctor.examine(settings, CPU)} == {"ok"}
    assert {finding.level for finding in doctor.basics()} == {"ok"}


def test_the_module_prints_every_finding_and_says_so_by_its_status(
    models_dir: Path, tmp_path: Path
) -> None:
    def run(**env: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "wan_worker.doctor"],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "src")} | env,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.returncode, done.stdout

    status, said = run(MODELS_DIR=str(models_dir))
    assert status == 0
    assert "problem" not in said
    status, said = run(MODELS_DIR=str(tmp_path / "none"), DEFAULT_MODEL="wan-9")
    assert status == 1
    assert len(re.findall("^problem ", said, re.MULTILINE)) == 2
    assert "download_weights.py --models" in said
    status, said = run(STEPS="abc", WORKER_CONCURRENCY="many", URL_EXPIRY_SECONDS="soon")
    assert status == 1
    assert "WORKER_CONCURRENCY" in said
    assert "URL_EXPIRY_SECONDS" in said
    assert "ok      ffmpeg" in said


def test_broken_schemas_and_a_missing_encoder_are_both_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken() -> Any:
        raise ConfigInvalid("schemas/request.schema.json is not valid JSON")

    def absent() -> str:
        raise ConfigInvalid("ffmpeg was built without libx264")

    monkeypatch.setattr(doctor.schema, "load", broken)
    monkeypatch.setattr(encode, "find_ffmpeg", absent)
    assert [(f.subject, f.level) for f in doctor.basics()] == [
        ("schemas", "problem"),
        ("ffmpeg", "problem"),
    ]


# --- Weights ---


def test_no_model_at_all_is_a_problem_with_the_command(settings: Settings, tmp_path: Path) -> None:
    (finding,) = about("weights", replace(settings, models_dir=tmp_path / "none"))
    assert finding.level == "problem"
    assert "python download_weights.py --models" in finding.said


def test_a_component_that_was_cut_short_is_named(models_dir: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(models_dir, store)
    file = next((store / "wan2.1-vae").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:1000])
    findings = about("weights", Settings(models_dir=store, output_dir=tmp_path))
    assert findings[0].level == "problem"
    assert "wan2.1-vae" in findings[0].said


@pytest.mark.parametrize(
    ("name", "said"),
    [("wan-9", "must be one of"), ("wan2.2-i2v-a14b", "download_weights.py --models wan2.2-i2v")],
)
def test_a_default_model_that_is_not_there_is_a_problem(
    models_dir: Path, tmp_path: Path, name: str, said: str
) -> None:
    store = tmp_path / "store"
    shutil.copytree(models_dir, store)
    for component in MODELS["wan2.2-i2v-a14b"].components:
        if "transformer" in component.role:
            shutil.rmtree(store / component.name, ignore_errors=True)
    here = Settings(models_dir=store, output_dir=tmp_path, default_model=name)
    (finding,) = about("DEFAULT_MODEL", here)
    assert (finding.level, said in finding.said) == ("problem", True)


def test_a_model_to_preload_is_told_where_it_is_unknown_or_absent(
    settings: Settings, tmp_path: Path
) -> None:
    asked = replace(settings, models_dir=tmp_path / "none", preload_models=("wan-9", SMALL))
    unknown, absent = about("PRELOAD_MODELS", asked)
    assert (unknown.level, absent.level) == ("problem", "warning")
    assert f"download_weights.py --models {SMALL}" in absent.said


# --- GPU ---


@pytest.mark.parametrize(("on_platform", "level"), [(True, "problem"), (False, "warning")])
@pytest.mark.usefixtures("real")
def test_full_models_without_a_gpu_are_a_problem_where_it_is_paid_for(
    settings: Settings, on_platform: bool, level: str
) -> None:
    (finding,) = about("GPU", replace(settings, on_platform=on_platform))
    assert finding.level == level
    assert "nvidia-smi is absent; full-size models need one" in finding.said


def test_tiny_models_need_no_gpu(settings: Settings) -> None:
    (finding,) = about("GPU", replace(settings, on_platform=True))
    assert finding.level == "ok"


@pytest.mark.parametrize(
    ("gib", "default", "level"),
    [(80, None, "ok"), (12, None, "warning"), (12, "wan2.2-t2v-a14b", "problem")],
)
@pytest.mark.usefixtures("real")
def test_a_model_that_the_gpu_can_not_hold_is_told_and_is_a_problem_where_it_is_the_default(
    settings: Settings, gib: int, default: str | None, level: str
) -> None:
    placed = replace(settings, default_model=default)
    (finding,) = about("wan2.2-t2v-a14b", placed, gpu(gib))
    assert finding.level == level


# --- Folders, clock, bucket ---


def test_a_folder_that_can_not_be_written_to_is_a_problem(
    settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    (finding,) = about("OUTPUT_DIR", replace(settings, output_dir=tmp_path / "file" / "outputs"))
    assert finding.level == "problem"


def test_a_temp_folder_without_room_is_a_problem(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "LEAST_FREE_BYTES", 10**18)
    (finding,) = about("temp folder", settings)
    assert finding.level == "problem"
    assert tempfile.gettempdir() in finding.said
    assert "it needs" in finding.said


def test_a_clock_behind_the_workers_own_files_is_a_problem(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)
    (finding,) = about("clock", settings)
    assert finding.level == "problem"


BUCKET = Bucket("https://s3.example.com", Secret("id"), Secret("CANARY"), "assets", "us-east-1", "")


@pytest.mark.parametrize(("retryable", "level"), [(False, "problem"), (True, "warning")])
def test_a_bucket_that_refuses_is_a_problem_and_one_out_of_reach_a_warning(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, retryable: bool, level: str
) -> None:
    def fail(_: Bucket) -> float:
        raise StorageFailed("The bucket answered AccessDenied", retryable=retryable)

    monkeypatch.setattr(s3, "probe", fail)
    (finding,) = about("bucket", replace(settings, bucket=BUCKET))
    assert finding.level == level
    assert "CANARY" not in str(finding)


def test_a_clock_that_s3_would_refuse_is_told(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "probe", lambda _: -3600.0)
    findings = about("clock", replace(settings, bucket=BUCKET))
    assert [f.level for f in findings] == ["ok", "warning"]


# --- What RunPod's SDK asks ---


def test_the_fitness_check_raises_with_all_problems(settings: Settings, tmp_path: Path) -> None:
    handler.make_fitness_check(settings)()
    unfit = replace(settings, models_dir=tmp_path / "none", default_model="wan-9")
    with pytest.raises(RuntimeError) as caught:
        handler.make_fitness_check(unfit)()
    assert "must be one of" in str(caught.value)
    assert "no model in" in str(caught.value)


def test_it_asks_the_machine_that_it_runs_on(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Hardware] = []

    def listen(settings: Settings, machine: Hardware) -> list[Finding]:
        asked.append(machine)
        return []

    monkeypatch.setattr(doctor, "examine", listen)
    handler.make_fitness_check(settings)()
    assert asked == [hardware.detect()]
