"""The catalog's sizes are those of the real classes, and add up to an image that fits."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from wan_worker.catalog.components import CLIP, ENHANCER, UMT5, VAE_2_1, VAE_2_2
from wan_worker.catalog.models import MODELS, components_of, repositories_of, stored_bytes

T2V, I2V = "wan2.1-t2v-1.3b", "wan2.1-i2v-14b-480p"


def test_the_two_model_image_bakes_at_most_50_gb_where_the_repositories_would_take_119() -> None:
    assert stored_bytes([T2V, I2V]) <= 50e9
    as_they_are = MODELS[T2V].repository_bytes + MODELS[I2V].repository_bytes
    assert as_they_are == pytest.approx(119e9, rel=0.01)
    shared = stored_bytes([T2V]) + stored_bytes([I2V]) - stored_bytes([T2V, I2V])
    assert shared == sum(c.stored_bytes for c in components_of([T2V]) if c.role != "transformer")


def test_a_components_own_source_is_asked_first_and_every_holder_counts() -> None:
    assert repositories_of(UMT5)[0] == UMT5.repository
    others = {m.repository for m in MODELS.values() if VAE_2_2 not in m.components}
    assert set(repositories_of(VAE_2_1)) == others
    assert len(others) == len(MODELS) - 1


@pytest.mark.parametrize("model_id", MODELS)
def test_a_repository_holds_its_components_and_the_text_encoder_once(model_id: str) -> None:
    model = MODELS[model_id]
    parts = sum(component.hub_bytes for component in model.components)
    # Some of Wan 2.1's repositories hold the encoder in fp32.
    assert any(
        model.repository_bytes == pytest.approx(parts + wider, rel=0.005)
        for wider in (0, UMT5.hub_bytes)
    )


@pytest.mark.parametrize("model_id", MODELS)
def test_a_models_numbers_fit_together(model_id: str) -> None:
    model = MODELS[model_id]
    width, height = model.default_size
    assert model.min_pixels <= width * height <= model.max_pixels
    assert width % model.grid == height % model.grid == 0
    assert model.native_frames % model.temporal_stride == 1 == model.max_frames % 4
    assert model.text_pipeline or model.image_pipeline
    assert (model.image_pipeline is None) == (model.image == "none")
    assert model.two_experts == (model.guidance_scale_2 is not None)
    assert model.two_experts == any(c.role == "transformer_2" for c in model.components)


@pytest.mark.parametrize("model_id", MODELS)
def test_what_is_published_beside_a_model_is_the_models_own(model_id: str) -> None:
    model = MODELS[model_id]
    assert all(name.startswith(f"{model_id}.turbo") for name in model.turbo_names)
    assert [m.id for m in MODELS.values() if m.title == model.title] == [model_id]


@pytest.fixture
def meta() -> Iterator[None]:
    """Modules are built without memory for their weights."""
    from accelerate import init_empty_weights

    with init_empty_weights(), contextlib.suppress(Warning):
        yield


def parameters(module: Any) -> dict[str, int]:
    return {name: parameter.numel() for name, parameter in module.named_parameters()}


@pytest.mark.parametrize("model_id", MODELS)
def test_a_transformers_size_is_that_of_its_class(meta: None, model_id: str) -> None:
    import diffusers

    model = MODELS[model_id]
    parts = [c for c in model.components if c.role.startswith("transformer")]
    assert len(parts) == 1 + model.two_experts
    for component in parts:
        cls = getattr(diffusers, component.class_name.removeprefix("diffusers:"))
        counted = parameters(cls(**model.config.arguments()))
        kept = set(cls._keep_in_fp32_modules)
        wide = sum(n for name, n in counted.items() if kept & set(name.split(".")))
        total = sum(counted.values())
        assert component.hub_bytes == total * 4 - 2 * vaces_own(counted)
        assert component.stored_bytes == (total - wide) * 2 + wide * 4


def vaces_own(counted: dict[str, int]) -> int:
    """Parameters beside the text-to-video model's, which VACE's repository holds in bf16."""
    return sum(n for name, n in counted.items() if name.startswith("vace_"))


def test_the_shared_components_sizes_are_those_of_their_classes(meta: None) -> None:
    from diffusers import AutoencoderKLWan
    from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

    assert VAE_2_1.stored_bytes == 4 * sum(parameters(AutoencoderKLWan()).values())
    of_the_5b = AutoencoderKLWan(
        base_dim=160,
        decoder_base_dim=256,
        z_dim=48,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
    )
    assert VAE_2_2.stored_bytes == 4 * sum(parameters(of_the_5b).values())
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


def test_the_language_models_size_is_that_of_its_class(meta: None) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    }
    weigh = 2 * sum(parameters(Qwen2ForCausalLM(Qwen2Config(**shape))).values())
    assert weigh < ENHANCER.stored_bytes < weigh + 20e6  # and its tokenizer
    assert ENHANCER.hub_bytes == ENHANCER.stored_bytes
