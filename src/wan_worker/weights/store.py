"""Where are the weights, and are they whole?

Each component is searched by itself in this order, so that no store must hold everything:

1. ``MODELS_DIR``: the image's own weights, or a laptop's folder;
2. ``models/`` on the network volume, filled by download_weights.py;
3. RunPod's cached models, ``huggingface-cache/hub`` on the volume, read in place: whole diffusers
   repositories. A shared component may come from any of them.

A store (1 and 2) has one folder per component. Models share components, so the text encoder and
the VAE are stored once, however many models are installed::

    models/
      umt5-xxl/                     config.json  model.safetensors  manifest.json
      wan2.1-vae/                   ...
      wan2.1-t2v-1.3b.transformer/  ...

A component is written into ``<name>.partial``. Its ``manifest.json`` (its origin, and size and
sha256 of every file) is written last, then the folder is renamed. The worker ignores a folder
without a manifest. A cached model has no manifest; the headers show whether each file is whole.
Only safetensors are ever written or read.
Not covered: installing the components (tiny, download).
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from wan_worker.catalog.components import Component
from wan_worker.catalog.models import EXTRAS, MODELS, Installed, components_of, repositories_of
from wan_worker.errors import ModelCorrupt
from wan_worker.weights import safetensors_file

MANIFEST: Final = "manifest.json"
CHECKED: Final = "checked.json"
"""Lies beside the manifest after every byte has been compared with it."""
TINY: Final = "tiny"
"""In the manifest of tiny weights, this replaces the name of a repository."""

LORAS: Final = "loras"
"""A store's folder for the operator's own LoRAs, one file each, without a manifest."""

VOLUME_STORE: Final = "models"
VOLUME_CACHE: Final = "huggingface-cache/hub"
"""Where RunPod puts the models that an endpoint names as cached."""

PROCESSOR_FILES: Final = {
    "tokenizer": ("tokenizer.json", "spiece.model"),
    "image_processor": ("preprocessor_config.json", "processor_config.json"),
}
"""A component without weights needs at least one of these files."""

CHAT_FILES: Final = ("tokenizer.json", "tokenizer.model")
"""A language model needs at least one of these files beside its weights."""

_CHUNK = 1024**2


@dataclass(frozen=True)
class Found:
    """A whole component and its place."""

    folder: Path
    weight_bytes: int
    """Size of its weights in memory, in the type that a GPU runs."""
    tiny: bool
    where: str
    """The name of the place, for the log."""


@dataclass(frozen=True)
class Checked:
    """When every byte of a component was last read, and whether all of them were right."""

    at: str
    """ISO 8601, UTC."""
    whole: bool


def installed(models_dir: Path, volume: Path | None = None) -> dict[str, Installed]:
    """The models of which every component is present, with files of the stated sizes.

    It checks names and sizes only, so it is cheap enough for every job; ``verify`` reads the bytes.
    """
    parts = {c: locate(c, models_dir, volume) for c in components_of(list(MODELS))}
    models = {}
    for model in MODELS.values():
        present = {c.name: found for c in model.components if (found := parts[c]) is not None}
        if len(present) == len(model.components):
            models[model.id] = Installed(
                component_bytes={name: found.weight_bytes for name, found in present.items()},
                tiny=any(found.tiny for found in present.values()),
                folders={name: found.folder for name, found in present.items()},
            )
    return models


def extras(models_dir: Path, volume: Path | None = None) -> dict[str, Installed]:
    """The components beside the models (extras) that are present and whole, by name."""
    located = {name: locate(component, models_dir, volume) for name, component in EXTRAS.items()}
    return {
        name: Installed({name: part.weight_bytes}, part.tiny, {name: part.folder})
        for name, part in located.items()
        if part is not None
    }


def locate(component: Component, models_dir: Path, volume: Path | None = None) -> Found | None:
    """The first place that holds the whole component, or None."""
    stores = [(models_dir, "MODELS_DIR")]
    if volume is not None:
        stores.append((volume / VOLUME_STORE, "the network volume"))
    for store, where in stores:
        folder = store / component.name
        manifest = read_manifest(folder)
        if manifest is not None:
            tiny = manifest["repository"] == TINY
            return Found(folder, _weight_bytes(manifest), tiny, where)
    if volume is None:
        return None
    for repository in repositories_of(component):
        for snapshot in _snapshots(volume / VOLUME_CACHE, repository):
            folder = snapshot / component.hub_folder
            weight_bytes = _cached_bytes(folder, component)
            if weight_bytes is not None:
                where = f"the cached model {repository} at {snapshot.name[:12]}"
                return Found(folder, weight_bytes, False, where)
    return None


def whole(models_dir: Path, volume: Path | None = None) -> frozenset[str]:
    """Names of the models' components that are present, even of incomplete models."""
    parts = components_of(list(MODELS))
    return frozenset(c.name for c in parts if locate(c, models_dir, volume) is not None)


def explain(models_dir: Path, volume: Path | None = None, *others: Component) -> Iterator[str]:
    """Yield a log line for each component: its place, or that it is missing."""
    for component in (*components_of([*MODELS, *EXTRAS]), *others):
        found = locate(component, models_dir, volume)
        yield f"{component.name}: " + (
            "not installed" if found is None else f"in {found.where}" + " (tiny)" * found.tiny
        )


def damaged(models_dir: Path) -> tuple[str, ...]:
    """Components that are no longer complete: a file differs from its manifest in size."""
    return tuple(
        c.name
        for c in components_of([*MODELS, *EXTRAS])
        if (models_dir / c.name / MANIFEST).exists() and read_manifest(models_dir / c.name) is None
    )


