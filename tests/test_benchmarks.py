"""What the benchmarks compute is right, and the one that needs a GPU runs without one."""

import json
from pathlib import Path

import pytest
from benchmarks import gpu, polling

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


def test_toy_figures_never_land_beside_measured_ones() -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--toy"])


def test_the_polling_benchmark_watches_a_real_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "JOB", polling.JOB | {"num_inference_steps": 20})
    report = polling.measure(1)
    assert report["watched_to_alone"] > 0
    assert report["replies_per_second"] > 0
    for way in ("alone", "watched"):
        seconds = report["seconds"][way]
        assert 0 < seconds["denoise"] < seconds["job"]
