"""Where are the weights, and are they whole?

The store is a folder (MODELS_DIR) with one folder per component. Models share components, so the
text encoder and the VAE are there once, however many models are installed::

    models/
      umt5-xxl/                     config.json  model.safetensors  manifest.json
      wan2.1-vae/                   ...
      wan2.1-t2v-1.3b.transformer/  ...

A component is written into ``<name>.partial``, its ``manifest.json`` (size and sha256 of every
file) last of all, and then renamed: a folder without a manifest does not exist for the worker.
Only safetensors are ever written or read.
Not covered: what puts them there (tiny).
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from wan_worker.catalog import MODELS, Component, Installed
from wan_worker.errors import ModelCorrupt

MANIFEST: Final = "manifest.json"
TINY: Final = "tiny"
_CHUNK = 1024**2


def installed(models_dir: Path) -> dict[str, Installed]:
    """The models whose every component is here with files of the stated sizes.

    Looks at names and sizes only, so that it can be asked before every job; ``verify`` reads bytes.
    """
    manifests: dict[str, Mapping[str, Any] | None] = {}
    found = {}
    for model in MODELS.values():
        for name in model.component_names:
            if name not in manifests:
                manifests[name] = read_manifest(models_dir / name)
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
    manifest = read_manifest(folder)
    if manifest is None:
        raise ModelCorrupt(f"{component.name} is not installed or not complete")
    for name, facts in manifest["files"].items():
        if _sha256(folder / name) != facts["sha256"]:
            raise ModelCorrupt(
                f"{component.name}/{name} differs from its manifest; install the component again"
            )


def seal(partial: Path, target: Path, component: Component, source: str) -> None:
    """Write the manifest, then let the component appear under its name at once."""
    files = {
        str(path.relative_to(partial)): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(partial.rglob("*"))
        if path.is_file()
    }
    manifest = {"component": component.name, "source": source, "files": files}
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def read_manifest(folder: Path) -> Mapping[str, Any] | None:
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
