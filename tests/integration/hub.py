"""A Hugging Face Hub on loopback: the HTTP that huggingface_hub asks for, and its bad days.

Model info, tree, and files: small ones from the Hub's own host, large (LFS) ones by a redirect to
a content network, which here is the same server under its other name, ``localhost``. A test of the
real ``snapshot_download`` holds it to the protocol.
Not covered: Xet, uploads, spaces and data sets.
"""

import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LFS_BYTES = 4096
"""Files from this size on are LFS files; the real Hub's bound is 10 MB."""


@dataclass(frozen=True)
class File:
    data: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def blob_id(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()

    @property
    def is_lfs(self) -> bool:
        return len(self.data) >= LFS_BYTES

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.blob_id


@dataclass
class Fault:
    """What goes wrong with requests for files (or with the listing) whose path holds a text."""

    path: str
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    """Close the connection after so many bytes of the body."""
    flip: bool = False
    """Turn the last byte of the body."""
    ignore_range: bool = False
    stall: bool = False
    """Send half of the body, then nothing until the server stops."""
    times: int = 1


@dataclass(frozen=True)
class Seen:
    """One request."""

    method: str
    host: str
    path: str
    authorization: str | None
    range: str | None


class HubServer:
    """``repositories[name][path]`` are served at one commit each until the server stops."""

    def __init__(self, repositories: Mapping[str, Mapping[str, bytes]]) -> None:
        self.repositories = {
            name: {path: File(data) for path, data in files.items()}
            for name, files in repositories.items()
        }
        self.faults: list[Fault] = []
        self.token: str | None = None
        """When set, requests to the Hub's host must carry it."""
        self.seen: list[Seen] = []
        self.sent: Counter[str] = Counter()
        """Bytes of bodies sent, by ``repository/path``."""
        self.stalled = threading.Event()
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def commit(self, repository: str) -> str:
        """The one commit of a repository: a hash of what it holds."""
        listing = {path: file.sha256 for path, file in self.repositories[repository].items()}
        return hashlib.sha1(json.dumps([repository, listing], sort_keys=True).encode()).hexdigest()

    def fault(self, path: str) -> Fault | None:
        """The first fault that is left for a path, used up by one."""
        with self._lock:
            for fault in self.faults:
                if fault.path in path and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None

    def count(self, path: str, size: int) -> None:
        with self._lock:
            self.sent[path] += size

    def note(self, seen: Seen) -> None:
        with self._lock:
            self.seen.append(seen)

    def hold(self) -> None:
        self.stalled.set()
        self._stopping.wait(60)

    def __enter__(self) -> "HubServer":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_hub: HubServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub = self.server_hub
        host, path = self.headers.get("Host", ""), unquote(urlsplit(self.path).path)
        authorization = self.headers.get("Authorization")
        hub.note(Seen(self.command, host, path, authorization, self.headers.get("Range")))
        if host.startswith("localhost"):  # the content network
            self._content(path.removeprefix("/"))
        elif hub.token is not None and authorization != f"Bearer {hub.token}":
            self._answer(401, b'{"error": "Invalid username or password."}')
        elif path.startswith("/api/models/"):
            self._api(path.removeprefix("/api/models/"))
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(*match.groups())
        else:
            self._answer(404, b"{}")

    def _api(self, path: str) -> None:
        fault = self.server_hub.fault(f"api/{path}")
        if fault is not None and fault.status is not None:
            self._answer(fault.status, b'{"error": "fault"}', fault.headers)
            return
        match = re.fullmatch(r"([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)(?:/(.*))?)?", path)
        assert match is not None, path
        repository, kind, revision, folder = match.groups()
        files = self._at(repository, revision or "main")
        if files is None:
            return
        body: Any
        if kind == "tree":
            body = [
                {"type": "file", "path": name, "size": len(file.data), "oid": file.blob_id}
                | (
                    {"lfs": {"oid": file.sha256, "size": len(file.data), "pointerSize": 130}}
                    if file.is_lfs
                    else {}
                )
                for name, file in files.items()
                if not folder or name.startswith(f"{folder}/")
            ]
        else:
            body = {
                "_id": "0" * 24,
                "id": repository,
                "modelId": repository,
                "sha": self.server_hub.commit(repository),
                "private": False,
                "siblings": [
                    {"rfilename": name, "size": len(file.data), "blobId": file.blob_id}
                    | (
                        {
                            "lfs": {
                                "sha256": file.sha256,
                                "size": len(file.data),
                                "pointerSize": 130,
                            }
                        }
                        if file.is_lfs
                        else {}
                    )
                    for name, file in files.items()
                ],
            }
        self._answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _resolve(self, repository: str, revision: str, path: str) -> None:
        files = self._at(repository, revision)
        if files is None:
            return
        if path not in files:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        file = files[path]
        headers = {"X-Repo-Commit": self.server_hub.commit(repository), "ETag": f'"{file.etag}"'}
        if not file.is_lfs:
            self._file(f"{repository}/{path}", file, headers)
            return
        headers |= {
            "X-Linked-Size": str(len(file.data)),
            "X-Linked-ETag": f'"{file.sha256}"',
            "Location": f"http://localhost:{self.server_hub.port}/{repository}/{path}?signed=1",
        }
        self._answer(302, b"", headers)

    def _content(self, path: str) -> None:
        owner, name, rest = path.split("/", 2)
        self._file(path, self.server_hub.repositories[f"{owner}/{name}"][rest], {})

    def _at(self, repository: str, revision: str) -> dict[str, File] | None:
        hub = self.server_hub
        if repository not in hub.repositories:
            self._answer(401, b"", {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("main", hub.commit(repository)):
            self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        else:
            return hub.repositories[repository]
        return None

    def _file(self, path: str, file: File, headers: Mapping[str, str]) -> None:
        hub, data, start = self.server_hub, file.data, 0
        fault = hub.fault(path) if self.command == "GET" else None
        if fault is not None and fault.status is not None:
            self._answer(fault.status, b"", fault.headers)
            return
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        extra, status = dict(headers), 200
        if asked is not None and not (fault is not None and fault.ignore_range):
            start, status = int(asked[1]), 206
            extra["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if fault is not None and fault.flip:
            data = data[:-1] + bytes([data[-1] ^ 1])
        body = data[start:]
        self._head(status, len(body), extra)
        if self.command == "HEAD":
            return
        if fault is not None and (fault.cut_after is not None or fault.stall):
            body = body[: len(body) // 2 if fault.stall else fault.cut_after]
            self.close_connection = True
        self.wfile.write(body)
        hub.count(path, len(body))
        if fault is not None and fault.stall:
            self.wfile.flush()
            hub.hold()

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self._head(status, len(body), headers or {})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: int, size: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(size)} | dict(headers)).items():
            self.send_header(name, value)
        self.end_headers()


def until(condition: Any, seconds: float = 30.0) -> None:
    """Wait for something that another process does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
