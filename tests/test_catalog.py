"""The catalog's sizes are those of the real classes, and add up to an image that fits."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from wan_worker.catalog import (
    CLIP,
    MODELS,
    UMT5,
    VAE_2_1,
    Component,
    components_of,
    repositories_of,
    stored_bytes,
)

T2V, I2V = "wan2.1-t2v-1.3b", "wan2.1-i2v-14b-480p"


def test_the_two_model_image_bakes_at_most_50_gb_where_the_repositories_would_take_119() -> None:
    assert stored_bytes([T2V, I2V]) <= 50e9
    as_they_are = MODELS[T2V].repository_bytes + MODELS[I2V].repository_bytes
    assert as_they_are == pytest.approx(119e9, rel=0.01)
    shared = stored_bytes([T2V]) + stored_bytes([I2V]) - stored_bytes([T2V, I2V])
    assert shared == sum(c.stored_bytes for c in components_of([T2V]) if c.role != "transformer")


def test_a_components_own_source_is_asked_first_and_every_holder_counts() -> None:
    assert repositories_of(UMT5)[0] == UMT5.repository
    assert set(repositories_of(VAE_2_1)) == {m.repository for m in MODELS.values()}


@pytest.fixture
def meta() -> Iterator[None]:
    """Modules are built without memory for their weights."""
    from accelerate import init_empty_weights

    with init_empty_weights(), contextlib.suppress(Warning):
        yield


def parameters(module: Any) -> dict[str, int]:
    return {name: parameter.numel() for name, parameter in module.named_parameters()}


@pytest.mark.parametrize(
    ("model_id", "shape"),
    [
        (T2V, {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30, "in_channels": 16}),
        (
            I2V,
            {
                "num_attention_heads": 40,
                "ffn_dim": 13824,
                "num_layers": 40,
                "in_channels": 36,
                "image_dim": 1280,
                "added_kv_proj_dim": 5120,
            },
        ),
    ],
)
def test_a_transformers_size_is_that_of_its_class(
    meta: None, model_id: str, shape: dict[str, int]
) -> None:
    from diffusers import WanTransformer3DModel

    counted = parameters(
        WanTransformer3DModel(attention_head_dim=128, out_channels=16, text_dim=4096, **shape)
    )
    kept = set(WanTransformer3DModel._keep_in_fp32_modules)
    wide = sum(n for name, n in counted.items() if kept & set(name.split(".")))
    total = sum(counted.values())
    component = transformer(model_id)
    assert component.hub_bytes == total * 4
    assert component.stored_bytes == (total - wide) * 2 + wide * 4


def transformer(model_id: str) -> Component:
    return next(c for c in MODELS[model_id].components if c.role == "transformer")


def test_the_shared_components_sizes_are_those_of_their_classes(meta: None) -> None:
    from diffusers import AutoencoderKLWan
    from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

    assert VAE_2_1.stored_bytes == 4 * sum(parameters(AutoencoderKLWan()).values())
    clip = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=1280,
            intermediate_size=5120,
            num_hidden_layers=32,
            num_attention_heads=16,
            patch_size=14,
            image_size=224,
        )
    )
    assert CLIP.stored_bytes == 2 * sum(parameters(clip).values())
    umt5 = UMT5EncoderModel(
        UMT5Config(
            d_model=4096,
            d_ff=10240,
            num_layers=24,
            num_heads=64,
            d_kv=64,
            vocab_size=256384,
            feed_forward_proj="gated-gelu",
        )
    )
    counted = parameters(umt5)
    counted.pop("encoder.embed_tokens.weight", None)  # the same tensor as shared.weight
    assert UMT5.stored_bytes == 2 * sum(counted.values())
