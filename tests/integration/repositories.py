"""Wan's diffusers repositories, and a chat model's, as the Hub holds them, at toy dimensions.

Real classes, the real folders and file names: transformers in float32 shards with an index, the
text encoder in float32 (2.1) or bfloat16 (2.2), the VAE in float32; beside them what a repository
also holds and the store must not take: pickles, another precision, pictures.
"""

import shutil
import warnings
from pathlib import Path
from typing import Any

from wan_worker.catalog.components import (
    CLIP,
    CLIP_PROCESSOR,
    ENHANCER,
    UMT5,
    UMT5_TOKENIZER,
    VAE_2_1,
    Component,
)
from wan_worker.catalog.models import MODELS
from wan_worker.weights import tiny

T2V, I2V = MODELS["wan2.1-t2v-1.3b"], MODELS["wan2.1-i2v-14b-480p"]
TI2V_5B = UMT5.repository
SHARD = "60KB"


def build(folder: Path) -> dict[str, dict[str, bytes]]:
    """Files of every repository that the catalog names, by repository and path."""
    import torch

    warnings.simplefilter("ignore")
    store = folder / "store"
    tiny.write(store, [T2V.id, I2V.id])
    for model in (T2V, I2V):
        root = folder / model.repository
        for component in model.components:
            _save(store, component, root / component.role)
        _litter(root)
    root = folder / TI2V_5B
    _save(store, UMT5, root / UMT5.role, dtype=torch.bfloat16)
    _save(store, UMT5_TOKENIZER, root / UMT5_TOKENIZER.role)
    _litter(root)
    _save_chat_model(store / ENHANCER.name, folder / ENHANCER.repository)
    return {
        repository: {
            str(path.relative_to(folder / repository)): path.read_bytes()
            for path in sorted((folder / repository).rglob("*"))
            if path.is_file()
        }
        for repository in (T2V.repository, I2V.repository, TI2V_5B, ENHANCER.repository)
    }


def _save(store: Path, component: Component, target: Path, dtype: Any = None) -> None:
    if component in (UMT5_TOKENIZER, CLIP_PROCESSOR):
        shutil.copytree(store / component.name, target, ignore=lambda *_: ["manifest.json"])
        return
    module = load(component, store / component.name)
    if dtype is not None:
        module = module.to(dtype)
    whole = component in (VAE_2_1, CLIP)
    module.save_pretrained(target, **({} if whole else {"max_shard_size": SHARD}))


def _save_chat_model(source: Path, root: Path) -> None:
    """A plain transformers repository: everything at the top, in shards, and what lies about."""
    shutil.copytree(source, root, ignore=lambda *_: ["manifest.json", "model.safetensors"])
    load(ENHANCER, source).save_pretrained(root, max_shard_size=SHARD)
    (root / "README.md").write_text("# Qwen")
    (root / "configuration.py").write_text("raise SystemExit")
    (root / "pytorch_model.bin").write_bytes(b"p" * 9000)
    (root / "consolidated.safetensors").write_bytes(b"c" * 9000)


def load(component: Component, folder: Path) -> Any:
    """The component by its own library, in the types that its files have."""
    import importlib

    library, name = component.class_name.split(":")
    cls = getattr(importlib.import_module(library), name)
    return cls.from_pretrained(folder, local_files_only=True)


def _litter(root: Path) -> None:
    """What lies about in repositories."""
    (root / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    (root / "README.md").write_text("# Wan")
    (root / "assets").mkdir()
    (root / "assets" / "demo.mp4").write_bytes(b"m" * 9000)
    (root / "text_encoder" / "pytorch_model.bin").write_bytes(b"p" * 9000)
    (root / "text_encoder" / "model.fp16.safetensors").write_bytes(b"h" * 9000)
