"""List a Hub repository and download its files whole. A release elsewhere works the same way.

Requests use huggingface_hub's own session, so that HF_ENDPOINT, proxies, certificates and offline
mode work as they do everywhere. Its downloader is not used: it discards a partial file when its
process dies, and the files here have up to 10 GB.

Promises: an interrupted download continues where it stopped, in this process or the next; a
finished file has the hash that the Hub, or the catalog, states; if the Hub is busy, we wait as long
as it asks, up to a bound; the token goes to the Hub alone and into no message.
Not covered: Xet's chunk protocol (the same files come over plain HTTP), and files of a repository
other than safetensors and JSON.
"""

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from wan_worker.errors import ModelCorrupt, ModelUnavailable
from wan_worker.settings import Secret

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")

TRIES: Final = 5
"""A download is given up after so many failures in a row without a new byte."""

MAX_WAIT_SECONDS: Final = 300.0
"""The Hub counts its limits over five minutes. A longer Retry-After ends the download."""

TIMEOUT_SECONDS: Final = 30.0
_PIECE = 1024**2


class Stopped(Exception):
    """Another thread stopped this download."""


@dataclass(frozen=True)
class RemoteFile:
    """A file as the Hub or the catalog lists it."""

    path: str
    size: int
    digest: str
    """sha256 of the content for a large file, git's blob sha1 for a small one."""
    url: str | None = None
    """Its address, if it is not on the Hub."""

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    def is_whole(self, path: Path) -> bool:
        """Whether a local file has the listed content."""
        if path.stat().st_size != self.size:
            return False
        if len(self.digest) == 64:
            digest = hashlib.sha256()
        else:  # a small file is listed under git's name for its content
            digest = hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
        return digest.hexdigest() == self.digest


@dataclass(frozen=True)
class Repository:
    """A repository at one commit."""

    name: str
    commit: str
    files: tuple[RemoteFile, ...]

    def folder(self, name: str) -> dict[str, RemoteFile]:
        """The files directly in a folder, by file name. An empty name means the top folder."""
        prefix = f"{name}/" if name else ""
        return {f.name: f for f in self.files if f.path == prefix + f.name}


class Tally:
    """How many of the wanted bytes have arrived. Any thread may call it.

    A file may be reported again, when its download continues or starts over.
    """

    def __init__(self) -> None:
        self.wanted = 0
        self._bytes_by_file: dict[tuple[str, str], int] = {}

    @property
    def here(self) -> int:
        return sum(list(self._bytes_by_file.values()))

    def has(self, repository: str, path: str, count: int) -> None:
        """Record that so many bytes of a file have arrived."""
        self._bytes_by_file[repository, path] = count


