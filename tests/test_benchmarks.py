"""What the benchmarks compute is right, and the one that needs a GPU runs without one."""

import json
from pathlib import Path

import pytest
from benchmarks import gpu, gpu_levers, levers, polling

from wan_worker.pipelines import compiling

ROOT = Path(__file__).resolve().parents[1]


def test_the_gpu_benchmark_runs_end_to_end_at_toy_size(tmp_path: Path) -> None:
    target = tmp_path / "toy.json"
    assert gpu.main(["--toy", "--rounds", "1", "--json", str(target)]) == 0
    report = json.loads(target.read_text())
    assert report["toy"] is True
    assert report["matmul_tflops"] > 0
    assert set(report["models"]) == set(gpu.DEFAULT)
    for model in report["models"].values():
        for way in ("ours", "stock"):
            seconds = model["seconds"][way]
            stages = ("prompt", "forward", "step", "decode", "outside")
            assert all(seconds[stage] > 0 for stage in stages)
            assert seconds["step"] > seconds["forward"]


def test_every_way_is_a_row_and_a_second_run_adds_what_the_first_did_not_get_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "BACKEND", compiling.BACKEND)  # put back: toy changes it
    target = tmp_path / "toy.json"
    run = ["--toy", "--models", "wan2.1-t2v-1.3b", "--json", str(target)]
    assert gpu_levers.main([*run, "--budget", "0"]) == 0
    assert not target.exists()
    assert gpu_levers.main(run) == 0
    rows = json.loads(target.read_text())["rows"]
    clip, decode, image = rows.values()
    for part in (clip, image):
        assert {f"attention {name}" for name in gpu_levers.KERNELS} < set(part)
        assert {"compiled", "fused projections", "as planned"} < set(part)
        for found in part.values():
            assert "failed" in found or (found["step"] > 0 and found["relative_difference"] < 1e-4)
    assert clip["attention _native_cudnn"] == {"failed": "RuntimeError"}
    assert image["guidance together"]["step"] > 0
    assert set(decode) == set(gpu_levers.DECODES)
    assert not any("failed" in found for found in decode.values())
    assert decode["bf16"]["relative_difference"] > decode["fp32"]["relative_difference"]
    before = target.read_text()
    assert gpu_levers.main([*run, "--budget", "0"]) == 0
    assert target.read_text() == before


def test_the_encoders_two_ways_are_rows_of_image_to_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "BACKEND", compiling.BACKEND)
    monkeypatch.setattr(gpu_levers, "decode_rows", lambda *_: None)
    target = tmp_path / "toy.json"
    model = "wan2.1-i2v-14b-480p"
    assert gpu_levers.main(["--toy", "--models", model, "--json", str(target)]) == 0
    parts = json.loads(target.read_text())["rows"]
    for said in ("a picture and grey", "a moving clip"):
        part = parts[f"{model}: encode {said}"]
        assert set(part) == {"diffusers' own", "frame by frame"}
        assert part["frame by frame"]["encode"] > 0
        assert part["frame by frame"]["relative_difference"] < 1e-4


def test_ways_are_compared_on_a_cpu_too(tmp_path: Path) -> None:
    target = tmp_path / "toy.json"
    assert levers.main(["--toy", "--rounds", "1", "--json", str(target)]) == 0
    report = json.loads(target.read_text())
    for found in [*report["decoders"].values(), *report["encoders"]]:
        assert found["largest_difference"]["ours"] < 1e-4
    for image in report["images"].values():
        assert image["equal_to_the_bit"]["fused"]
        assert image["largest_difference"]["together"] < 1e-5
    for script in (levers, gpu_levers):
        with pytest.raises(SystemExit):
            script.main(["--toy"])


def test_toy_figures_never_land_beside_measured_ones() -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--toy"])


def test_the_polling_benchmark_watches_a_real_job(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"size": "64x48", "num_frames": 5, "num_inference_steps": 40}
    monkeypatch.setattr(polling, "JOB", polling.JOB | small)
    report = polling.measure(1)
    assert report["watched_to_alone"] > 0
    assert report["replies_per_second"] > 0
    for way in ("alone", "watched"):
        seconds = report["seconds"][way]
        assert 0 < seconds["denoise"] < seconds["job"]
