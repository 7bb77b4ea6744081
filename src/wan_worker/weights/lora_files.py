"""Where is the file of a LoRA, and is it a whole safetensors file?

A name is searched in ``loras/`` of MODELS_DIR, then in ``loras/`` of the store on the network
volume. A URL is downloaded once into LORA_CACHE_DIR, as
``<hash of the URL>-<sha256 of the file>.safetensors``. The file stays while LORA_CACHE_BYTES has
room; the least recently used files go first.

Promises: only safetensors are ever opened, and the header is read first; a file appears in the
cache whole or not at all, and stays while a job of any worker or thread uses it; the next download
removes the partial files of a killed worker.
How: one lock of the operating system guards all changes of the cache; no change waits for the
network. Each file in use and each download has a lock of its own. All locks end with their process,
however it ends.
Not covered: whether a URL's content has changed (a cached file is not requested again), file
systems without locks, and whether the adapter fits the model (pipelines.lora).
"""

import errno
import fcntl
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from wan_worker.errors import DiskFull, InvalidRequest, Unsupported
from wan_worker.inputs import net
from wan_worker.inputs.dialing import Policy
from wan_worker.request.loras import SUFFIX, Lora
from wan_worker.settings import Settings
from wan_worker.timing.progress import Control
from wan_worker.weights import safetensors_file
from wan_worker.weights.store import LORAS, VOLUME_STORE

DOWNLOAD_SECONDS: Final = 600.0
"""The limit for one file of any size."""
MAX_HEADER_BYTES: Final = 8 * 1024**2
"""Ten times the largest header: every layer of a 14B model, with the longest names."""
MAX_NAMES: Final = 10
_PART: Final = ".part"
_MIB: Final = 1024**2


@dataclass(frozen=True)
class LoraFile:
    """A LoRA whose file is on disk and has a LoRA's header."""

    lora: Lora
    path: Path
    sha256: str | None = None
    """The hash of a downloaded file."""


def check(loras: tuple[Lora, ...], settings: Settings, policy: Policy) -> None:
    """Refuse unknown names, wrong files and bad URLs before any work starts.

    Raises:
        InvalidRequest: there is no file of that name.
        Unsupported: the file is no safetensors file of a LoRA.
        UrlBlocked: the worker may not connect to the URL.
    """
    for lora in loras:
        where = f"{lora.field}/source"
        if lora.is_url:
            net.check(lora.source, policy, field=where, https_only=True)
        else:
            check_header(_local(lora, settings), where)


@contextmanager
def fetched(
    loras: tuple[Lora, ...], settings: Settings, policy: Policy, control: Control
) -> Iterator[tuple[LoraFile, ...]]:
    """Yield the LoRAs' files, downloaded if necessary. They stay while the block runs.

    Raises:
        FetchFailed, UrlBlocked: a download failed.
        DiskFull: the cache has no room for it.
        InvalidRequest, Unsupported: as in ``check``.
    """
    with ExitStack() as held:
        yield tuple(
            _cached(lora, settings, policy, control, held)
            if lora.is_url
            else LoraFile(lora, _local(lora, settings))
            for lora in loras
        )


def check_header(path: Path, where: str) -> safetensors_file.Header:
    """Read the header of a LoRA's file.

    Raises:
        Unsupported: the file is not a LoRA.
    """
    try:
        header = safetensors_file.read_header(path, MAX_HEADER_BYTES)
    except (OSError, ValueError) as problem:
        reason = str(problem) if type(problem) is ValueError else "it can't be read"
        raise Unsupported(
            f"Must be a whole safetensors file ({reason}); pickled files (.pt, .ckpt, .bin) are "
            "never opened",
            field=where,
        ) from None
    if not any("lora" in name for name in header.tensors):
        raise Unsupported("Holds no LoRA layers: it is another kind of file", field=where)
    return header


def _local(lora: Lora, settings: Settings) -> Path:
    folders = (settings.models_dir / LORAS, settings.volume_dir / VOLUME_STORE / LORAS)
    for folder in folders:
        path = folder / (lora.source + SUFFIX)
        if path.is_file():
            return path
    names = sorted({p.stem for folder in folders for p in folder.glob(f"[!.]*{SUFFIX}")})
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    available = (
        f"; here are: {', '.join(names[:MAX_NAMES])}{more}" if names else "; there is none yet"
    )
    raise InvalidRequest(
        f"No such file in the worker's loras folder (MODELS_DIR/{LORAS}, {SUFFIX} only){available}",
        field=f"{lora.field}/source",
    )


# The cache.


