"""What the benchmarks compute is right, and the one that needs a GPU runs without one."""

import json
import re
from pathlib import Path

import pytest
from benchmarks import gpu, roofline

from wan_worker.activations import SHAPES, Shape
from wan_worker.catalog import MODELS

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("with_picture", [False, True], ids=["text", "picture"])
def test_the_transformers_arithmetic_is_what_torch_counts(with_picture: bool) -> None:
    import torch
    from diffusers import WanTransformer3DModel
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    shape = Shape(dim=64, ffn=160, layers=2)
    picture = {"image_dim": 32, "added_kv_proj_dim": 64} if with_picture else {}
    sizes = {"num_attention_heads": 2, "attention_head_dim": 32, "ffn_dim": 160, "num_layers": 2}
    model = WanTransformer3DModel(**sizes, text_dim=48, **picture)
    given = {"encoder_hidden_states_image": torch.zeros(1, 17, 32)} if with_picture else {}
    # The counter knows no fused attention of the CPU.
    plain = sdpa_kernel(SDPBackend.MATH)
    with plain, FlopCounterMode(display=False) as counter, torch.no_grad():
        model(
            torch.zeros(1, 16, 3, 8, 12),
            timestep=torch.zeros(1),
            encoder_hidden_states=torch.zeros(1, 512, 48),
            return_dict=False,
            **given,
        )
    counted = counter.get_flop_counts()
    blocks = sum(
        sum(counted[name].values()) for name in counted if re.search(r"\.blocks\.\d+$", name)
    )
    assert roofline.forward_flops(shape, 3 * 4 * 6, 17 if with_picture else 0) == blocks


@pytest.mark.parametrize(
    ("model", "teraflops"),
    [("wan2.1-t2v-1.3b", 283), ("wan2.1-i2v-14b-480p", 1678), ("wan2.1-t2v-14b", 6523)],
)
def test_full_size_forwards_come_to_the_published_magnitudes(model: str, teraflops: int) -> None:
    found = MODELS[model]
    tokens = roofline.tokens(found, found.default_size, found.native_frames)
    assert roofline.forward_flops(SHAPES[model], tokens) / 1e12 == pytest.approx(
        teraflops, rel=0.005
    )


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989.4),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L40S", 362.1),
        ("NVIDIA L4", 121.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
    ],
)
def test_a_card_is_known_by_its_drivers_name(name: str, peak: float) -> None:
    found = roofline.peak_of(name)
    assert found is not None
    assert found[0] == peak


def test_an_unknown_card_has_no_peak() -> None:
    assert roofline.peak_of("Some GPU of 2031") is None


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
