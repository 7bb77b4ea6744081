"""Fill the store with weights from the Hub: one copy of each component, in the type that runs.

A release published elsewhere, one file with a fixed hash, is installed the same way.
A component's files arrive in ``<name>.download``. On the way into ``<name>.partial``, float32
weights that allow it are rounded to bfloat16. Then all files appear under the component's name at
once, with their manifest. If a run is killed, the next run continues with its files.

Promises: only JSON, tokenizer files and safetensors are downloaded from the Hub; a published pickle
becomes safetensors without being trusted; the VAE, and the modules that the model's class keeps in
float32, are stored unchanged; an installed component is not requested again, so an installed store
needs no network; two processes on one volume take turns.
Not covered: a file system without locks, and which models are worth installing (docs/operating.md).
"""

import errno
import importlib
import json
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from wan_worker.catalog.components import Component
from wan_worker.catalog.models import components_of
from wan_worker.errors import DiskFull, ModelCorrupt, ModelUnavailable
from wan_worker.weights import real_esrgan, safetensors_file
from wan_worker.weights.hub import Hub, RemoteFile, Repository
from wan_worker.weights.store import (
    CHAT_FILES,
    PROCESSOR_FILES,
    TINY,
    read_manifest,
    seal,
    weight_files,
)

MARGIN_BYTES: Final = 256 * 1024**2
"""Disk space that stays free beside the weights."""

STREAMS: Final = 4
"""Files that download at the same time: one connection does not fill a data centre's line."""

STATE: Final = "source.json"

Report = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """A component's place on the Hub, or its release."""

    component: Component
    repository: Repository

    @property
    def files(self) -> dict[str, RemoteFile]:
        """All of the component's files in the repository, by name."""
        return self.repository.folder(self.component.hub_folder)

    @property
    def facts(self) -> dict[str, str]:
        return {"repository": self.repository.name, "revision": self.repository.commit}


def install(
    models_dir: Path,
    model_ids: Iterable[str],
    hub: Hub,
    revisions: Mapping[str, str] | None = None,
    report: Report = lambda line: None,
    others: Iterable[Component] = (),
) -> None:
    """Download every component of these models, and of ``others``, that the store lacks.

    Args:
        revisions: branch, tag or commit by repository; ``*`` stands for all others. The Hub is
            asked for a repository named here even if its component is installed. A component of
            another commit is replaced.

    Raises:
        ModelUnavailable: the Hub does not provide it, or the store can't be written.
        ModelCorrupt: the content is not what the Hub states, or is no safetensors.
        DiskFull: raised before the download starts, if the sizes already show it.
    """
    try:
        models_dir.mkdir(parents=True, exist_ok=True)
        sources = []
        for component in (*components_of(list(model_ids)), *others):
            revision = None if component.release else _revision(component, revisions or {})
            if revision is None and _is_installed(models_dir, component):
                report(f"{component.name}: already there")
                continue
            source = Source(component, _published(component, revision, hub))
            if _is_installed(models_dir, component, source):
                report(f"{component.name}: already there, at the same commit")
                continue
            sources.append(source)
        _check_space(models_dir, sources)
        wanted = (file for s in sources for file in _wanted(s.component, s.files))
        hub.tally.wanted = sum(file.size for file in wanted)
        for source in sources:
            _install(models_dir, source, hub, report)
    except OSError as error:
        raise _disk_error(error) from error


def _published(component: Component, revision: str | None, hub: Hub) -> Repository:
    """The repository that the Hub lists, or a release's one file, which needs no request."""
    release = component.release
    if release is None:
        return hub.repository(component.repository, revision)
    path = f"{component.role}/{release.url.rpartition('/')[2]}"
    file = RemoteFile(path, component.hub_bytes, release.sha256, release.url)
    return Repository(component.repository, release.tag, (file,))


def _revision(component: Component, revisions: Mapping[str, str]) -> str | None:
    return revisions.get(component.repository, revisions.get("*"))


def _is_installed(models_dir: Path, component: Component, source: Source | None = None) -> bool:
    """Whether real weights are installed, and at the commit of ``source`` if one is given."""
    manifest = read_manifest(models_dir / component.name)
    if manifest is None or manifest["repository"] == TINY:
        return False
    return source is None or {key: manifest[key] for key in source.facts} == source.facts


