"""Where are the weights, are they whole, and how do they get there?

The store is a folder (MODELS_DIR) with one folder per component. Models share components, so the
text encoder and the VAE are there once, however many models are installed::

    models/
      umt5-xxl/                     config.json  model.safetensors  manifest.json
      wan2.1-vae/                   ...
      wan2.1-t2v-1.3b.transformer/  ...

A component is written into ``<name>.partial``, its ``manifest.json`` (size and sha256 of every
file) last of all, and then renamed: a folder without a manifest does not exist for the worker.
Only safetensors are ever written or read.
Not covered yet: downloading Wan's own weights.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from wan_worker.catalog import MODELS, Component, components_of
from wan_worker.errors import ModelCorrupt
from wan_worker.plan import Installed

MANIFEST: Final = "manifest.json"
TINY: Final = "tiny"
_CHUNK = 1024**2

TINY_TEXT_DIM: Final = 32
TINY_HEADS: Final = 2
TINY_HEAD_DIM: Final = 24
TINY_CLIP_PIXELS: Final = 32


def installed(models_dir: Path) -> dict[str, Installed]:
    """The models whose every component is here with files of the stated sizes.

    Looks at names and sizes only, so that it can be asked before every job; ``verify`` reads bytes.
    """
    manifests: dict[str, Mapping[str, Any] | None] = {}
    found = {}
    for model in MODELS.values():
        for name in model.component_names:
            if name not in manifests:
                manifests[name] = _read_manifest(models_dir / name)
        parts = {name: manifests[name] for name in model.component_names}
        whole = {name: m for name, m in parts.items() if m is not None}
        if len(whole) == len(parts):
            found[model.id] = Installed(
                component_bytes={n: _weight_bytes(m) for n, m in whole.items()},
                tiny=any(m.get("source") == TINY for m in whole.values()),
            )
    return found


def verify(models_dir: Path, component: Component) -> None:
    """Read every byte of a component against its manifest.

    Raises:
        ModelCorrupt: naming the first file that is missing, short or different.
    """
    folder = models_dir / component.name
    manifest = _read_manifest(folder)
    if manifest is None:
        raise ModelCorrupt(f"{component.name} is not installed or not complete")
    for name, facts in manifest["files"].items():
        if _sha256(folder / name) != facts["sha256"]:
            raise ModelCorrupt(
                f"{component.name}/{name} differs from its manifest; install the component again"
            )


def write_tiny(
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
        if _read_manifest(target) is not None:
            report(f"{component.name}: already there")
            continue
        partial = models_dir / f"{component.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        _TINY_WRITERS[component.role](partial, component)
        _seal(partial, target, component)
        report(f"{component.name}: written")


def _seal(partial: Path, target: Path, component: Component) -> None:
    """Write the manifest, then let the component appear under its name at once."""
    files = {
        str(path.relative_to(partial)): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(partial.rglob("*"))
        if path.is_file()
    }
    manifest = {"component": component.name, "source": TINY, "files": files}
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def _read_manifest(folder: Path) -> Mapping[str, Any] | None:
    """The manifest of a complete component, or None."""
    try:
        manifest: Mapping[str, Any] = json.loads((folder / MANIFEST).read_text("utf-8"))
        complete = all(
            (folder / name).stat().st_size == facts["bytes"]
            for name, facts in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest if complete else None


def _weight_bytes(manifest: Mapping[str, Any]) -> int:
    return sum(
        int(facts["bytes"])
        for name, facts in manifest["files"].items()
        if name.endswith(".safetensors")
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise ModelCorrupt(f"{path.parent.name}/{path.name} can't be read") from error
    return digest.hexdigest()


# The toy set. Dimensions are as small as the classes allow; names, roles and the VAE's strides
# (8x space, 4x time) are the real ones.


def _seeded(component: Component) -> ExitStack:
    """Fix torch's global generator for one component, and give it back as it was."""
    import torch

    stack = ExitStack()
    stack.enter_context(torch.random.fork_rng(devices=[]))
    torch.manual_seed(int.from_bytes(hashlib.sha256(component.name.encode()).digest()[:4], "big"))
    return stack


def _tiny_tokenizer(folder: Path, component: Component) -> None:
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


def _tiny_text_encoder(folder: Path, component: Component) -> None:
    from transformers import UMT5Config, UMT5EncoderModel

    with _seeded(component):
        UMT5EncoderModel(
            UMT5Config(
                vocab_size=384,
                d_model=TINY_TEXT_DIM,
                d_kv=16,
                d_ff=64,
                num_layers=2,
                num_heads=2,
                feed_forward_proj="gated-gelu",
            )
        ).save_pretrained(folder)


def _tiny_vae(folder: Path, component: Component) -> None:
    from diffusers import AutoencoderKLWan

    with _seeded(component):
        AutoencoderKLWan(
            base_dim=4,
            z_dim=16,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
        ).save_pretrained(folder)


def _tiny_image_processor(folder: Path, component: Component) -> None:
    from transformers import CLIPImageProcessorPil

    side = TINY_CLIP_PIXELS
    CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    ).save_pretrained(folder)


def _tiny_image_encoder(folder: Path, component: Component) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    with _seeded(component):
        CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=TINY_TEXT_DIM,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=TINY_CLIP_PIXELS,
                patch_size=8,
            )
        ).save_pretrained(folder)


def _tiny_transformer(folder: Path, component: Component) -> None:
    from diffusers import WanTransformer3DModel

    needs_image = any(
        component in model.components and model.needs_image for model in MODELS.values()
    )
    image: dict[str, Any] = {}
    if needs_image:
        image = {
            "in_channels": 36,  # 16 latents, 16 of the image, 4 of the mask
            "image_dim": TINY_TEXT_DIM,
            "added_kv_proj_dim": TINY_HEADS * TINY_HEAD_DIM,
        }
    with _seeded(component):
        WanTransformer3DModel(
            **(
                {
                    "num_attention_heads": TINY_HEADS,
                    "attention_head_dim": TINY_HEAD_DIM,
                    "in_channels": 16,
                    "out_channels": 16,
                    "text_dim": TINY_TEXT_DIM,
                    "freq_dim": 32,
                    "ffn_dim": 64,
                    "num_layers": 2,
                }
                | image
            )
        ).save_pretrained(folder)


_TINY_WRITERS: Final[Mapping[str, Callable[[Path, Component], None]]] = {
    "tokenizer": _tiny_tokenizer,
    "text_encoder": _tiny_text_encoder,
    "vae": _tiny_vae,
    "image_processor": _tiny_image_processor,
    "image_encoder": _tiny_image_encoder,
    "transformer": _tiny_transformer,
}