def _cached(
    lora: Lora, settings: Settings, policy: Policy, control: Control, held: ExitStack
) -> LoraFile:
    """Take a URL's file from the cache or from its server; hold it until ``held`` closes."""
    cache, key = settings.lora_cache_dir, hashlib.sha256(lora.source.encode()).hexdigest()[:32]
    with _disk_errors(), _cache_lock(cache):
        found = sorted(cache.glob(f"{key}-*{SUFFIX}"), key=_last_used)
        if found:
            path = found[-1]
            _lock_shared(path, held)
            os.utime(path)
            return LoraFile(lora, path, path.stem.partition("-")[2])
    with ExitStack() as arriving:
        with _disk_errors(), _cache_lock(cache):
            _sweep(cache)
            part = cache / f"{key}.{secrets.token_hex(8)}{_PART}"
            arriving.callback(part.unlink, missing_ok=True)
            file = arriving.enter_context(part.open("x+b"))
            fcntl.flock(file, fcntl.LOCK_EX)
        _download(lora, file, settings, policy, control)
        with _disk_errors():
            file.flush()
            file.seek(0)
        check_header(part, f"{lora.field}/source")
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        with _disk_errors(), _cache_lock(cache):
            _make_room(cache, part.stat().st_size, settings.lora_cache_bytes, lora)
            path = cache / f"{key}-{sha256}{SUFFIX}"
            if path.exists():  # another worker was faster
                _lock_shared(path, held)
            else:
                part.rename(path)
                fcntl.flock(file, fcntl.LOCK_SH)
                held.enter_context(arriving.pop_all())
            return LoraFile(lora, path, sha256)


def _download(
    lora: Lora, file: BinaryIO, settings: Settings, policy: Policy, control: Control
) -> None:
    left = control.seconds_left
    net.fetch_into(
        _Disk(file),
        lora.source,
        policy,
        max_bytes=min(settings.max_lora_bytes, settings.lora_cache_bytes),
        seconds=DOWNLOAD_SECONDS if left is None else max(0.0, min(DOWNLOAD_SECONDS, left)),
        field=f"{lora.field}/source",
        canceled=control.check,
        progress=_in_mebibytes(control.step),
    )


class _Disk:
    """The file that a download writes to. A failure to write is not the server's fault."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, data: bytes, /) -> int:
        with _disk_errors():
            return self._file.write(data)

    def seek(self, offset: int, /) -> int:
        with _disk_errors():
            return self._file.seek(offset)

    def truncate(self) -> int:
        with _disk_errors():
            return self._file.truncate()


def _in_mebibytes(step: Callable[[int, int], None]) -> Callable[[int, int | None], None]:
    """Report progress in whole MiB, if the server states the size."""
    reported = 0

    def report(done: int, total: int | None) -> None:
        nonlocal reported
        if total is not None and done // _MIB != reported:
            reported = done // _MIB
            step(reported, max(1, -(-total // _MIB)))

    return report


def _make_room(cache: Path, size: int, limit: int, lora: Lora) -> None:
    """Delete unused files, least recently used first, until ``size`` more bytes fit."""
    files = sorted(cache.glob(f"*{SUFFIX}"), key=_last_used)
    total = size + sum(path.stat().st_size for path in files)
    for path in files:
        if total <= limit:
            return
        freed = path.stat().st_size
        if _remove_unused(path):
            total -= freed
    if total > limit:
        raise DiskFull(
            "The worker's LoRA cache is full of files that running jobs use; try again, or raise "
            "LORA_CACHE_BYTES",
            field=f"{lora.field}/source",
        )


def _sweep(cache: Path) -> None:
    """Remove the partial downloads of processes that have ended."""
    for part in cache.glob(f"*{_PART}"):
        _remove_unused(part)


def _remove_unused(path: Path) -> bool:
    with path.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        path.unlink()
        return True


def _lock_shared(path: Path, held: ExitStack) -> None:
    """Lock a cached file until ``held`` closes. The caller must hold the cache's lock."""
    fcntl.flock(held.enter_context(path.open("r+b")), fcntl.LOCK_SH)


@contextmanager
def _cache_lock(cache: Path) -> Iterator[None]:
    """Hold the cache's lock: nobody else changes the cache inside the block."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _disk_errors() -> Iterator[None]:
    """Turn an OSError of the cache's disk into DiskFull."""
    try:
        yield
    except OSError as problem:
        full = problem.errno in (errno.ENOSPC, errno.EDQUOT)
        raise DiskFull(
            "The worker's disk is full: no room for the LoRA"
            if full
            else "The worker's LoRA cache can't be written; check LORA_CACHE_DIR"
        ) from None


def _last_used(path: Path) -> float:
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0
