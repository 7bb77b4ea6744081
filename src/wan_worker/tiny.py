"""Toy weights of every real class and component name, for machines without a GPU.

Dimensions are as small as the classes allow; names, roles and the VAE's strides (8x space, 4x time)
are the real ones, so every code path runs on them. Deterministic to the byte.
Not covered: a picture that means something.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from wan_worker.catalog import MODELS, Component, components_of
from wan_worker.weights import TINY, read_manifest, seal

TEXT_DIM: Final = 32
HEADS: Final = 2
HEAD_DIM: Final = 24
CLIP_PIXELS: Final = 32


def write(
    models_dir: Path,
    model_ids: Iterable[str] = tuple(MODELS),
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Write toy weights of every real class and component name, deterministic to the byte.

    They make a picture of nothing, in the time that a laptop has: every code path runs on them.
    A component that is already there stays as it is.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    models_dir.mkdir(parents=True, exist_ok=True)
    for component in components_of(list(model_ids)):
        target = models_dir / component.name
        if read_manifest(target) is not None:
            report(f"{component.name}: already there")
            continue
        partial = models_dir / f"{component.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        _WRITERS[component.role](partial, component)
        seal(partial, target, component, TINY)
        report(f"{component.name}: written")


def _seeded(component: Component) -> ExitStack:
    """Fix torch's global generator for one component, and give it back as it was."""
    import torch

    stack = ExitStack()
    stack.enter_context(torch.random.fork_rng(devices=[]))
    torch.manual_seed(int.from_bytes(hashlib.sha256(component.name.encode()).digest()[:4], "big"))
    return stack


def _tokenizer(folder: Path, component: Component) -> None:
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
    from tokenizers.models import Unigram
    from transformers import T5TokenizerFast

    # Letters score alike and bytes catch the rest, so that any text has tokens.
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    letters = [(chr(code), -4.0) for code in range(0x21, 0x7F)] + [("▁", -2.0)]
    raw_bytes = [(f"<0x{byte:02X}>", -8.0) for byte in range(256)]
    tokenizer = Tokenizer(Unigram([*special, *letters, *raw_bytes], unk_id=2, byte_fallback=True))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    T5TokenizerFast(
        tokenizer_object=tokenizer,
        extra_ids=0,
        model_max_length=512,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
    ).save_pretrained(folder)


def _text_encoder(folder: Path, component: Component) -> None:
    from transformers import UMT5Config, UMT5EncoderModel

    with _seeded(component):
        UMT5EncoderModel(
            UMT5Config(
                vocab_size=384,
                d_model=TEXT_DIM,
                d_kv=16,
                d_ff=64,
                num_layers=2,
                num_heads=2,
                feed_forward_proj="gated-gelu",
            )
        ).save_pretrained(folder)


def _vae(folder: Path, component: Component) -> None:
    from diffusers import AutoencoderKLWan

    with _seeded(component):
        AutoencoderKLWan(
            base_dim=4,
            z_dim=16,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
        ).save_pretrained(folder)


def _image_processor(folder: Path, component: Component) -> None:
    from transformers import CLIPImageProcessorPil

    side = CLIP_PIXELS
    CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    ).save_pretrained(folder)


def _image_encoder(folder: Path, component: Component) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    with _seeded(component):
        CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=TEXT_DIM,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=CLIP_PIXELS,
                patch_size=8,
            )
        ).save_pretrained(folder)


def _transformer(folder: Path, component: Component) -> None:
    from diffusers import WanTransformer3DModel

    needs_image = any(
        component in model.components and model.needs_image for model in MODELS.values()
    )
    image: dict[str, Any] = {}
    if needs_image:
        image = {
            "in_channels": 36,  # 16 latents, 16 of the image, 4 of the mask
            "image_dim": TEXT_DIM,
            "added_kv_proj_dim": HEADS * HEAD_DIM,
        }
    with _seeded(component):
        WanTransformer3DModel(
            **(
                {
                    "num_attention_heads": HEADS,
                    "attention_head_dim": HEAD_DIM,
                    "in_channels": 16,
                    "out_channels": 16,
                    "text_dim": TEXT_DIM,
                    "freq_dim": 32,
                    "ffn_dim": 64,
                    "num_layers": 2,
                }
                | image
            )
        ).save_pretrained(folder)


_WRITERS: Final[Mapping[str, Callable[[Path, Component], None]]] = {
    "tokenizer": _tokenizer,
    "text_encoder": _text_encoder,
    "vae": _vae,
    "image_processor": _image_processor,
    "image_encoder": _image_encoder,
    "transformer": _transformer,
}