def _check_space(models_dir: Path, sources: list[Source]) -> None:
    """Raise DiskFull before the first download if the weights can't fit."""
    needed, largest = 0, 0
    for source in sources:
        component = source.component
        files = _wanted(component, source.files)
        arriving = sum(file.size for file in files)
        needed += arriving * component.stored_bytes // component.hub_bytes
        needed -= _bytes_in(models_dir / f"{component.name}.partial")
        # A downloaded file keeps its full size until it is rounded.
        largest = max(largest, sum(sorted(file.size for file in files)[-STREAMS:]))
    free = shutil.disk_usage(models_dir).free
    needed += largest + MARGIN_BYTES if sources else 0
    if needed > free:
        raise DiskFull(
            f"The weights need {needed / 1e9:.1f} GB of free disk, and {free / 1e9:.1f} GB are; "
            "name fewer models, or another --dest",
            retryable=False,
        )


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*")) if folder.is_dir() else 0


def _wanted(component: Component, listed: Mapping[str, RemoteFile]) -> list[RemoteFile]:
    """The files that a component may need: no other precision, no pickles, no pictures.

    If there is an index, this list is too long; ``_fill`` takes only the files in the index.
    """
    if component.release is not None:
        return list(listed.values())
    if component.file:
        if component.file not in listed:
            raise ModelUnavailable(f"{component.repository} no longer has {component.file}")
        return [listed[component.file]]
    endings: tuple[str, ...] = (".json", ".model", ".txt")
    if component.role in PROCESSOR_FILES:
        if not any(name in listed for name in PROCESSOR_FILES[component.role]):
            raise ModelUnavailable(f"{component.repository} has no {component.role}/ files")
        return [file for name, file in sorted(listed.items()) if name.endswith(endings)]
    chat: list[RemoteFile] = []
    if component.role == "enhancer":
        if not any(name in listed for name in CHAT_FILES):
            raise ModelUnavailable(f"{component.repository} has no tokenizer beside its weights")
        endings += (".jinja",)
        chat = [file for name, file in sorted(listed.items()) if name.endswith(endings)]
    stems = ("model", "diffusion_pytorch_model")
    wanted = [
        file
        for name, file in sorted(listed.items())
        if file not in chat
        and (
            name == "config.json"
            or name.endswith(".safetensors.index.json")
            or (
                name.endswith(".safetensors")
                and any(
                    name == f"{stem}.safetensors" or name.startswith(f"{stem}-") for stem in stems
                )
            )
        )
    ]
    if not any(file.name.endswith(".safetensors") for file in wanted):
        raise ModelUnavailable(
            f"{component.repository} has no safetensors in {component.hub_folder or 'its top'}; "
            "other formats are never opened"
        )
    return [*chat, *wanted]


def _install(models_dir: Path, source: Source, hub: Hub, report: Report) -> None:
    """Install one component while no other process installs it."""
    from filelock import FileLock, Timeout

    component = source.component
    locks = models_dir / ".locks"
    locks.mkdir(exist_ok=True)
    # The operating system frees this lock when the process ends, however it ends.
    lock = FileLock(locks / f"{component.name}.lock")
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        report(f"{component.name}: waiting for another process that installs it")
        held = lock.acquire()
    with held:
        if _is_installed(models_dir, component, source):
            report(f"{component.name}: installed by another process")
            return
        report(f"{component.name}: {source.repository.name} at {source.repository.commit[:12]}")
        arriving, partial = _folders(models_dir, source)
        try:
            _fill(partial, arriving, source, hub)
            seal(partial, models_dir / component.name, component, **source.facts)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                shutil.rmtree(partial, ignore_errors=True)
                shutil.rmtree(arriving, ignore_errors=True)
            raise
        shutil.rmtree(arriving, ignore_errors=True)
        report(f"{component.name}: installed")


def _folders(models_dir: Path, source: Source) -> tuple[Path, Path]:
    """The folders of an unfinished installation. Those of the same commit keep their files."""
    name = source.component.name
    arriving, partial = models_dir / f"{name}.download", models_dir / f"{name}.partial"
    try:
        state: Any = json.loads((arriving / STATE).read_text("utf-8"))
    except (OSError, ValueError):
        state = None
    if state != source.facts:
        for folder in (arriving, partial):
            shutil.rmtree(folder, ignore_errors=True)
    for folder in (arriving, partial):
        folder.mkdir(exist_ok=True)
    (arriving / STATE).write_text(json.dumps(source.facts), "utf-8")
    return arriving, partial