def verify(models_dir: Path, component: Component) -> None:
    """Compare every byte of a component with its manifest, and store a note of the result.

    A store that can't be written, as in an image, gets no note.

    Raises:
        ModelCorrupt: it names the first file that is missing, short or different.
    """
    folder = models_dir / component.name
    manifest = read_manifest(folder)
    if manifest is None:
        raise ModelCorrupt(f"{component.name} is not installed or not complete")
    before = _stamp(folder, manifest)
    files = manifest["files"].items()
    name = next((n for n, facts in files if _sha256(folder / n) != facts["sha256"]), None)
    note = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "whole": name is None,
        "stamp": before,
    }
    with suppress(OSError):
        (folder / CHECKED).write_text(json.dumps(note) + "\n", "utf-8")
    if name is not None:
        raise ModelCorrupt(
            f"{component.name}/{name} differs from its manifest; install the component again"
        )


def checked(folder: Path) -> Checked | None:
    """The result of the last ``verify``; None if there was none, or a file has changed since.

    It checks only sizes and times of change.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    try:
        note = json.loads((folder / CHECKED).read_text("utf-8"))
        fresh = note["stamp"] == _stamp(folder, manifest)
        return Checked(str(note["at"]), bool(note["whole"])) if fresh else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def checks(models_dir: Path, volume: Path | None = None) -> dict[str, Checked]:
    """The last checks that still hold, of all components of the models, by name."""
    notes = {}
    for component in components_of(list(MODELS)):
        located = locate(component, models_dir, volume)
        note = None if located is None else checked(located.folder)
        if note is not None:
            notes[component.name] = note
    return notes


def _stamp(folder: Path, manifest: Mapping[str, Any]) -> dict[str, list[int]]:
    """Size and time of change of each file. Image layers keep the time in whole seconds."""
    stats = {name: (folder / name).stat() for name in (MANIFEST, *manifest["files"])}
    return {name: [stat.st_size, int(stat.st_mtime)] for name, stat in stats.items()}


def seal(
    partial: Path, target: Path, component: Component, repository: str, revision: str | None = None
) -> None:
    """Write the manifest, then rename the folder, so that the component appears at once.

    Args:
        repository: the Hub repository of its files, or ``TINY``.
        revision: the repository's commit.
    """
    files = {
        str(path.relative_to(partial)): {"size": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(partial.rglob("*"))
        if path.is_file()
    }
    manifest = {
        "component": component.name,
        "repository": repository,
        "revision": revision,
        "dtype": _dtype(partial),
        "files": files,
    }
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def read_manifest(folder: Path) -> Mapping[str, Any] | None:
    """The manifest of a complete component, or None."""
    try:
        manifest: Mapping[str, Any] = json.loads((folder / MANIFEST).read_text("utf-8"))
        complete = "repository" in manifest and all(
            (folder / name).stat().st_size == facts["size"]
            for name, facts in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest if complete else None


def weight_files(folder: Path) -> tuple[str, ...]:
    """Names of a component's weight files: those in its index, or the one file without an index.

    Raises:
        ValueError: the index is malformed.
    """
    for stem in ("model", "diffusion_pytorch_model"):
        index = folder / f"{stem}.safetensors.index.json"
        if index.is_file():
            try:
                names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
            except (KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{index.name} has no weight_map") from error
            if not all(name == Path(name).name and name.endswith(".safetensors") for name in names):
                raise ValueError(f"{index.name} names files that are no safetensors beside it")
            return tuple(sorted(names))
        if (folder / f"{stem}.safetensors").is_file():
            return (f"{stem}.safetensors",)
    return ()


def _snapshots(cache: Path, repository: str) -> list[Path]:
    """Snapshots of a repository in a Hugging Face cache. The one that ``main`` names is first."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    try:
        main = (folder / "refs" / "main").read_text("utf-8").strip()
    except (OSError, ValueError):
        main = ""
    try:
        found = sorted(folder.joinpath("snapshots").iterdir())
    except OSError:
        return []
    return sorted(found, key=lambda snapshot: snapshot.name != main)


def _cached_bytes(folder: Path, component: Component) -> int | None:
    """Bytes in memory of a component without a manifest, or None if it is not whole."""
    required = PROCESSOR_FILES.get(component.role)
    if required is not None:
        return 0 if any((folder / name).is_file() for name in required) else None
    if component.role == "enhancer" and not any((folder / name).is_file() for name in CHAT_FILES):
        return None
    total = 0
    try:
        names = weight_files(folder)
        for name in names:
            header = safetensors_file.read_header(folder / name)
            narrow = (
                frozenset()
                if component.keep_fp32
                else safetensors_file.to_halve(header, frozenset())
            )
            total += sum(t.nbytes // (2 if n in narrow else 1) for n, t in header.tensors.items())
    except (OSError, ValueError):
        return None
    return total if names and (folder / "config.json").is_file() else None


def _weight_bytes(manifest: Mapping[str, Any]) -> int:
    return sum(
        int(facts["size"])
        for name, facts in manifest["files"].items()
        if name.endswith(".safetensors")
    )


def _dtype(folder: Path) -> str | None:
    """The type of most of a component's weights, or None if it has no weights."""
    sizes: dict[str, int] = {}
    for path in folder.glob("*.safetensors"):
        for tensor in safetensors_file.read_header(path).tensors.values():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.nbytes
    return max(sizes, key=lambda dtype: sizes[dtype]) if sizes else None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise ModelCorrupt(f"{path.parent.name}/{path.name} can't be read") from error
    return digest.hexdigest()
