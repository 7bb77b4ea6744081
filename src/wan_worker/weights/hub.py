"""What does a Hub repository hold, and its files, whole. A release elsewhere comes the same way.

Over huggingface_hub's own session, so that HF_ENDPOINT, proxies, certificates and offline mode mean
here what they mean everywhere. Its downloader is not used: it throws a file that was cut off away
when its process dies, and the files here are up to 10 GB.

Promises: a file that was cut off goes on where it stopped, in this process or the next; what
arrives has the hash that the Hub, or the catalog, states; a busy Hub is waited for as long as it
asks, up to a bound; the token goes to the Hub alone and into no message.
Not covered: Xet's chunk protocol (the same files come over plain HTTP), and files that a repository
holds outside safetensors and JSON.
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
"""Failures in a row, without a byte gained, after which a download is given up."""

MAX_WAIT_SECONDS: Final = 300.0
"""The Hub's limits count over five minutes; a longer Retry-After is for a person to wait out."""

TIMEOUT_SECONDS: Final = 30.0
_PIECE = 1024**2


class Stopped(Exception):
    """Another thread has ended this download."""


@dataclass(frozen=True)
class RemoteFile:
    """A file as the Hub lists it, or the catalog."""

    path: str
    size: int
    digest: str
    """sha256 of the content for a large file, git's blob sha1 for a small one."""
    url: str | None = None
    """Its address, if that is not on the Hub."""

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    def is_whole(self, path: Path) -> bool:
        """Whether a local file has the listed content."""
        if path.stat().st_size != self.size:
            return False
        if len(self.digest) == 64:
            digest = hashlib.sha256()
        else:  # git's name for the content: what a small file is listed under
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
        """The files directly in a folder, by their name there; an empty name is the top."""
        prefix = f"{name}/" if name else ""
        return {f.name: f for f in self.files if f.path == prefix + f.name}


class Tally:
    """How many bytes of those that are wanted are here; from any thread.

    A file may be told again, when it goes on after a break or has to come anew.
    """

    def __init__(self) -> None:
        self.wanted = 0
        self._here: dict[tuple[str, str], int] = {}

    @property
    def here(self) -> int:
        return sum(list(self._here.values()))

    def has(self, repository: str, path: str, count: int) -> None:
        """So many bytes of a file are here now."""
        self._here[repository, path] = count


class Hub:
    """The Hugging Face Hub, or what HF_ENDPOINT names in its place."""

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
        """What a repository holds at a branch, tag or commit (default: main).

        Raises:
            ModelUnavailable: the Hub does not show it, or can't be reached.
        """
        if (name, revision) not in self._known:
            self._known[name, revision] = self._patiently(
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
        """Bring a file to ``target``, from where an earlier try stopped.

        Args:
            stop: set by another thread to end this at once; what has arrived stays.

        Raises:
            ModelUnavailable: the Hub refuses it, or can't be reached.
            ModelCorrupt: what arrives, twice over, is not what the Hub states.
            OSError: the disk's own.
        """
        stop = stop or threading.Event()
        for _ in range(2):
            self._patiently(
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
        """Append what is missing of a file."""
        import httpx2
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status, tqdm

        with target.open("ab") as out:
            have = out.tell()
            self.tally.has(repository.name, file.path, have)
            if have >= file.size:
                return
            headers = {} if file.url else build_hf_headers(token=self._plain_token())
            headers |= {"Accept-Encoding": "identity"}
            headers |= {"Range": f"bytes={have}-"} if have else {}
            url = file.url or hf_hub_url(
                repository.name, file.path, revision=repository.commit, endpoint=self._endpoint
            )
            # A redirect to a content network loses the token: httpx drops it between hosts.
            with get_session().stream(
                "GET", url, headers=headers, timeout=TIMEOUT_SECONDS, follow_redirects=True
            ) as response:
                hf_raise_for_status(response)
                if have and not _continues(response, have):
                    out.truncate(0)
                    have = 0
                with tqdm(
                    total=file.size,
                    initial=have,
                    desc=file.path,
                    unit="B",
                    unit_scale=True,
                    disable=None,  # bars for a terminal only
                ) as bar:
                    # As they come: pieces of a fixed size would lose the last one with the line.
                    for piece in response.iter_bytes():
                        if stop.is_set():
                            raise Stopped
                        room = file.size - out.tell()
                        out.write(piece[:room])
                        if len(piece) > room:
                            break  # more than is stated: never more on disk than that
                        bar.update(len(piece))
                        self.tally.has(repository.name, file.path, out.tell())
        if _size(target) < file.size:
            raise httpx2.RemoteProtocolError("the body ended early")

    def _patiently(
        self,
        name: str,
        stop: threading.Event,
        call: Callable[[], T],
        progress: Callable[[], int] = lambda: 0,
        place: str = "The Hub",
    ) -> T:
        """Try until it works, it can't work, or nothing moves any more."""
        import httpx2

        failures, before = 0, progress()
        while True:
            try:
                return call()
            except (httpx2.HTTPError, OSError, ValueError) as error:
                if _is_local(error):
                    raise
                failures = failures + 1 if progress() == before else 1
                before = progress()
                pause = _pause(error, failures)
                if pause is None or failures >= TRIES:
                    raise _explained(name, error, place) from error
                self._wait(stop, pause)
                if stop.is_set():
                    raise Stopped from error

    def _plain_token(self) -> str | bool:
        # False, not None: None would let the library look for a token on its own.
        return self._token.reveal() if self._token is not None else False


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _continues(response: "httpx2.Response", have: int) -> bool:
    """Whether the body goes on where we stopped; a server may ignore the Range header."""
    start: str = response.headers.get("Content-Range", "")
    return response.status_code == 206 and start.startswith(f"bytes {have}-")


def _is_local(error: Exception) -> bool:
    """Whether it is this machine's own disk that failed."""
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
    """Seconds until the next try, or None where there is no sense in one."""
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
    """A failure in words that say what to do; the library's own may hold addresses and headers."""
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
    what = f"answers {status}" if status is not None else f"fails ({type(error).__name__})"
    return ModelUnavailable(
        f"{place} {what} for {name}; what has arrived is kept, run the same command again. "
        "Models that are installed work without it",
        retryable=True,
    )