class Hub:
    """The Hugging Face Hub, or the server that HF_ENDPOINT names instead."""

    def __init__(
        self,
        token: Secret | None = None,
        endpoint: str | None = None,
        wait: Callable[[threading.Event, float], object] = threading.Event.wait,
        tally: Tally | None = None,
    ) -> None:
        self.tally = tally or Tally()
        self._token = token
        self._endpoint = endpoint
        self._wait = wait
        self._known: dict[tuple[str, str | None], Repository] = {}

    def repository(self, name: str, revision: str | None = None) -> Repository:
        """List a repository at a branch, tag or commit (default: main).

        Raises:
            ModelUnavailable: the Hub does not show it, or can't be reached.
        """
        if (name, revision) not in self._known:
            self._known[name, revision] = self._with_retries(
                name, threading.Event(), lambda: self._list(name, revision)
            )
        return self._known[name, revision]

    def get(
        self,
        repository: Repository,
        file: RemoteFile,
        target: Path,
        stop: threading.Event | None = None,
    ) -> None:
        """Download a file to ``target``; continue where an earlier try stopped.

        Args:
            stop: another thread sets it to end the download at once; the bytes so far stay.

        Raises:
            ModelUnavailable: the Hub refuses the file, or can't be reached.
            ModelCorrupt: the content differed twice from what the Hub states.
            OSError: the disk failed.
        """
        stop = stop or threading.Event()
        for _ in range(2):
            self._with_retries(
                repository.name,
                stop,
                lambda: self._stream(repository, file, target, stop),
                progress=lambda: _size(target),
                place="The Hub" if file.url is None else file.url.split("/")[2],
            )
            if file.is_whole(target):
                return
            target.unlink()
        raise ModelCorrupt(
            f"{file.path} of {repository.name} arrives with another hash than "
            f"{'is pinned for it' if file.url else 'the Hub states'}"
        )

    def _list(self, name: str, revision: str | None) -> Repository:
        from huggingface_hub import HfApi

        info = HfApi(self._endpoint, token=self._plain_token()).model_info(
            name, revision=revision, files_metadata=True, timeout=TIMEOUT_SECONDS
        )
        if info.sha is None:
            raise ValueError("the Hub states no commit")
        files = [
            RemoteFile(
                path=sibling.rfilename,
                size=sibling.size,
                digest=sibling.lfs.sha256 if sibling.lfs is not None else sibling.blob_id,
            )
            for sibling in info.siblings or ()
            if sibling.size is not None and sibling.blob_id is not None
        ]
        return Repository(name, info.sha, tuple(files))

    def _stream(
        self, repository: Repository, file: RemoteFile, target: Path, stop: threading.Event
    ) -> None:
        """Append the missing part of a file."""
        import httpx2
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status, tqdm

        with target.open("ab") as out:
            received = out.tell()
            self.tally.has(repository.name, file.path, received)
            if received >= file.size:
                return
            headers = {} if file.url else build_hf_headers(token=self._plain_token())
            headers |= {"Accept-Encoding": "identity"}
            headers |= {"Range": f"bytes={received}-"} if received else {}
            url = file.url or hf_hub_url(
                repository.name, file.path, revision=repository.commit, endpoint=self._endpoint
            )
            # A redirect to a content network loses the token: httpx drops it between hosts.
            with get_session().stream(
                "GET", url, headers=headers, timeout=TIMEOUT_SECONDS, follow_redirects=True
            ) as response:
                hf_raise_for_status(response)
                if received and not _continues(response, received):
                    out.truncate(0)
                    received = 0
                with tqdm(
                    total=file.size,
                    initial=received,
                    desc=file.path,
                    unit="B",
                    unit_scale=True,
                    disable=None,  # bars for a terminal only
                ) as bar:
                    # Pieces as they arrive: with a fixed size, a broken line would lose the last.
                    for piece in response.iter_bytes():
                        if stop.is_set():
                            raise Stopped
                        room = file.size - out.tell()
                        out.write(piece[:room])
                        if len(piece) > room:
                            break  # the body is too long: never write more than is stated
                        bar.update(len(piece))
                        self.tally.has(repository.name, file.path, out.tell())
        if _size(target) < file.size:
            raise httpx2.RemoteProtocolError("the body ended early")

    def _with_retries(
        self,
        name: str,
        stop: threading.Event,
        call: Callable[[], T],
        progress: Callable[[], int] = lambda: 0,
        place: str = "The Hub",
    ) -> T:
        """Call again until it succeeds, can't succeed, or makes no more progress."""
        import httpx2

        failures, bytes_before = 0, progress()
        while True:
            try:
                return call()
            except (httpx2.HTTPError, OSError, ValueError) as error:
                if _is_local(error):
                    raise
                failures = failures + 1 if progress() == bytes_before else 1
                bytes_before = progress()
                pause = _pause(error, failures)
                if pause is None or failures >= TRIES:
                    raise _explained(name, error, place) from error
                self._wait(stop, pause)
                if stop.is_set():
                    raise Stopped from error

    def _plain_token(self) -> str | bool:
        # False, not None: with None the library would look for a token itself.
        return self._token.reveal() if self._token is not None else False


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _continues(response: "httpx2.Response", received: int) -> bool:
    """Whether the body starts where we stopped. A server may ignore the Range header."""
    start: str = response.headers.get("Content-Range", "")
    return response.status_code == 206 and start.startswith(f"bytes {received}-")


def _is_local(error: Exception) -> bool:
    """Whether this machine's own disk failed."""
    import httpx2

    return (
        isinstance(error, OSError)
        and not isinstance(error, httpx2.HTTPError | ConnectionError | TimeoutError)
        and error.errno is not None
    )


def _status(error: Exception) -> int | None:
    response: Any = getattr(error, "response", None)
    return None if response is None else int(response.status_code)


def _pause(error: Exception, failures: int) -> float | None:
    """Seconds until the next try, or None if another try can't help."""
    import httpx2

    status = _status(error)
    if status is None:
        return float(failures) if isinstance(error, httpx2.TransportError) else None
    if status not in (408, 429) and status < 500:
        return None
    response: Any = getattr(error, "response", None)
    stated = response.headers.get("Retry-After", "")
    pause = float(stated) if stated.isdecimal() else 2.0**failures
    return pause if pause <= MAX_WAIT_SECONDS else None


def _explained(name: str, error: Exception, place: str) -> ModelUnavailable:
    """An error that says what to do. The library's own text may hold addresses and headers."""
    status = _status(error)
    if place != "The Hub" and status in (401, 403, 404):
        return ModelUnavailable(f"{place} does not give {name} ({status})")
    if status in (401, 403) or type(error).__name__ == "GatedRepoError":
        return ModelUnavailable(
            f"The Hub refuses {name} ({status}): set HF_TOKEN to a token that may read it "
            "(and accept the model's terms on its page, if it has any)"
        )
    if status == 404:
        return ModelUnavailable(f"The Hub has no {name}, or not this revision or file of it (404)")
    if status == 429:
        return ModelUnavailable(
            f"{place} asks for fewer requests (429) and to come back later for {name}; "
            "what has arrived is kept, run the same command again",
            retryable=True,
        )
    failure = f"answers {status}" if status is not None else f"fails ({type(error).__name__})"
    return ModelUnavailable(
        f"{place} {failure} for {name}; what has arrived is kept, run the same command again. "
        "Models that are installed work without it",
        retryable=True,
    )
