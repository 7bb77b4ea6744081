"""Weights in eight bits: which they are, how near to the exact ones, and how many bytes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel, WanVACETransformer3DModel

from wan_worker.catalog.models import MODELS
from wan_worker.pipelines import quantize
from wan_worker.pipelines.quantize import stored_bytes
from wan_worker.planning import memory
from wan_worker.settings import WeightType

KINDS: tuple[WeightType, ...] = ("fp8", "int8")


@pytest.fixture
def transformer(models_dir: Path) -> Any:
    folder = models_dir / "wan2.1-t2v-1.3b.transformer"
    return WanTransformer3DModel.from_pretrained(folder).eval().requires_grad_(False)


def forward(transformer: Any, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    latents = torch.randn(1, 16, 2, 6, 8, generator=random)
    text = torch.randn(1, 8, transformer.config.text_dim, generator=random)
    with torch.no_grad():
        out: torch.Tensor = transformer(latents, torch.tensor([500]), text, return_dict=False)[0]
    return out


def narrowed(transformer: Any) -> set[str]:
    """Names of the layers whose weights are in eight bits."""
    return {
        name
        for name, module in transformer.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv3d)
        and module.weight.dtype in (torch.int8, torch.float8_e4m3fn)
    }


@pytest.mark.parametrize(("kind", "error"), [("fp8", 0.03), ("int8", 0.01)])
def test_a_forward_with_narrow_weights_is_near_the_exact_one(
    transformer: Any, kind: WeightType, error: float
) -> None:
    exact = forward(transformer)
    quantize.narrow(transformer, kind)
    off = forward(transformer) - exact
    assert 0 < off.norm() < error * exact.norm()


@pytest.mark.parametrize("cls", [WanTransformer3DModel, WanVACETransformer3DModel])
def test_both_kinds_narrow_every_linear_layer_of_the_blocks_and_no_other(cls: Any) -> None:
    found = {}
    for kind in KINDS:
        vace = {"vace_layers": [0, 2]} if cls is WanVACETransformer3DModel else {}
        made = cls(num_attention_heads=2, attention_head_dim=12, ffn_dim=32, num_layers=3,
                   image_dim=16, added_kv_proj_dim=24, **vace)  # fmt: skip
        linears = {n for n, m in made.named_modules() if isinstance(m, torch.nn.Linear)}
        quantize.narrow(made, kind)
        found[kind] = narrowed(made)
    blocks = {name for name in linears if name.startswith(("blocks.", "vace_blocks."))}
    assert found["fp8"] == found["int8"] == blocks
    assert {"proj_out", "condition_embedder.time_proj"} <= linears - blocks


def test_what_is_too_delicate_for_int8_stays_the_same_object(transformer: Any) -> None:
    before = dict(transformer.named_modules())
    weights = {n: (p, p.clone()) for n, p in transformer.named_parameters()}
    quantize.narrow(transformer, "int8")
    narrow = narrowed(transformer)
    for name, module in transformer.named_modules():
        assert (module is before[name]) == (name not in narrow)
    for name, weight in transformer.named_parameters():
        if name.removesuffix(".weight") not in narrow and not name.endswith(".scale"):
            assert weight is weights[name][0]
            assert torch.equal(weight, weights[name][1])
    assert not any(module.training for module in transformer.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_int8_weight_is_off_by_more_than_half_a_step(dtype: torch.dtype) -> None:
    linear = torch.nn.Linear(64, 48).to(dtype).requires_grad_(False)
    linear.weight[3] *= 1000  # a wide row takes nothing from the others
    linear.weight[4] = 0
    exact = linear.weight.float()
    layer = quantize._int8_linear()(linear)
    assert layer.weight.dtype == torch.int8
    assert layer.scale.dtype == dtype
    step = layer.scale.float()
    torch.testing.assert_close(step.flatten(), exact.abs().amax(1) / 127, rtol=0.005, atol=1e-30)
    off = (layer.weight.float() * step - exact).abs()
    # A row's widest weight may lie past 127 steps by what the scale was rounded down by.
    assert bool((off <= step * 0.76).all())
    assert off.mean() <= (step * 0.3).mean()
    assert not layer.weight[4].any()
    x = torch.randn(5, 64, dtype=dtype)
    expected = torch.nn.functional.linear(x, (layer.weight * layer.scale), linear.bias)
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model_id", MODELS)
def test_the_planned_bytes_are_those_of_the_narrow_class(
    monkeypatch: pytest.MonkeyPatch, model_id: str, kind: WeightType
) -> None:
    import diffusers

    monkeypatch.setattr(quantize, "ROWS", 10**6)  # no caches to fit: nothing is computed on meta
    model = MODELS[model_id]
    planned = memory.weight_bytes(model, {c.name: c.stored_bytes for c in model.components}, kind)
    for component in model.components:
        if not component.role.startswith("transformer"):
            assert planned[component.role] == component.stored_bytes
    assert planned.get("transformer_2", planned["transformer"]) == planned["transformer"]
    (component,) = (c for c in model.components if c.role == "transformer")
    cls = getattr(diffusers, component.class_name.removeprefix("diffusers:"))
    with torch.device("meta"):
        made = cls(**model.config.arguments()).bfloat16()
    for name, weight in made.named_parameters():
        if set(cls._keep_in_fp32_modules) & set(name.split(".")):
            weight.data = weight.data.float()
    assert stored_bytes(made) == component.stored_bytes
    # A list's first block may have more than the others, which are alike: of those one is narrowed.
    lists = [name for name in quantize.BLOCKS if hasattr(made, name)]
    alike = {name: len(getattr(made, name)) - 2 for name in lists}
    counted = stored_bytes(made)
    for name in lists:
        setattr(made, name, getattr(made, name)[:2])
    before = {name: [stored_bytes(block) for block in getattr(made, name)] for name in lists}
    quantize.narrow(made, kind)
    for name in lists:
        first, second = (
            wide - stored_bytes(block)
            for wide, block in zip(before[name], getattr(made, name), strict=True)
        )
        counted -= first + second * (1 + alike[name])
    # A model of a few megabytes has more than 2 % beside its blocks: what reads a picture, 4 MB.
    assert counted <= planned["transformer"] <= max(1.02 * counted, counted + 4e6)
