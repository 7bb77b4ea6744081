"""The tiny Wan: weights of the real classes at toy size, for machines without a GPU.

The trained weights are in the repository (``weights/tiny``); ``training/`` makes them. They are a
text-to-video and an image-to-video transformer with their VAE and encoders. They draw coloured
shapes that move as the prompt says. A model of the same architecture gets a copy. A model with more
or fewer parts is built from them. The 5B has another VAE, so its weights are random and it draws
nothing. All are installed in the store like real weights, with the same bytes every time.
Not covered: training them, and pictures of anything else.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from wan_worker.catalog.components import ENHANCER, VAE_2_2, Component
from wan_worker.catalog.models import EXTRAS, MODELS, Model, components_of
from wan_worker.weights.store import LORAS, TINY, read_manifest, seal

if TYPE_CHECKING:
    import torch

    Tensors = dict[str, torch.Tensor]

TRAINED: Final = Path(__file__).resolve().parents[3] / "weights" / "tiny"
TAUGHT: Final = TRAINED.with_name("tiny-loras")
"""A LoRA that teaches the tiny text-to-video model the colour cyan (training/lora.py)."""
WEIGHTS: Final = "diffusion_pytorch_model.safetensors"

TEXT_TO_VIDEO: Final = "wan2.1-t2v-1.3b.transformer"
IMAGE_TO_VIDEO: Final = "wan2.1-i2v-14b-480p.transformer"

IMAGE_PARTS: Final = (".image_embedder.", ".add_k_proj.", ".add_v_proj.", ".norm_added_k.")
"""Layers that read the CLIP embedding in Wan 2.1's image-to-video. Wan 2.2 has none."""

LATENTS: Final = 16
"""Channels of the trained VAE's latents."""

CLIP_TOKENS: Final = 17
"""The picture's patches in the tiny CLIP, and the class token."""


def write(
    models_dir: Path,
    names: Iterable[str] = (*MODELS, *EXTRAS),
    report: Callable[[str], None] = lambda line: None,
    others: Iterable[Component] = (ENHANCER,),
) -> None:
    """Install the tiny components of these models, extras and others that are missing."""
    models_dir.mkdir(parents=True, exist_ok=True)
    for component in (*components_of(list(names)), *others):
        target = models_dir / component.name
        if read_manifest(target) is not None:
            report(f"{component.name}: already there")
            continue
        partial = models_dir / f"{component.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        make = _maker(component)
        if make is None:
            shutil.copytree(TRAINED / trained_as(component), partial)
        else:
            partial.mkdir()
            with _seeded(component.name):
                make(partial)
        seal(partial, target, component, TINY)
        report(f"{component.name}: written")
    if TAUGHT.is_dir():  # not in the image
        shutil.copytree(TAUGHT, models_dir / LORAS, dirs_exist_ok=True)
        report(f"{LORAS}: written")


def trained_as(component: Component) -> str:
    """The trained component of the same architecture."""
    if not component.role.startswith("transformer"):
        return component.name
    return IMAGE_TO_VIDEO if _model_of(component).config.image_dim else TEXT_TO_VIDEO


def _maker(component: Component) -> Callable[[Path], None] | None:
    """What puts a component together; None: it is a copy of a trained one."""
    if component.role == "turbo":
        return _turbo(component)
    if component == VAE_2_2:
        return _vae_2_2
    if not component.role.startswith("transformer"):
        return None
    model = _model_of(component)
    if VAE_2_2 in model.parts:
        return _transformer_2_2(model)
    if model.config.vace_layers:
        return _vace
    if model.config.pos_embed_seq_len:
        return _first_and_last_frame
    if model.image == "required" and not model.config.image_dim:
        return _first_frame_only
    return None


def _model_of(component: Component) -> Model:
    return next(model for model in MODELS.values() if component in model.components)


def _seeded(name: str) -> ExitStack:
    """Seed torch's global generator for one component, and restore it afterwards."""
    import torch

    stack = ExitStack()
    stack.enter_context(torch.random.fork_rng(devices=[]))
    torch.manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big"))
    return stack


def _first_frame_only(folder: Path) -> None:
    """Wan 2.2's image-to-video: it sees the first frame as latents, not through CLIP."""
    config, tensors = _trained(IMAGE_TO_VIDEO)
    kept = {n: t for n, t in tensors.items() if not any(part in n for part in IMAGE_PARTS)}
    _save(folder, config | {"image_dim": None, "added_kv_proj_dim": None}, kept)