def _fill(partial: Path, arriving: Path, source: Source, hub: Hub) -> None:
    """Download each file and move it to ``partial``, rounded if necessary."""
    component = source.component
    wanted = _wanted(component, source.files)
    if component.release is not None:
        _convert(wanted[0], partial, arriving, source, hub)
        return
    small = [file for file in wanted if not file.name.endswith(".safetensors")]
    for file in small:
        hub.get(source.repository, file, arriving / file.name)
        shutil.copyfile(arriving / file.name, partial / file.name)
    if component.role in PROCESSOR_FILES:
        return
    stop = threading.Event()

    def fetch_one(file: RemoteFile) -> None:
        if (partial / file.name).exists():
            hub.tally.has(source.repository.name, file.path, file.size)
        else:
            hub.get(source.repository, file, arriving / file.name, stop)
            _move_or_round(arriving / file.name, partial / file.name, component)

    try:
        listed = {file.name: file for file in wanted if file not in small}
        indexed = weight_files(partial)
        chosen = [listed[name] for name in indexed] if indexed else list(listed.values())
        with ThreadPoolExecutor(STREAMS, thread_name_prefix="download") as pool:
            try:
                for finished in as_completed([pool.submit(fetch_one, file) for file in chosen]):
                    finished.result()
            except BaseException:  # Ctrl-C too: do not wait for the rest of 10 GB
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        _update_index_size(partial)
    except (ValueError, KeyError) as error:
        raise ModelCorrupt(f"{component.name}: {source.repository.name} holds no whole safetensors "
                           f"({error})") from error  # fmt: skip


def _convert(file: RemoteFile, partial: Path, arriving: Path, source: Source, hub: Hub) -> None:
    """Download a published checkpoint and write its tensors as safetensors."""
    hub.get(source.repository, file, arriving / file.name)
    try:
        real_esrgan.convert(arriving / file.name, partial)
    except ValueError as error:
        raise ModelCorrupt(f"{source.component.name}: {file.name} is {error}") from error


def _kept_in_fp32(component: Component) -> frozenset[str]:
    """The modules that the component's class always loads in float32."""
    library, class_name = component.class_name.split(":")
    cls = getattr(importlib.import_module(library), class_name)
    # transformers' plain list is about float16 only; the strict one is about bfloat16 too.
    attribute = {
        "diffusers": "_keep_in_fp32_modules",
        "transformers": "_keep_in_fp32_modules_strict",
    }[library]
    return frozenset(getattr(cls, attribute, None) or ())


def _move_or_round(arrived: Path, final: Path, component: Component) -> None:
    """Move a weight file, unchanged or rounded. It gets its final name when it is whole."""
    header = safetensors_file.read_header(arrived)
    has_fp32 = not component.keep_fp32 and any(t.dtype == "F32" for t in header.tensors.values())
    keep = _kept_in_fp32(component) if has_fp32 else frozenset()
    if has_fp32 and safetensors_file.to_halve(header, keep):
        unfinished = arrived.with_suffix(".bf16")
        safetensors_file.to_bfloat16(arrived, unfinished, keep)
        unfinished.replace(final)
        arrived.unlink()
    else:
        arrived.replace(final)


def _update_index_size(partial: Path) -> None:
    """Write the stored size into the index."""
    for index in partial.glob("*.safetensors.index.json"):
        content = json.loads(index.read_text("utf-8"))
        total = sum(
            safetensors_file.read_header(partial / name).nbytes for name in weight_files(partial)
        )
        content["metadata"] = {**(content.get("metadata") or {}), "total_size": total}
        index.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")


def _disk_error(error: OSError) -> DiskFull | ModelUnavailable:
    """The error for a failure of the disk, without its paths."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(
            "The disk is full; what was half there is removed. Name fewer models or another --dest",
            retryable=False,
        )
    reason = errno.errorcode.get(error.errno or 0, type(error).__name__)
    return ModelUnavailable(f"The store can't be written ({reason}); check --dest and its rights")