def _first_and_last_frame(folder: Path) -> None:
    """FLF2V: two pictures go through CLIP; a position embedding tells them apart."""
    import torch

    config, tensors = _trained(IMAGE_TO_VIDEO)
    shape = (1, 2 * CLIP_TOKENS, config["image_dim"])
    tensors["condition_embedder.image_embedder.pos_embed"] = torch.randn(shape) * 0.02
    _save(folder, config | {"pos_embed_seq_len": 2 * CLIP_TOKENS}, tensors)


def _vace(folder: Path) -> None:
    """The trained image-to-video in VACE's form: the picture comes in through VACE's own block.

    VACE adds each of its blocks' outputs to the stream, after the main block with the same place.
    So the stream starts with a main block that changes nothing. Its VACE block changes nothing
    either: it returns the embedded picture plus the stream. The noise is embedded at half strength,
    so that the sum of both is the usual embedding of image-to-video.
    """
    import torch
    from diffusers import WanVACETransformer3DModel

    config, trained = _trained(IMAGE_TO_VIDEO)
    config |= {
        "_class_name": WanVACETransformer3DModel.__name__,
        "in_channels": LATENTS,
        "num_layers": config["num_layers"] + 1,
        "image_dim": None,
        "added_kv_proj_dim": None,
        "vace_layers": [0],
        # Latents of the known part, latents of the part to generate, and a mask of 8x8 pixels.
        "vace_in_channels": 2 * LATENTS + 64,
    }
    tensors: Tensors = WanVACETransformer3DModel.from_config(config).state_dict()
    for name, tensor in trained.items():
        if name.startswith("blocks."):
            _, layer, rest = name.split(".", 2)
            name = f"blocks.{int(layer) + 1}.{rest}"
        if name in tensors:
            tensors[name] = tensor
    for name, tensor in tensors.items():
        is_identity = name.startswith(("blocks.0.", "vace_blocks.0."))
        if is_identity and any(part in name for part in (".to_out.", ".ffn.net.2.")):
            tensor.zero_()
    width = config["num_attention_heads"] * config["attention_head_dim"]
    for projection in ("proj_in", "proj_out"):
        tensors[f"vace_blocks.0.{projection}.weight"].copy_(torch.eye(width))
        tensors[f"vace_blocks.0.{projection}.bias"].zero_()
    embedding = trained["patch_embedding.weight"]  # inputs: noise, mask, picture
    tensors["patch_embedding.weight"] = embedding[:, :LATENTS].clone() / 2
    tensors["patch_embedding.bias"] = trained["patch_embedding.bias"] / 2
    tensors["vace_patch_embedding.bias"].zero_()
    tensors["vace_patch_embedding.weight"].zero_()
    tensors["vace_patch_embedding.weight"][:, :LATENTS] = embedding[:, -LATENTS:]
    _save(folder, config, tensors)


def _turbo(component: Component) -> Callable[[Path], None]:
    """A LoRA that fits but teaches nothing: small random factors, not distilled."""

    def write_lora(folder: Path) -> None:
        import torch
        from safetensors.torch import save_file

        config, _ = _trained(TEXT_TO_VIDEO)
        width, rank = config["num_attention_heads"] * config["attention_head_dim"], 2
        tensors: Tensors = {}
        for block in range(config["num_layers"]):
            stem = f"transformer.blocks.{block}.attn1.to_q.lora"
            tensors[f"{stem}_A.weight"] = torch.randn(rank, width) / width
            tensors[f"{stem}_B.weight"] = torch.randn(width, rank) / width
        save_file(tensors, folder / component.file, metadata={"format": "pt"})

    return write_lora


def _transformer_2_2(model: Model) -> Callable[[Path], None]:
    """A random one that reads and writes the latents of Wan 2.2's VAE."""

    def make(folder: Path) -> None:
        from diffusers import WanTransformer3DModel

        config, _ = _trained(TEXT_TO_VIDEO)
        channels = {name: getattr(model.config, name) for name in ("in_channels", "out_channels")}
        WanTransformer3DModel.from_config(config | channels | {"num_layers": 2}).save_pretrained(
            folder
        )

    return make


def _vae_2_2(folder: Path) -> None:
    """Wan 2.2's VAE: 16x in space (2x of it by patches), 4x in time, 48 channels."""
    from diffusers import AutoencoderKLWan

    channels = 48
    AutoencoderKLWan(
        base_dim=8,
        decoder_base_dim=8,
        z_dim=channels,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
        latents_mean=[0.0] * channels,
        latents_std=[1.0] * channels,
    ).save_pretrained(folder)


def _trained(name: str) -> tuple[dict[str, Any], "Tensors"]:
    from safetensors.torch import load_file

    folder = TRAINED / name
    return json.loads((folder / "config.json").read_text("utf-8")), load_file(folder / WEIGHTS)


def _save(folder: Path, config: Mapping[str, Any], tensors: "Tensors") -> None:
    from safetensors.torch import save_file

    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
